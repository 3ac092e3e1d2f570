"""What `fit` tells others while it runs: hooks, under the names they have in Keras, and common callbacks."""

from __future__ import annotations

import csv
import errno
import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .arguments import (
    Array,
    as_choice,
    as_flag,
    as_mapping,
    as_number,
    as_size,
    is_integer,
    show,
)
from .checkpoint import as_path, check_like

if TYPE_CHECKING:
    from .model import Sequential

__all__ = ["CSVLogger", "Callback", "EarlyStopping", "History", "LambdaCallback", "ModelCheckpoint"]

Logs = Mapping[str, float]


def _as_logs(owner: str, logs: Any, needed: str | None = None) -> dict[str, float]:
    """The logs of an epoch as floats, the one that is needed among them; errors name the argument."""
    values = {}
    for name, value in as_mapping(owner, "logs", logs).items():
        if not is_integer(value) and not isinstance(value, (float, np.floating)):
            raise TypeError(f"{owner}: logs[{show(name)}] is {show(value)}, expected a number")
        try:
            values[name] = float(value)
        except OverflowError:
            raise ValueError(f"{owner}: logs[{show(name)}] is {show(value)}, beyond any float") from None
    if needed is not None and needed not in values:
        raise ValueError(f"{owner}: logs are of {show(list(values))}, expected one of {needed!r}")
    return values


def _as_epoch(owner: str, epoch: Any) -> int:
    return as_size(owner, "epoch", epoch, minimum=0)


def _check_state(callback: Callback, state: Any) -> str:
    """ValueError unless `state` has what the callback's `state_dict` gives; returns its name for messages."""
    name = f"{type(callback).__name__}: state"
    check_like(name, state, dict.fromkeys(callback.state_dict(), object))
    return name


