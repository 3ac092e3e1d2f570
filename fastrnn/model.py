"""Sequential: layers one after another, trained, evaluated and saved as one thing.

Shape letters: ``N`` samples, ``T`` time steps, ``B`` batch rows, ``I`` input size, ``F`` output size.
The public methods take samples first, ``(N, T, ...)``, as Keras does, whatever a layer's `batch_first`
says; inside, everything is time-major.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import losses, optimizers
from .arguments import Array, as_flag, as_generator, as_ids, as_list, as_number, as_size
from .base import Frozen, Gradients, Layer, State
from .callbacks import Callback, History
from .checkpoint import Path, as_path, check_json, write_file
from .data import Samples
from .layers import Dense, Dropout, Embedding, LastStep
from .losses import CategoricalCrossentropy, Loss, SparseCategoricalCrossentropy
from .model_stream import ModelStream
from .optimizers import Optimizer
from .recurrent import Recurrent
from .training import CheckpointPlan, Run, TrainingDiverged, deferred_interrupt

__all__ = ["ModelStream", "Sequential", "TrainingDiverged"]


class Sequential(Layer):
    """A stack of layers, each fed with the output of the one before.

    Parameters
    ----------
    layers
        At least one, all of one dtype. The first is an `Embedding`, which takes token ids, or takes real
        input. With a `LastStep` among them the model gives one output a sequence (many-to-one),
        otherwise one a step (many-to-many).
    rng
        Seed or generator for shuffling. The layers have their own.

    Attributes
    ----------
    layers : tuple of Layer
    parameters : mapping of str to ndarray
        The live arrays, under names such as ``"1.weight_ih_l0"``, as in ``torch.nn.Sequential``.
    metadata : dict
        JSON values, free for use, that `save` and `load` carry along.
    stop_training : bool
        A callback sets it to end `fit` after the current epoch.

    Examples
    --------
    The sign of a sum, from sequences of different lengths:

    >>> from fastrnn import GRU
    >>> rng = np.random.default_rng(0)
    >>> x, lengths = rng.normal(size=(64, 10, 1)), rng.integers(1, 11, 64)
    >>> y = np.array([row[:length].sum() > 0 for row, length in zip(x, lengths)], int)
    >>> model = Sequential([GRU(1, 8, rng=1), LastStep(), Dense(8, 2, activation="softmax", rng=2)], rng=3)
    >>> model.compile("adam", "sparse_categorical_crossentropy", clip_norm=1.0)
    >>> history = model.fit(x, y, lengths=lengths, epochs=2, verbose=0)
    >>> len(history.history["loss"]), model.predict(x, lengths=lengths).shape
    (2, (64, 2))
    """

    def __init__(self, layers: Iterable[Layer], *, rng: int | np.random.Generator | None = None) -> None:
        self.layers: tuple[Layer, ...] = tuple(as_list("Sequential", "layers", layers, "a list of layers"))
        self.rng = as_generator("Sequential", rng)
        self._width = _check_layers(self.layers)  # of the output, None if unknown
        self.dtype = _common_dtype(self.layers)
        self.metadata: dict[str, Any] = {}
        self.stop_training = False
        self._optimizer: Optimizer | None = None
        self._loss: Loss | None = None
        self._clip_norm: float | None = None
        self._clip_value: float | None = None

    def __repr__(self) -> str:
        return f"Sequential([{', '.join(type(layer).__name__ for layer in self.layers)}])"

    @property
    def _parameters(self) -> dict[str, Array]:  # type: ignore[override]
        return _named([layer._parameters for layer in self.layers])

    @property
    def parameters(self) -> Mapping[str, Array]:
        """Name -> live array, as for a layer; names such as ``"1.weight_ih_l0"``."""
        return MappingProxyType(_named([layer.parameters for layer in self.layers]))

    def freeze(self) -> Frozen:
        """Promise that nobody writes the parameters until `thaw`: freezes each layer, see `Layer.freeze`.

        `fit` and `train_on_batch` raise RuntimeError until then.

        Examples
        --------
        >>> model = Sequential([Dense(3, 2, rng=0)])
        >>> with model.freeze():
        ...     y = model.predict(np.ones((4, 5, 3)))
        >>> y.shape
        (4, 5, 2)
        """
        with ExitStack() as undo:  # all layers or none
            for layer in self.layers:
                layer.freeze()
                undo.callback(layer.thaw)
            undo.pop_all()
        return Frozen(self)

    def thaw(self) -> None:
        """Undo one `freeze` of each layer; one that is not frozen stays as it is."""
        with ExitStack() as stack:  # all, even if one says that it was written
            for layer in self.layers:
                stack.callback(layer.thaw)

    def _check_thawed(self, owner: str) -> None:
        for index, layer in enumerate(self.layers):
            layer._check_thawed(f"{owner}: layers[{index}]")

    # ------------------------------------------------------------------------ forward and backward

    @property
    def _per_step(self) -> bool:
        return not any(isinstance(layer, LastStep) for layer in self.layers)

    @property
    def _unit(self) -> str:
        """What one step of one sample is."""
        return "token" if isinstance(self.layers[0], Embedding) else "step"

    @property
    def _fused(self) -> bool:
        """Whether the loss takes the last layer's logits, and the softmax with them."""
        return self._can_fuse(self._loss)

    def _can_fuse(self, loss: Loss | None) -> bool:
        last = self.layers[-1]
        return (
            isinstance(last, Dense)
            and last.activation == "softmax"
            and isinstance(loss, (CategoricalCrossentropy, SparseCategoricalCrossentropy))
        )

    def _as_input(self, x: Array) -> Array:
        """Time-major x, which has been checked, as the first layer's underscore methods want it."""
        return x if isinstance(self.layers[0], Embedding) else np.ascontiguousarray(x, self.dtype)

    def _infer(
        self, x: Array, state: State, lengths: Array | None, *, logits: bool = False
    ) -> tuple[Array, State]:
        x = self._as_input(x)
        states: list[State] = []
        for layer, initial in zip(self.layers, state or [None] * len(self.layers), strict=True):
            if logits and layer is self.layers[-1]:
                (x, _), final = layer._forward_logits(x), None  # type: ignore[attr-defined]
            else:
                x, final = layer._infer(x, initial, lengths)
            states.append(final)
            if isinstance(layer, LastStep):
                lengths = None
        return x, states

    def _forward(
        self, x: Array, state: State, lengths: Array | None, *, logits: bool = False
    ) -> tuple[Array, State, Any]:
        x = self._as_input(x)
        states: list[State] = []
        tapes: list[Any] = []
        for layer, initial in zip(self.layers, state or [None] * len(self.layers), strict=True):
            if logits and layer is self.layers[-1]:
                (x, tape), final = layer._forward_logits(x), None  # type: ignore[attr-defined]
            else:
                x, final, tape = layer._forward(x, initial, lengths)
            states.append(final)
            tapes.append(tape)
            if isinstance(layer, LastStep):
                lengths = None
        return x, states, tapes

    def _backward(self, tape: Any, dy: Array, dstate: State, *, logits: bool = False) -> Gradients:
        """`tape` is used up: each layer's part is let go as soon as it has been read."""
        dx: Array | None = dy
        dstates: list[State] = []
        parameters: dict[str, Array] = {}
        for index in reversed(range(len(self.layers))):
            layer = self.layers[index]
            assert dx is not None  # only an Embedding has no dx, and it is the first
            if logits and layer is self.layers[-1]:
                gradients = layer._backward_logits(tape.pop(), dx)  # type: ignore[attr-defined]
            else:
                gradients = layer._backward(tape.pop(), dx, dstate[index] if dstate else None)
            dx = gradients.x
            dstates.append(gradients.state)
            parameters |= {f"{index}.{name}": value for name, value in gradients.parameters.items()}
        return Gradients(dx, dstates[::-1], parameters)

    # -------------------------------------------------------------------------------------- training

    def compile(
        self,
        optimizer: str | Optimizer = "adam",
        loss: str | Loss | None = None,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
    ) -> None:
        """Choose how the model is trained.

        Parameters
        ----------
        optimizer
            Of `fastrnn.optimizers`, or its name: ``"sgd"``, ``"rmsprop"``, ``"adam"``, ``"adamw"``.
        loss
            Of `fastrnn.losses`, or its name: ``"mse"``, ``"categorical_crossentropy"`` (y is one-hot) or
            ``"sparse_categorical_crossentropy"`` (y is class numbers). A cross-entropy after
            ``Dense(activation="softmax")`` is computed from the logits, exactly.
        clip_norm
            The largest norm of all gradients together; larger ones are scaled down.
        clip_value
            The largest magnitude of each element of the gradients. Only one of the two may be given.
        """
        if loss is None:
            raise TypeError("compile: loss is missing, expected a Loss or its name")
        if clip_norm is not None and clip_value is not None:
            raise ValueError("compile: clip_norm and clip_value are both given, expected one of them")
        limits = [
            None if limit is None else as_number("compile", name, limit, positive=True)
            for name, limit in (("clip_norm", clip_norm), ("clip_value", clip_value))
        ]
        chosen, loss = optimizers.get(optimizer), losses.get(loss)
        if self._can_fuse(loss) and getattr(loss, "from_logits", False):
            raise ValueError("compile: the loss has from_logits, but the last layer has a softmax already")
        self._optimizer, self._loss = chosen, loss
        self._clip_norm, self._clip_value = limits

    def _compiled(self, owner: str) -> tuple[Optimizer, Loss]:
        if self._optimizer is None or self._loss is None:
            raise RuntimeError(f"{owner}: the model has no loss yet, call compile first")
        loss: Any = self._loss
        return self._optimizer, loss.with_logits() if self._fused else loss

    @property
    def optimizer(self) -> Optimizer | None:
        """What `compile` chose; its `learning_rate` may be set at any time."""
        return self._optimizer

    def _update(
        self, x: Array, y: Array, state: State, weight: Array | None, lengths: Array | None = None
    ) -> tuple[float, State, float]:
        """One update from time-major arrays: (loss, final states, norm of the gradient before clipping)."""
        optimizer, loss = self._compiled("fit")
        with np.errstate(over="ignore", invalid="ignore"):  # what isn't finite is dealt with below
            y_pred, state, tape = self._forward(x, state, lengths, logits=self._fused)
            value, dy = loss.value_and_gradient(y_pred, y, weight)
            del y_pred
            gradients = self._backward(tape, dy, None, logits=self._fused).parameters
            norm = optimizers.norm_of(gradients.values())
        if not (np.isfinite(value) and np.isfinite(norm)):
            raise TrainingDiverged(
                f"update {optimizer.iterations + 1} has loss {value} and gradient norm {norm}; "
                "the weights are those before it"
            )
        if self._clip_norm is not None:
            optimizers.scale_down(gradients.values(), norm, self._clip_norm)
        elif self._clip_value is not None:
            optimizers.clip_by_value(gradients, self._clip_value)
        work = optimizer._arguments("fit", self.parameters, gradients)
        with deferred_interrupt():  # no parameter may be one update ahead of another
            optimizer._step("fit", work)  # `step` would look again whether the gradients are finite
        return value, state, norm

    def fit(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: Sequence[ArrayLike] | None = None,
        callbacks: Iterable[Callback] | Callback | None = (),
        lengths: ArrayLike | None = None,
        shuffle: bool = True,
        truncate: int | None = None,
        verbose: int | str = 1,
        checkpoint: Path | None = None,
        checkpoint_every: int | timedelta | None = None,
        resume: bool = False,
    ) -> History:
        """Train the model.

        Parameters
        ----------
        x
            Token ids (N, T) if the first layer is an `Embedding`, else real (N, T, I).
        y
            The targets of each step, (N, T) class numbers or (N, T, F); with a `LastStep` in the model those
            of each sequence, (N,) or (N, F).
        epochs
            How often all samples are seen, those of the run that is resumed included.
        batch_size
            B, samples in a batch; the last batch of an epoch may have fewer.
        validation_data
            ``(x, y)`` or ``(x, y, lengths)``, evaluated after every epoch.
        callbacks
            See `fastrnn.callbacks`; a list, or a single one.
        lengths
            Integers (N,): how many of each sample's steps are real. The others have no part in the loss, and
            whatever token ids and class numbers they hold (-1, say) is not looked at.
        shuffle
            Whether each epoch has its own order of the samples.
        truncate
            K for truncated backpropagation through time: the steps of a batch are cut into chunks of K, with
            one update each. The states, but no gradients, are carried from chunk to chunk; each batch
            begins with states of zero. To train on one long text, make it B rows (N = B), with
            ``batch_size=B, shuffle=False``. Takes one output a step and one direction.
        verbose
            0 is silent, 1 (or "auto") shows a bar for each epoch, 2 a line for each epoch.
        checkpoint
            A file that gets all that the run depends on at the beginning and after each epoch, each time
            atomically: a process killed at any moment leaves a whole one.
        checkpoint_every
            Write it also after so many updates (int) or so much time (`datetime.timedelta`).
        resume
            Go on from the checkpoint if there is one, else from the beginning. Model, data and options must
            be those of the first call; the weights then have the same bits as without the stop (with
            the engine `blas`: provided that BLAS gives the same bits again).

        Returns
        -------
        History
            The losses: ``history.history["loss"]`` and ``["val_loss"]`` for each epoch, ``history.losses``
            for each update. The weights are the last ones, except after Ctrl-C.

        Raises
        ------
        TrainingDiverged
            A FloatingPointError: the loss or the gradient of an update is NaN or infinite. The message has
            the step and the gradient's norm; the weights are those before that update. Or an epoch's val_loss
            is; then the weights are those after that epoch.
        ValueError, TypeError
            For wrong arguments, or a checkpoint of another run, before anything is trained.

        Notes
        -----
        Ctrl-C ends the run at once, also in the middle of a long call of a kernel: the model gets the best
        weights so far (lowest validation loss, without validation data lowest training loss), a line on
        stderr says so, and the history is returned with ``interrupted`` True. Before the end of the first
        epoch the weights are those of the last update; an EarlyStopping that restores weights has the last
        word. The checkpoint stays as it was last written.

        An epoch's loss is the mean over its updates, made with weights that were changing, weighted by
        the number of real targets.
        """
        self._compiled("fit")
        self._check_thawed("fit")
        plan = CheckpointPlan(checkpoint, checkpoint_every, as_flag("fit", "resume", resume))
        truncate = self._as_truncate("fit", truncate)
        samples = self._as_samples("fit", x, y, lengths)
        validation = None
        if validation_data is not None:
            if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
                raise TypeError("fit: validation_data is not (x, y) or (x, y, lengths)")
            validation = self._as_samples("fit: validation_data", *validation_data)
        run = Run(
            self,
            samples,
            validation,
            epochs=epochs,
            batch_size=batch_size,
            callbacks=callbacks,
            shuffle=shuffle,
            truncate=truncate,
            verbose=verbose,
            checkpoint=plan,
        )
        return run.run()

    def train_on_batch(self, x: ArrayLike, y: ArrayLike, *, lengths: ArrayLike | None = None) -> float:
        """One update; the loss before it. Arguments and errors as for `fit`."""
        self._compiled("train_on_batch")
        self._check_thawed("train_on_batch")
        samples = self._as_samples("train_on_batch", x, y, lengths)
        (chunk,) = samples.chunks(slice(None), None)
        assert chunk.y is not None
        return self._update(chunk.x, chunk.y, None, chunk.weight, chunk.lengths)[0]

    def evaluate(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        batch_size: int = 32,
        lengths: ArrayLike | None = None,
        truncate: int | None = None,
    ) -> float:
        """The mean loss over all real targets; nothing is dropped out.

        `truncate` changes the memory it takes, not the result: the states are carried from chunk to
        chunk. Arguments and errors as for `fit`.
        """
        self._compiled("evaluate")
        truncate = self._as_truncate("evaluate", truncate)
        samples = self._as_samples("evaluate", x, y, lengths)
        return self._evaluate(samples, as_size("evaluate", "batch_size", batch_size), truncate)

    def _evaluate(self, samples: Samples, batch_size: int, truncate: int | None) -> float:
        _, loss = self._compiled("evaluate")
        total = 0.0
        for first in range(0, len(samples), batch_size):
            state = None
            for chunk in samples.chunks(slice(first, first + batch_size), truncate):
                if chunk.targets:
                    assert chunk.y is not None
                    with np.errstate(over="ignore", invalid="ignore"):  # the loss will be NaN or infinite
                        y_pred, state = self._infer(chunk.x, state, chunk.lengths, logits=self._fused)
                    total += loss(y_pred, chunk.y, chunk.weight) * chunk.targets
        return total / samples.count

    def predict(
        self,
        x: ArrayLike,
        *,
        batch_size: int = 32,
        lengths: ArrayLike | None = None,
        truncate: int | None = None,
    ) -> Array:
        """The model's output, (N, T, F), or (N, F) with a `LastStep` in it.

        The outputs of steps past a row's length are those of the later layers for an input of zeros.
        Arguments and errors as for `evaluate`; safe from many threads at once.
        """
        batch_size = as_size("predict", "batch_size", batch_size)
        truncate = self._as_truncate("predict", truncate)
        samples = Samples("predict", x, None, lengths, self._per_step)
        self._check_x("predict", samples)
        outputs = []
        for first in range(0, max(len(samples), 1), batch_size):
            state, parts = None, []
            for chunk in samples.chunks(slice(first, first + batch_size), truncate):
                with np.errstate(over="ignore", invalid="ignore"):  # the caller sees what isn't finite
                    y, state = self._infer(chunk.x, state, chunk.lengths)
                parts.append(y)
            outputs.append(np.concatenate(parts).swapaxes(0, 1) if self._per_step else parts[0])
        return np.concatenate(outputs)

    def _as_truncate(self, owner: str, truncate: int | None) -> int | None:
        if truncate is None:
            return None
        if not self._per_step:
            raise ValueError(f"{owner}: truncate takes one output a step, but the model has a LastStep")
        if any(getattr(layer, "bidirectional", False) for layer in self.layers):
            raise ValueError(
                f"{owner}: truncate takes one direction, but a layer is bidirectional: it needs all steps"
            )
        return as_size(owner, "truncate", truncate)

    def _as_samples(
        self, owner: str, x: ArrayLike, y: ArrayLike, lengths: ArrayLike | None = None
    ) -> Samples:
        """Samples whose x fits the first layer, and whose y fits the last and the loss."""
        if y is None:
            raise TypeError(f"{owner}: y is None, expected the targets")
        samples = Samples(owner, x, y, lengths, self._per_step)
        self._check_x(owner, samples)
        self._check_y(owner, samples)
        return samples

    def _check_x(self, owner: str, samples: Samples) -> None:
        """Shape, dtype and range as the first layer needs them; ids past the lengths become 0."""
        x, first = samples.x, self.layers[0]
        if isinstance(first, Embedding):
            if x.ndim != 2:
                raise ValueError(f"{owner}: x has shape {x.shape}, expected (N, T) token ids")
            if samples.real is not None:
                samples.x = x = np.where(samples.real, x, x.dtype.type(0))
            as_ids(owner, "x", x, first.input_dim, "input_dim")
            return
        size = getattr(first, "input_size", None)
        if x.ndim != 3 or size not in (None, x.shape[2]):
            width = "" if size is None else f" with I = input_size = {size}"
            raise ValueError(f"{owner}: x has shape {x.shape}, expected (N, T, I){width}")

    def _check_y(self, owner: str, samples: Samples) -> None:
        """Shape, dtype and range as the last layer and the loss need them, where the targets are real."""
        y = samples.y
        assert y is not None
        leading = samples.x.shape[: 2 if self._per_step else 1]
        width = y.shape[-1:] if self._width is None else (self._width,)
        sparse = isinstance(self._loss, SparseCategoricalCrossentropy)
        if sparse:
            letters, expected = ("(N, T)" if self._per_step else "(N,)"), leading
        elif isinstance(self._loss, (losses.MeanSquaredError, CategoricalCrossentropy)):
            letters, expected = ("(N, T, F)" if self._per_step else "(N, F)"), leading + width
        else:  # another loss checks the rest itself
            letters = "(N, T, ...)" if self._per_step else "(N, ...)"
            expected = leading + y.shape[len(leading) :]
        if y.shape != expected:
            hint = self._hint(y, leading, sparse=sparse)
            raise ValueError(f"{owner}: y has shape {y.shape}, expected {letters} = {expected}{hint}")
        if sparse and self._width is not None:
            real = y[samples.real] if self._per_step and samples.real is not None else y
            as_ids(owner, "y", real, self._width, "the width of the output")

    def _hint(self, y: Array, leading: tuple[int, ...], *, sparse: bool) -> str:
        """What the caller may have meant with targets of such a shape."""
        shape, ndim = y.shape, len(leading) + (not sparse)
        if sparse and shape == (*leading, self._width):
            return "; for one-hot targets use the loss 'categorical_crossentropy'"
        if not sparse and shape == leading:
            if self._width == 1:
                return f"; y[{':, ' * len(leading)}np.newaxis] has that shape"
            if y.dtype.kind in "iu":
                return "; for class numbers use the loss 'sparse_categorical_crossentropy'"
        elif self._per_step and shape[:1] == leading[:1] and len(shape) == ndim - 1:
            return "; for one target a sequence put a LastStep() after the model's last recurrent layer"
        elif not self._per_step and len(shape) == ndim + 1:
            return "; for targets of each step leave the LastStep out of the model"
        return ""

    # ------------------------------------------------------------------------------------- streaming

    def stream(self, batch_size: int = 1) -> ModelStream:
        """Run the model one step at a time, the state kept between the steps.

        ValueError if that can't be: with a `LastStep`, or a bidirectional layer.

        Examples
        --------
        >>> from fastrnn import RNN
        >>> model = Sequential([Embedding(5, 3, rng=0), RNN(3, 4, rng=1), Dense(4, 5, rng=2)])
        >>> stream = model.stream()
        >>> y = [stream.step(token)[0] for token in ([1], [4])]
        >>> bool(np.allclose(y[-1], model.predict([[1, 4]])[0, -1]))
        True
        """
        return ModelStream(self, batch_size)

    # ---------------------------------------------------------------------------------------- saving

    def summary(self) -> None:
        """Print the layers, their parameters and how many numbers these hold."""
        print(f"{'':3} {'layer':12} {'parameters':>12}  options")
        for index, layer in enumerate(self.layers):
            size = sum(value.size for value in layer._parameters.values())
            options = ", ".join(f"{name}={value}" for name, value in layer.config().items())
            print(f"{index:3} {type(layer).__name__:12} {size:12,}  {options}")
        parameters = self._parameters.values()
        size = sum(value.size for value in parameters)
        print(f"{size:,} parameters, {sum(value.nbytes for value in parameters):,} bytes")

    def config(self) -> dict[str, Any]:
        """The layers, with the options that rebuild them, as JSON values."""
        return {
            "layers": [{"class": type(layer).__name__, "config": layer.config()} for layer in self.layers]
        }

    def _describe(self) -> dict[str, Any]:
        """`config`, and what `compile` was told."""
        if self._optimizer is None or self._loss is None:
            return {**self.config(), "compile": None}
        options = {
            "optimizer": self._optimizer.config(),
            "loss": self._loss.config(),
            "clip_norm": self._clip_norm,
            "clip_value": self._clip_value,
        }
        return {**self.config(), "compile": options}

    def _generators(self) -> list[np.random.Generator]:
        """All random generators, the model's own first."""
        layers = [getattr(layer, "rng", None) for layer in self.layers]
        return [self.rng, *(rng for rng in layers if rng is not None)]

    def save(self, path: Path, *, metadata: Mapping[str, Any] | None = None) -> None:
        """Write architecture, weights and compile options to a safetensors file, atomically.

        The same model gives the same bytes. What the optimizer has learnt isn't saved; for that
        there is the `checkpoint` argument of `fit`.

        Parameters
        ----------
        path
            The file.
        metadata
            JSON values to keep in the file, a tokenizer's say; they become ``model.metadata``.

        Raises
        ------
        TypeError
            If a layer, the optimizer or the loss isn't one of this library's own, or metadata aren't JSON.
        ValueError
            If metadata are nested too deeply or too large for `load`.

        Notes
        -----
        Nothing is written if it could not be loaded; the file and the model are then as they were.
        """
        from .saving import check_savable  # which imports this module

        metadata = self.metadata if metadata is None else metadata
        if not isinstance(metadata, Mapping):
            raise TypeError(f"save: metadata is {type(metadata).__name__}, expected a mapping")
        metadata = dict(metadata)
        check_json("save: metadata", metadata)
        check_savable(self)
        document = {**self._describe(), "metadata": metadata, "parameters": self._parameters}
        write_file(as_path("save", path), "model", document)
        self.metadata = metadata


