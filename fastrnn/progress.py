"""What `fit` shows: a bar (tqdm), a line for each epoch, or nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


class Progress:
    """The display of a run.

    Parameters
    ----------
    verbose
        0 shows nothing, 1 a bar for each epoch (on stderr), 2 a line for each epoch (on stdout).
    epochs
        How many there will be.
    total
        The units of one epoch.
    unit
        What the speed counts, in the singular: ``"token"``.
    """

    def __init__(self, verbose: int, epochs: int, total: int, unit: str) -> None:
        self._verbose, self._epochs, self._total, self._unit = verbose, epochs, total, unit
        self._bar: Any = None
        self._done = 0
        self._since = 0.0

    def begin(self, epoch: int, done: int) -> None:
        """An epoch begins, or goes on after its first `done` units."""
        self._done = 0
        self._since = time.monotonic()
        if self._verbose == 1:
            from tqdm import tqdm  # type: ignore[import-untyped,unused-ignore]

            title = f"Epoch {epoch + 1}/{self._epochs}"
            # dynamic_ncols: a window may become narrower in an hour-long epoch.
            self._bar = tqdm(
                desc=title,
                total=self._total,
                initial=done,
                unit=self._unit,
                unit_scale=True,
                dynamic_ncols=True,
            )

    def update(self, units: int, loss: float) -> None:
        """An update has been made over so many units; `loss` is the mean of the epoch so far."""
        self._done += units
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss={loss:.4f}", refresh=False)
            self._bar.update(units)

    def end(self, epoch: int, logs: Mapping[str, float]) -> None:
        """The epoch ends."""
        values = ", ".join(f"{name}={value:.4f}" for name, value in logs.items())
        if self._bar is not None:
            self._bar.set_postfix_str(values)
        if self._verbose == 2:
            seconds = max(time.monotonic() - self._since, 1e-9)
            speed = f"{self._done / seconds:.3g} {self._unit}/s"
            print(f"Epoch {epoch + 1}/{self._epochs}: {values}, {seconds:.1f} s, {speed}", flush=True)
        self.close()

    def close(self) -> None:
        """Leave the bar as it is and end its line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
