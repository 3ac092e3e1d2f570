"""The training loop: updates, validation, callbacks, Ctrl-C, and where a killed run goes on.

Shape letters: ``N`` samples, ``T`` time steps, ``B`` batch rows, ``K`` steps of a chunk.
"""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import schedules
from .arguments import Array, as_flag, as_list, as_size, is_integer, show
from .base import State
from .callbacks import Callback, History
from .checkpoint import Path, as_path, check_like, open_file, write_file
from .data import Chunk, Samples
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
        if self.path is not None:
            as_path("fit", self.path, "checkpoint")
        elif self.every is not None or self.resume:
            raise ValueError("fit: checkpoint is None, expected a path with checkpoint_every or resume")
        if isinstance(self.every, timedelta):
            if self.every < timedelta(0):
                raise ValueError(f"fit: checkpoint_every is {self.every}, expected a positive time")
        elif self.every is not None:
            if not is_integer(self.every):
                expected = "an integer or a datetime.timedelta"
                raise TypeError(f"fit: checkpoint_every is {show(self.every)}, expected {expected}")
            as_size("fit", "checkpoint_every", self.every)


def _as_callbacks(callbacks: Any) -> list[Callback]:
    """A list of them from an iterable, a single one or None."""
    if callbacks is None or isinstance(callbacks, Callback):
        return [] if callbacks is None else [callbacks]
    result = as_list("fit", "callbacks", callbacks, "a list of Callback objects")
    for index, callback in enumerate(result):
        if not isinstance(callback, Callback):
            raise TypeError(f"fit: callbacks[{index}] is {show(callback)}, expected a Callback object")
    return result