def _named(parameters: Iterable[Mapping[str, Array]]) -> dict[str, Array]:
    """The parameters of all layers, under the names of a model."""
    return {f"{index}.{name}": value for index, each in enumerate(parameters) for name, value in each.items()}


def _check_layers(layers: tuple[Layer, ...]) -> int | None:
    """Each must be a layer that can stand where it stands, and take the width that the one before gives.

    Returns the width of the last one's output, None if unknown.
    """
    if not layers:
        raise ValueError("Sequential: layers is empty, expected at least one")
    width: int | None = None
    for index, layer in enumerate(layers):
        where = f"Sequential: layers[{index}] is {type(layer).__name__}"
        before = layers[:index]
        if not isinstance(layer, Layer) or isinstance(layer, Sequential):
            raise TypeError(f"{where}, expected a layer")
        if any(layer is other for other in before):
            raise ValueError(f"{where} and in the list already, expected separate layers")
        if index and isinstance(layer, Embedding):
            raise ValueError(f"{where}, which can only be the first")
        if isinstance(layer, (Recurrent, LastStep)) and any(isinstance(other, LastStep) for other in before):
            raise ValueError(f"{where}, which takes a sequence, but there is a LastStep before it")
        size = getattr(layer, "input_size", width)
        if width is not None and size != width:
            raise ValueError(f"{where} with input_size {size}, expected {width}, the width of its input")
        width = _output_width(layer, size)
    return width


def _output_width(layer: Layer, width: int | None) -> int | None:
    """The size of the last axis of the output, None if unknown."""
    if isinstance(layer, (Dropout, LastStep)):
        return width
    for name in ("output_size", "units", "output_dim"):
        if hasattr(layer, name):
            return int(getattr(layer, name))
    return None


def _common_dtype(layers: tuple[Layer, ...]) -> np.dtype[Any]:
    """The dtype of all parameters."""
    dtypes = {str(index): layer.dtype for index, layer in enumerate(layers) if layer._parameters}
    if len(set(dtypes.values())) > 1:
        described = ", ".join(f"{dtype} (layer {index})" for index, dtype in dtypes.items())
        raise ValueError(f"Sequential: the layers have the dtypes {described}, expected one for all")
    return next(iter(dtypes.values()), np.dtype(np.float32))