class Callback:
    """Base of all callbacks: every hook does nothing, a subclass overrides those it needs.

    Attributes
    ----------
    model : Sequential
        The model being trained. ``model.stop_training = True`` ends the run after the current epoch.
    params : dict
        ``"epochs"``, ``"verbose"``, and ``"metrics"``, the names that the epoch's logs will have.

    Notes
    -----
    Epochs and batches count from 0. A callback whose later behaviour depends on what it has seen gives
    that in `state_dict`, and takes it back in `load_state_dict`, which a resumed run calls after
    `on_train_begin`.

    Examples
    --------
    >>> class Print(Callback):
    ...     def on_epoch_end(self, epoch, logs):
    ...         print(epoch, sorted(logs))
    """

    model: Sequential
    params: Mapping[str, Any]

    def set_model(self, model: Sequential) -> None:
        """Called first."""
        self.model = model

    def set_params(self, params: Mapping[str, Any]) -> None:
        """Called second."""
        self.params = params

    def on_train_begin(self, logs: Logs) -> None:
        """Before the first epoch; `logs` is empty."""

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        """Before an epoch, and where a resumed run enters one; `logs` is empty."""

    def on_batch_end(self, batch: int, logs: Logs) -> None:
        """After each update, the `batch`-th of its epoch; `logs` has its ``loss`` and ``grad_norm``."""

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        """After an epoch and its validation; `logs` has ``loss``, with validation data ``val_loss`` too."""

    def on_train_end(self, logs: Logs) -> None:
        """After the last epoch and after Ctrl-C, but not after an error; `logs` is that of the last epoch."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, as JSON values and arrays in dicts and lists."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""


class History:
    """What `fit` returns.

    Attributes
    ----------
    history : dict of str to list of float
        For each of ``"loss"`` and, with validation data, ``"val_loss"``: the value of every epoch.
    epoch : list of int
        The epochs of those values.
    losses : list of float
        The loss of every update.
    interrupted : bool
        Whether Ctrl-C ended the run.
    """

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}
        self.epoch: list[int] = []
        self.losses: list[float] = []
        self.interrupted = False

    def append(self, epoch: int, logs: Logs) -> None:
        """Add the values of one epoch."""
        epoch, values = _as_epoch("History", epoch), _as_logs("History", logs)
        self.epoch.append(epoch)
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)

    def __repr__(self) -> str:
        last = ", ".join(f"{name}={values[-1]:.4g}" for name, values in self.history.items())
        return f"<History: {len(self.epoch)} epochs, {len(self.losses)} updates{last and ': ' + last}>"


class _Monitor(Callback):
    """Compares one of the logged values with the best so far."""

    def __init__(self, monitor: str, min_delta: float, mode: str) -> None:
        owner = type(self).__name__
        if not isinstance(monitor, str):
            raise TypeError(f"{owner}: monitor is {show(monitor)}, expected the name of a logged value")
        self.monitor = monitor
        self.min_delta = as_number(owner, "min_delta", min_delta)
        self.mode = as_choice(owner, "mode", mode, "min", "max")
        self._reset()

    def _reset(self) -> None:
        self.best = math.inf if self.mode == "min" else -math.inf

    def on_train_begin(self, logs: Logs) -> None:
        metrics = self.params["metrics"]
        if self.monitor not in metrics:
            hint = "; val_loss takes validation_data" if self.monitor == "val_loss" else ""
            raise ValueError(
                f"{type(self).__name__}: monitor is {self.monitor!r}, expected one of {list(metrics)}{hint}"
            )
        self._reset()

    def _improves(self, logs: Logs) -> bool:
        """Whether the logged value is better than the best by more than min_delta; then it is the best."""
        value = _as_logs(type(self).__name__, logs, self.monitor)[self.monitor]
        gain = self.best - value if self.mode == "min" else value - self.best
        if gain > self.min_delta:
            self.best = value
            return True
        return False

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        name, best = _check_state(self, state), state["best"]
        if type(best) is not float or math.isnan(best):
            raise ValueError(f"{name}.best is {show(best)}, expected a number")
        self.best = best


class EarlyStopping(_Monitor):
    """Ends the run when a value has stopped improving.

    Parameters
    ----------
    monitor
        The logged value, ``"val_loss"`` or ``"loss"``.
    patience
        The epochs without improvement after which the run ends; 0 counts as 1, as in Keras.
    min_delta
        An improvement is one by more than this.
    mode
        ``"min"`` or ``"max"``: which way is better.
    restore_best_weights
        Whether the model gets the weights of the best epoch when the run ends, by itself or by Ctrl-C. After
        an error, TrainingDiverged say, it keeps those it has.

    Attributes
    ----------
    best : float
        The best value so far.
    best_epoch : int or None
        Its epoch.
    stopped_epoch : int or None
        The last epoch, if this ended the run.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 0,
        min_delta: float = 0.0,
        *,
        mode: str = "min",
        restore_best_weights: bool = False,
    ) -> None:
        self.patience = as_size("EarlyStopping", "patience", patience, minimum=0)
        self.restore_best_weights = as_flag("EarlyStopping", "restore_best_weights", restore_best_weights)
        super().__init__(monitor, min_delta, mode)

    def _reset(self) -> None:
        super()._reset()
        self.best_epoch: int | None = None
        self.stopped_epoch: int | None = None
        self._waited = 0
        self._weights: dict[str, Array] | None = None

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        epoch = _as_epoch("EarlyStopping", epoch)
        improves = self._improves(logs)
        self._waited += 1
        if improves:
            self.best_epoch = epoch
            self._waited = 0
            if self.restore_best_weights:
                self._weights = self.model.state_dict()
        elif self._waited >= self.patience:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: Logs) -> None:
        if self._weights is not None:
            self.model.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "best_epoch": self.best_epoch,
            "stopped_epoch": self.stopped_epoch,
            "waited": self._waited,
            "weights": self._weights,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        name, epoch, weights = _check_state(self, state), range(2**31), state["weights"]
        for key in ("best_epoch", "stopped_epoch"):
            check_like(f"{name}.{key}", state[key], None if state[key] is None else epoch)
        check_like(f"{name}.waited", state["waited"], epoch)
        check_like(f"{name}.weights", weights, None if weights is None else self.model.parameters)
        super().load_state_dict(state)
        self.best_epoch, self.stopped_epoch = state["best_epoch"], state["stopped_epoch"]
        self._waited = state["waited"]
        self._weights = weights if self.restore_best_weights else None