def _as_verbose(verbose: Any) -> int:
    if isinstance(verbose, str) and verbose == "auto":
        return 1
    if not (is_integer(verbose) or isinstance(verbose, (bool, np.bool_))):
        raise TypeError(f"fit: verbose is {show(verbose)}, expected 0, 1, 2 or 'auto'")
    if not 0 <= verbose <= 2:
        raise ValueError(f"fit: verbose is {show(verbose)}, expected 0, 1, 2 or 'auto'")
    return int(verbose)


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
        callbacks: Iterable[Callback] | Callback | None,
        shuffle: bool,
        truncate: int | None,
        verbose: int | str,
        checkpoint: CheckpointPlan,
    ) -> None:
        self.model = model
        self._optimizer, _ = model._compiled("fit")
        self.samples = samples
        self.validation = validation
        self.epochs = as_size("fit", "epochs", epochs, minimum=0)
        self.batch_size = as_size("fit", "batch_size", batch_size)
        self.callbacks = _as_callbacks(callbacks)
        self.shuffle = as_flag("fit", "shuffle", shuffle)
        self.truncate = truncate
        self.verbose = _as_verbose(verbose)
        self.plan = checkpoint
        self.history = History()
        self._position = _Position()
        self._best: _Best | None = None
        self._logs: dict[str, float] = {}
        self._unsaved, self._saved_at = 0, time.monotonic()
        self._settings = self._describe()
        unit = model._unit if samples.per_step else "sample"
        self._progress = Progress(self.verbose, self.epochs, samples.count, unit)

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

    @property
    def _metrics(self) -> list[str]:
        """The names of what the logs of an epoch hold."""
        return ["loss"] if self.validation is None else ["loss", "val_loss"]

    def _begin(self) -> None:
        self.model.stop_training = False
        metrics = self._metrics
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
            if not math.isfinite(logs["val_loss"]):
                raise TrainingDiverged(
                    f"fit: epoch {position.epoch + 1}: the val_loss is {logs['val_loss']}; "
                    "the weights are those after the epoch"
                )
        value = logs.get("val_loss", logs["loss"])
        best = self._best
        if best is None or value < best.value:
            best = _Best(value, position.epoch, self.model.state_dict())
        with deferred_interrupt():  # either the epoch has been, or it has not
            self._best, self._logs = best, dict(logs)  # callbacks may add to theirs
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
        if self._best is None:
            kept = "no epoch has ended, the weights are those of the last update"
        else:
            with deferred_interrupt():
                self.model.load_state_dict(self._best.weights)
            epoch, value = self._best.epoch + 1, self._best.value
            kept = f"the weights are the best so far, of epoch {epoch} ({self._metrics[-1]} {value:.4f})"
        before = self.model.state_dict()
        self._call("on_train_end", self._logs)  # last: a callback may have other weights for the end
        if any(not np.array_equal(before[name], value) for name, value in self.model.parameters.items()):
            kept = "the weights are those that a callback has restored"
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
            "parameters": model._parameters,
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
            "stop_training": bool(model.stop_training),
        }

    def _resume(self, path: Path) -> None:
        with open_file(path, "checkpoint") as file:
            rate = self._check(file.outline())
            document = file.read_document()
            self._check_values(document)
            for callback, state in zip(self.callbacks, document["callbacks"], strict=True):
                callback.load_state_dict(state)
        self._optimizer.learning_rate = rate  # a callback may have changed it
        self._restore(document)

    def _compare(self, settings: Any) -> None:
        check_like("settings", settings, dict.fromkeys(self._settings, object))
        for name, value in self._settings.items():
            if settings[name] != value:
                was = str(settings[name])[:500]
                raise ValueError(f"the run was begun with {name} = {was}, now it is {value}")

    def _check(self, document: Mapping[str, Any]) -> float | schedules.Schedule:
        """ValueError unless this run could have written what `document` outlines; returns the learning rate.

        No tensor has been read yet, because a hostile file may have tensors of any size; only the callbacks
        know the sizes of theirs. After this and `_check_values`, nothing can fail in `_restore`.
        """
        check_like("the document", document, dict.fromkeys(self._document(), object))
        self._compare(document["settings"])
        parameters = dict(self.model.parameters)
        history, best = document["history"], document["best"]
        check_like("history", history, {"history": object, "epoch": list, "losses": object})
        epochs = len(history["epoch"])
        values = {name: [float] * epochs for name in self._metrics} if epochs else {}
        numbers = [range(i, i + 1) for i in range(epochs)]
        check_like("history", history, {"history": values, "epoch": numbers, "losses": object})
        self._check_position(document["position"], epochs)
        most = (epochs + 1) * math.prod(self._parts())  # chunks without targets make no update
        size = min(most, math.prod(getattr(history["losses"], "shape", ())))
        check_like("history.losses", history["losses"], np.broadcast_to(0.0, size))
        check_like("parameters", document["parameters"], parameters)
        check_like("logs", document["logs"], dict.fromkeys(values, float))
        weights = {"value": float, "epoch": range(epochs), "weights": parameters}
        check_like("best", best, weights if epochs else None)
        check_like("stop_training", document["stop_training"], bool)
        check_like("callbacks", document["callbacks"], [object] * len(self.callbacks))
        self._check_optimizer(document["optimizer"])
        generators = self.model._generators()
        check_like("generators", document["generators"], [object] * len(generators))
        for generator, state in zip(generators, document["generators"], strict=True):
            _check_generator(generator.bit_generator, state)
        rate = document["learning_rate"]
        if rate == self._settings["compile"]["optimizer"]["learning_rate"]:
            return self._optimizer.learning_rate  # perhaps a schedule of the user's
        if isinstance(rate, dict):
            return schedules.from_config(rate)
        return schedules.as_number("fit", "learning_rate", rate)

    def _check_values(self, document: Mapping[str, Any]) -> None:
        """ValueError for what only the values of a document's arrays tell."""
        iterations = document["optimizer"]["iterations"]
        if iterations < 0:
            raise ValueError(f"optimizer.iterations is {iterations}, expected at least 0")
        for generator, state in zip(self.model._generators(), document["generators"], strict=True):
            copy.deepcopy(generator.bit_generator).state = state  # NumPy's own checks

    def _parts(self) -> tuple[int, int]:
        """(batches of an epoch, chunks of a batch)."""
        N, T = self.samples.x.shape[:2]
        return -(-N // self.batch_size), -(-T // self.truncate) if self.truncate else 1

    def _check_position(self, position: Any, epochs: int) -> None:
        batches, chunks = self._parts()
        like: dict[str, Any] = {
            "epoch": range(epochs, epochs + 1),
            "batch": range(batches),
            "chunk": range(chunks + 1),
            "seed": object,
            "states": object,
            "total": float,
            "count": range(self.samples.count + 1),
            "updates": range(batches * chunks + 1),
        }
        check_like("position", position, like)
        begun = position["batch"] + position["chunk"] > 0
        for name in ("count", "updates"):
            if (position[name] > 0) != begun:
                raise ValueError(f"position.{name} is {position[name]} in batch {position['batch']}")
        if position["seed"] is not None:
            check_like("position.seed", position["seed"], range(2**63))
        if position["states"] is not None:
            B = min(self.batch_size, len(self.samples) - position["batch"] * self.batch_size)
            _, states = self.model._infer(self.samples.x[:B, :0].swapaxes(0, 1), None, None)
            check_like("position.states", position["states"], states)

    def _check_optimizer(self, state: Any) -> None:
        """Slots are made by the first update, all of them."""
        like: dict[str, Any] = {"iterations": np.array(0, np.int64)}
        if isinstance(state, dict) and len(state) > 1:
            slots, parameters = self._optimizer._slots(), self.model.parameters
            like |= {f"{slot}/{name}": value for slot in slots for name, value in parameters.items()}
        check_like("optimizer", state, like)

    def _restore(self, document: Mapping[str, Any]) -> None:
        """Take over what `_check` has found sound."""
        model, history = self.model, document["history"]
        model.load_state_dict(document["parameters"])
        self._optimizer.load_state_dict(document["optimizer"])
        for generator, state in zip(model._generators(), document["generators"], strict=True):
            generator.bit_generator.state = state
        self._position = _Position(**document["position"])
        self._position.states = _as_states(self._position.states)
        self.history.history, self.history.epoch = history["history"], history["epoch"]
        self.history.losses = history["losses"].tolist()
        self._logs = document["logs"]
        self._best = None if document["best"] is None else _Best(**document["best"])
        model.stop_training = document["stop_training"]


def _as_states(states: Sequence[State] | None) -> Sequence[State] | None:
    """A file has lists where the layers had tuples."""
    if states is None:
        return None
    return [tuple(state) if isinstance(state, list) else state for state in states]


#: How far a generator may be in its buffer; NumPy reads beyond the end of it without a check.
_ENDS = {"pos": 624, "buffer_pos": 4}


def _check_generator(generator: np.random.BitGenerator, state: Any) -> None:
    """ValueError unless `state` has the form of those that `generator` takes."""

    def describe(name: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: describe(key, item) for key, item in value.items()}
        return range(_ENDS.get(name, 2**128) + 1) if isinstance(value, int) else value

    own = dict(generator.state)
    check_like("generators", state, describe("", own) | {"bit_generator": str})
