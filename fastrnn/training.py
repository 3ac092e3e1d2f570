"""The training loop: batches, chunks of time, validation, callbacks, Ctrl-C, and where a killed run goes on.

Shape letters: ``N`` samples, ``T`` time steps, ``B`` batch rows, ``K`` steps of a chunk.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from . import schedules
from .arguments import as_lengths
from .base import Array, State, as_size
from .callbacks import Callback, History
from .checkpoint import Path, read_file, write_file
from .progress import Progress

if TYPE_CHECKING:
    from .model import Sequential


class TrainingDiverged(FloatingPointError):
    """The loss or the gradient of an update was NaN or infinite. The weights are those before it."""


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Hold a Ctrl-C back until the body has ended, for what must be done whole or not at all."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield  # signals are delivered to the main thread, or ignored
        return
    pending: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: pending.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pending:
            handler(*pending[0])


# ------------------------------------------------------------------------------------------------ data


class Chunk(NamedTuple):
    """Some steps of a batch, time-major."""

    start: int  #: the first of its steps
    x: Array  #: (K, B, ...)
    y: Array | None  #: (K, B, ...), or (B, ...) for one target a sequence
    lengths: Array | None  #: (B,), how many of its steps are real
    weight: Array | None  #: (K, B), which targets are real; None if all are
    targets: int  #: how many of them are real


class Samples:
    """Sequences and their targets, samples first, checked.

    Parameters
    ----------
    owner
        The call that the arguments belong to, for messages.
    x
        (N, T) token ids or (N, T, I).
    y
        (N, T, ...) or, without `per_step`, (N, ...); None if there are no targets.
    lengths
        (N,) or None.
    per_step
        Whether there is one output for each step, or one for each sequence.
    """

    def __init__(
        self, owner: str, x: ArrayLike, y: ArrayLike | None, lengths: ArrayLike | None, per_step: bool
    ) -> None:
        self.x = np.asarray(x)
        self.y = None if y is None else np.asarray(y)
        self.per_step = per_step
        if self.x.ndim not in (2, 3):
            raise ValueError(f"{owner}: x has shape {self.x.shape}, expected (N, T) token ids or (N, T, I)")
        N, T = self.x.shape[:2]
        self.lengths = as_lengths(owner, lengths, T, N)
        if self.y is not None and len(self) == 0:
            raise ValueError(f"{owner}: x has shape {self.x.shape}, expected at least one sample")
        if self.y is not None and self.count == 0:
            raise ValueError(f"{owner}: x has no real steps, expected at least one")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def count(self) -> int:
        """The number of real targets."""
        if not self.per_step:
            return len(self.x)
        return int(self.x.shape[0] * self.x.shape[1] if self.lengths is None else self.lengths.sum())

    def chunks(self, rows: slice | Array, truncate: int | None) -> Iterator[Chunk]:
        """One batch, in chunks of `truncate` steps, or as one chunk.

        Where there are targets for each step, steps after the end of the longest row are left out. There is
        at least one chunk, if need be without steps.
        """
        x = self.x[rows].swapaxes(0, 1)
        y = None if self.y is None else self.y[rows]
        lengths = None if self.lengths is None else self.lengths[rows]
        T, B = x.shape[:2]
        if not self.per_step:
            yield Chunk(0, x, y, lengths, None, B)
            return
        if y is not None:
            y = y.swapaxes(0, 1)
            T = T if lengths is None else int(lengths.max(initial=0))
        for start in range(0, max(T, 1), truncate or max(T, 1)):
            steps = slice(start, min(start + (truncate or T), T))
            K = steps.stop - start
            ends = None if lengths is None or lengths.min() >= steps.stop else np.clip(lengths - start, 0, K)
            weight = None if ends is None else np.arange(K)[:, np.newaxis] < ends
            count = K * B if ends is None else int(ends.sum())
            yield Chunk(start, x[steps], None if y is None else y[steps], ends, weight, count)


# ------------------------------------------------------------------------------------------------- run


@dataclass
class _Position:
    """Where a run stands: all that is neither in the model, the optimizer nor the callbacks.

    `batch` and `chunk` are those to do next; `states` is what the chunk before left.
    """

    epoch: int = 0
    batch: int = 0
    chunk: int = 0
    seed: int | None = None  #: of the order of the samples of this epoch; None before it begins
    states: Sequence[State] | None = None
    total: float = 0.0  #: the sum of the losses of this epoch
    count: int = 0  #: and of how many targets
    updates: int = 0  #: of this epoch


class _Best(NamedTuple):
    value: float
    epoch: int
    weights: dict[str, Array]


@dataclass(frozen=True)
class CheckpointPlan:
    """Where and when a run writes checkpoints, and whether it goes on from one."""

    path: Path | None
    every: int | timedelta | None
    resume: bool

    def __post_init__(self) -> None:
        if self.path is None and (self.every is not None or self.resume):
            raise ValueError("fit: checkpoint is None, expected a path with checkpoint_every or resume")
        if isinstance(self.every, timedelta):
            if self.every < timedelta(0):
                raise ValueError(f"fit: checkpoint_every is {self.every}, expected a positive time")
        elif self.every is not None:
            as_size("fit", "checkpoint_every", self.every)


class Run:
    """One call of ``Sequential.fit``; the arguments are explained there."""

    def __init__(
        self,
        model: Sequential,
        samples: Samples,
        validation: Samples | None,
        *,
        epochs: int,
        batch_size: int,
        callbacks: Iterable[Callback],
        shuffle: bool,
        truncate: int | None,
        verbose: int,
        checkpoint: CheckpointPlan,
    ) -> None:
        self.model = model
        self._optimizer, _ = model._compiled("fit")
        self.samples = samples
        self.validation = validation
        self.epochs = as_size("fit", "epochs", epochs, minimum=0)
        self.batch_size = as_size("fit", "batch_size", batch_size)
        self.callbacks = list(callbacks)
        self.shuffle = bool(shuffle)
        self.truncate = truncate
        self.verbose = verbose
        self.plan = checkpoint
        self.history = History()
        self._position = _Position()
        self._best: _Best | None = None
        self._logs: dict[str, float] = {}
        self._unsaved, self._saved_at = 0, time.monotonic()
        self._settings = self._describe()
        unit = model._unit if samples.per_step else "sample"
        self._progress = Progress(verbose, self.epochs, samples.count, unit)

    def run(self) -> History:
        """Train until the last epoch, `stop_training` or Ctrl-C."""
        try:
            self._begin()
            while self._position.epoch < self.epochs and not self.model.stop_training:
                self._run_epoch()
            self._call("on_train_end", self._logs)
        except KeyboardInterrupt:
            self._interrupted()
        finally:
            self._progress.close()
        return self.history

    def _begin(self) -> None:
        self.model.stop_training = False
        metrics = ["loss"] if self.validation is None else ["loss", "val_loss"]
        for callback in self.callbacks:
            callback.set_model(self.model)
            callback.set_params({"epochs": self.epochs, "verbose": self.verbose, "metrics": metrics})
        self._call("on_train_begin", {})
        if self.plan.path is None:
            return
        if self.plan.resume and os.path.exists(self.plan.path):
            self._resume(self.plan.path)
        else:
            self._save()  # a path that can't be written fails now, not after the first epoch

    def _run_epoch(self) -> None:
        position = self._position
        if self.shuffle and position.seed is None:
            position.seed = int(self.model.rng.integers(2**63))
        order = np.random.default_rng(position.seed).permutation(len(self.samples)) if self.shuffle else None
        self._call("on_epoch_begin", position.epoch, {})
        self._progress.begin(position.epoch, position.count)
        for batch in range(position.batch, -(-len(self.samples) // self.batch_size)):
            rows = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            self._run_batch(self.samples.chunks(rows if order is None else order[rows], self.truncate))
            position.batch, position.chunk, position.states = batch + 1, 0, None
        self._end_epoch()

    def _run_batch(self, chunks: Iterator[Chunk]) -> None:
        position = self._position
        for index, chunk in enumerate(chunks):
            if index < position.chunk or chunk.targets == 0:
                continue
            loss, states, norm = self._update(chunk)
            position.chunk, position.states = index + 1, states
            position.total += loss * chunk.targets
            position.count += chunk.targets
            position.updates += 1
            self.history.losses.append(loss)
            self._progress.update(chunk.targets, position.total / position.count)
            self._call("on_batch_end", position.updates - 1, {"loss": loss, "grad_norm": norm})
            if self._is_due():
                self._save()

    def _update(self, chunk: Chunk) -> tuple[float, State, float]:
        assert chunk.y is not None
        try:
            return self.model._update(chunk.x, chunk.y, self._position.states, chunk.weight, chunk.lengths)
        except TrainingDiverged as fault:
            where = f"epoch {self._position.epoch + 1}, batch {self._position.batch + 1}"
            steps = f", steps from {chunk.start}" if self.truncate else ""
            raise TrainingDiverged(f"fit: {where}{steps}: {fault}") from None

    def _end_epoch(self) -> None:
        position = self._position
        logs = {"loss": position.total / position.count}
        if self.validation is not None:
            logs["val_loss"] = self.model._evaluate(self.validation, self.batch_size, self.truncate)
        value = logs.get("val_loss", logs["loss"])
        best = self._best
        if best is None or value < best.value or math.isnan(best.value):
            best = _Best(value, position.epoch, self.model.state_dict())
        with deferred_interrupt():  # either the epoch has been, or it has not
            self._best, self._logs = best, logs
            self.history.append(position.epoch, logs)
        self._progress.end(position.epoch, logs)
        self._call("on_epoch_end", position.epoch, logs)
        self._position = _Position(position.epoch + 1)
        if self.plan.path is not None:
            self._save()

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(*arguments)

    def _interrupted(self) -> None:
        """Ctrl-C: keep the best weights so far, and say so."""
        self.history.interrupted = True
        self._progress.close()
        self._call("on_train_end", self._logs)
        if self._best is None:
            kept = "no epoch has ended, the weights are those of the last update"
        else:
            with deferred_interrupt():
                self.model.load_state_dict(self._best.weights)
            name = "loss" if self.validation is None else "val_loss"
            epoch, value = self._best.epoch + 1, self._best.value
            kept = f"the weights are the best so far, of epoch {epoch} ({name} {value:.4f})"
        print(f"fit: interrupted in epoch {self._position.epoch + 1}; {kept}", file=sys.stderr, flush=True)

    # ------------------------------------------------------------------------------------- checkpoints

    def _is_due(self) -> bool:
        self._unsaved += 1
        if isinstance(self.plan.every, timedelta):
            return time.monotonic() - self._saved_at >= self.plan.every.total_seconds()
        return self.plan.every is not None and self._unsaved >= self.plan.every

    def _save(self) -> None:
        assert self.plan.path is not None
        write_file(self.plan.path, "checkpoint", self._document())
        self._unsaved, self._saved_at = 0, time.monotonic()

    def _describe(self) -> dict[str, Any]:
        """What must be the same when a run goes on, as JSON values."""
        samples, validation = self.samples, self.validation
        settings = {
            **self.model._describe(),
            "callbacks": [type(callback).__name__ for callback in self.callbacks],
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "truncate": self.truncate,
            "x": list(samples.x.shape),
            "y": [] if samples.y is None else list(samples.y.shape),
            "lengths": samples.lengths is not None,
            "validation_data": validation is not None,
        }
        result: dict[str, Any] = json.loads(json.dumps(settings))  # tuples become lists, as in the file
        return result

    def _document(self) -> dict[str, Any]:
        """All that the rest of the run depends on, apart from the arguments of `fit`."""
        model, history, best = self.model, self.history, self._best
        return {
            "settings": self._settings,
            "parameters": model.parameters,
            "optimizer": self._optimizer.state_dict(),
            "learning_rate": self._optimizer.config()["learning_rate"],
            "generators": [generator.bit_generator.state for generator in model._generators()],
            "position": {field.name: getattr(self._position, field.name) for field in fields(_Position)},
            "history": {
                "history": history.history,
                "epoch": history.epoch,
                "losses": np.array(history.losses),
            },
            "logs": self._logs,
            "best": None if best is None else best._asdict(),
            "callbacks": [callback.state_dict() for callback in self.callbacks],
            "stop_training": model.stop_training,
        }

    def _resume(self, path: Path) -> None:
        document = read_file(path, "checkpoint")
        try:
            self._compare(document["settings"])
            self._restore(document)
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError) as fault:
            missing = "the document lacks " if isinstance(fault, KeyError) else ""
            raise ValueError(f"{os.fspath(path)}: {missing}{fault}") from fault

    def _compare(self, settings: dict[str, Any]) -> None:
        for name, value in self._settings.items():
            if settings[name] != value:
                raise ValueError(f"the run was begun with {name} = {settings[name]}, now it is {value}")

    def _restore(self, document: dict[str, Any]) -> None:
        model, history = self.model, document["history"]
        model.load_state_dict(document["parameters"])
        self._optimizer.load_state_dict(document["optimizer"])
        rate = document["learning_rate"]  # a callback may have changed it
        self._optimizer.learning_rate = schedules.from_config(rate) if isinstance(rate, dict) else rate
        for generator, state in zip(model._generators(), document["generators"], strict=True):
            generator.bit_generator.state = state
        self._position = _Position(**document["position"])
        self._position.states = _as_states(self._position.states)
        self.history.history, self.history.epoch = history["history"], history["epoch"]
        self.history.losses = history["losses"].tolist()
        self._logs = document["logs"]
        self._best = None if document["best"] is None else _Best(**document["best"])
        for callback, state in zip(self.callbacks, document["callbacks"], strict=True):
            callback.load_state_dict(state)
        model.stop_training = bool(document["stop_training"])


def _as_states(states: Sequence[State] | None) -> Sequence[State] | None:
    """A file has lists where the layers had tuples."""
    if states is None:
        return None
    return [tuple(state) if isinstance(state, list) else state for state in states]