class ModelCheckpoint(_Monitor):
    """Saves the model after each epoch, as ``model.save`` does, for `fastrnn.load`.

    To go on with an interrupted run bit for bit, use the `checkpoint` argument of ``fit`` instead: a
    saved model is only the weights.

    Parameters
    ----------
    path
        The file. It may hold ``{epoch}`` (from 1) and the names of logged values, with formats as for
        ``str.format``: ``"m-{epoch:02d}-{val_loss:.3f}.safetensors"``.
    monitor, mode
        As for `EarlyStopping`; used with `save_best_only`.
    save_best_only
        Whether to save only after an epoch that is the best so far.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        monitor: str = "val_loss",
        *,
        mode: str = "min",
        save_best_only: bool = False,
    ) -> None:
        self.path = as_path("ModelCheckpoint", path)
        self.save_best_only = as_flag("ModelCheckpoint", "save_best_only", save_best_only)
        super().__init__(monitor, 0.0, mode)

    def on_train_begin(self, logs: Logs) -> None:
        if self.save_best_only:
            super().on_train_begin(logs)
        directory = os.path.dirname(self._path_of(0, dict.fromkeys(self.params["metrics"], 0.0))) or os.curdir
        if not os.path.isdir(directory):
            raise FileNotFoundError(errno.ENOENT, "ModelCheckpoint: there is no such directory", directory)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        path = self._path_of(_as_epoch("ModelCheckpoint", epoch), _as_logs("ModelCheckpoint", logs))
        if not self.save_best_only or self._improves(logs):
            self.model.save(path)

    def _path_of(self, epoch: int, logs: Logs) -> str:
        values = {**logs, "epoch": epoch + 1}
        try:
            return self.path.format(**values)
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"ModelCheckpoint: path {self.path!r} can't be formatted with the epoch and the logs "
                f"{show(list(logs))}: {error!r}"
            ) from error


class CSVLogger(Callback):
    """Writes the logs of each epoch as a line of a CSV file: ``epoch,loss,val_loss``.

    Each line is on its way to the disk when the next epoch begins; between epochs the file is closed.
    A resumed run takes away the lines that were written after its checkpoint.

    Parameters
    ----------
    path
        The file.
    append
        Whether to add to what is there, without a second header line.
    """

    def __init__(self, path: str | os.PathLike[str], append: bool = False) -> None:
        self.path = as_path("CSVLogger", path)
        self.append = as_flag("CSVLogger", "append", append)

    def on_train_begin(self, logs: Logs) -> None:
        # "a" makes the file and fails now if it can't be written, but a resumed run keeps its lines.
        with open(self.path, "a", encoding="utf-8") as file:
            self._size = file.tell() if self.append else 0

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        epoch, values = _as_epoch("CSVLogger", epoch), _as_logs("CSVLogger", logs)
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            file.truncate(self._size)
            writer = csv.writer(file, lineterminator="\n")
            if self._size == 0:
                writer.writerow(["epoch", *values])
            writer.writerow([epoch, *map(repr, values.values())])
        self._size = os.path.getsize(self.path)

    def state_dict(self) -> dict[str, Any]:
        return {"size": self._size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_like(f"{_check_state(self, state)}.size", state["size"], range(2**63))
        self._size = min(state["size"], os.path.getsize(self.path))


class LambdaCallback(Callback):
    """Calls functions that were given by the name of their hook.

    Examples
    --------
    >>> losses = []
    >>> callback = LambdaCallback(on_epoch_end=lambda epoch, logs: losses.append(logs["loss"]))
    """

    def __init__(self, **hooks: Callable[..., Any]) -> None:
        for name, function in hooks.items():
            if not name.startswith("on_") or not hasattr(Callback, name):
                known = [hook for hook in vars(Callback) if hook.startswith("on_")]
                raise TypeError(f"LambdaCallback: {name!r} is no hook, expected one of {known}")
            if not callable(function):
                raise TypeError(f"LambdaCallback: {name} is {function!r}, expected a function")
            setattr(self, name, function)
