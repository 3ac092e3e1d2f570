"""The layers without a memory: Embedding, Dense, Dropout, LastStep.

They answer to the same calls as the recurrent layers, with None for the state:

    y, state       = layer(x)              inference: keeps nothing, safe from many threads at once
    y, state, tape = layer.forward(x)      training: the tape holds what backward needs
    grads          = layer.backward(tape, dy)

Shape letters: ``T`` time steps, ``B`` batch rows, ``F`` features, ``V`` vocabulary or units, ``E``
embedding size, ``N`` the product of all axes but the last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from ._kernels import Affine, product
from .arguments import (
    Array,
    as_array,
    as_choice,
    as_dtype,
    as_flag,
    as_fraction,
    as_generator,
    as_ids,
    as_integers,
    as_lengths,
    as_size,
    check_ndim,
    check_shape,
    hold,
    see,
)
from .base import Gradients, Layer, State, draw_parameters

__all__ = ["Dense", "Dropout", "Embedding", "LastStep"]


class _Tape(NamedTuple):
    """What a public `forward` hands to `backward`: the layer, what y looked like, and the private tape."""

    layer: Layer
    y_shape: tuple[int, ...]
    y_dtype: np.dtype[Any]
    record: Any
    held: list[Any]  #: see arguments.hold


class _StatelessLayer(Layer):
    """The public calls, once for all layers here; a subclass defines the underscore methods of Layer.

    `_infer` and `_forward` check x themselves (it is cheap), so a model gets the same errors.
    """

    def __call__(
        self, x: ArrayLike, state: None = None, *, lengths: ArrayLike | None = None
    ) -> tuple[Array, None]:
        """Inference: ``(y, None)``. Keeps nothing, and is safe from many threads at once.

        Each position stands for itself, so `lengths` (B,), for an x of (T, B, ...), changes the result
        of LastStep only. ValueError for a wrong shape or value, TypeError for a wrong kind or dtype.
        """
        y, _ = self._infer(*self._accept(x, state, lengths))
        return y, None

    def forward(
        self, x: ArrayLike, state: None = None, *, lengths: ArrayLike | None = None
    ) -> tuple[Array, None, Any]:
        """Training: ``(y, None, tape)``, with dropout active.

        The tape refers to x and y and doesn't copy them: leave both unchanged until `backward`.
        Arguments and errors as for calling the layer.
        """
        y, _, record = self._forward(*self._accept(x, state, lengths))
        return y, None, _Tape(self, y.shape, y.dtype, record, hold(see(type(self).__name__, "x", x), y))

    def backward(self, tape: Any, dy: ArrayLike, dstate: None = None) -> Gradients:
        """Gradients of a loss, given `dy`, its gradient with respect to the y of `forward`.

        They are ``x``, like the input (None for token ids), ``state``, None, and ``parameters``, arrays
        by name. A tape may be used more than once. ValueError if dy hasn't the shape of y; TypeError for
        a tape that isn't this layer's.
        """
        owner = type(self).__name__
        self._reject_state("dstate", dstate)
        if not isinstance(tape, _Tape) or tape.layer is not self:
            raise TypeError(
                f"{owner}: tape is {type(tape).__name__}, expected the tape of this layer's forward"
            )
        self._check_thawed(f"{owner}.backward")
        dy = as_array(owner, "dy", dy, tape.y_dtype)
        check_shape(owner, "dy", dy, "the shape of y", tape.y_shape)
        return self._backward(tape.record, dy, None)

    def _accept(self, x: Any, state: Any, lengths: Any) -> tuple[Any, None, Array | None]:
        """x, which the layer checks, the state and the lengths."""
        self._reject_state("state", state)
        if lengths is None:
            return x, None, None
        owner = type(self).__name__
        x = see(owner, "x", x)
        if x.ndim < 2:
            raise ValueError(f"{owner}: x has shape {x.shape}, expected (T, B, ...) with lengths")
        return x, None, as_lengths(owner, lengths, *x.shape[:2])

    def _reject_state(self, name: str, value: Any) -> None:
        if value is not None:
            owner = type(self).__name__
            raise TypeError(
                f"{owner}: {name} is {type(value).__name__}, expected None (the layer has no state)"
            )


class Embedding(_StatelessLayer):
    """A table of vectors, one for each token id: ``y[t, b] = weight[x[t, b]]``.

    Parameters
    ----------
    input_dim
        V, the number of ids.
    output_dim
        E, the size of a vector.
    dtype
        ``"float32"`` or ``"float64"``.
    rng
        Seed or generator for the initial values, U(-0.05, 0.05) as in Keras.

    Notes
    -----
    `x` holds ids ``0 <= id < V`` in any integer dtype and any shape; y has that shape with an axis of E
    after it. TypeError for ids that aren't integers, ValueError (with the worst id) for those out of range.
    The tape holds a copy of the ids.
    The parameter is ``weight`` (V, E). Its gradient sums the rows of dy id by id, always in the order of
    the positions, so it has the same bits each time. ``Gradients.x`` is None.

    Examples
    --------
    >>> layer = Embedding(65, 3, rng=0)
    >>> y, _ = layer([[1, 2], [64, 2]])
    >>> y.shape
    (2, 2, 3)
    """

    _options: ClassVar[tuple[str, ...]] = ("input_dim", "output_dim", "dtype")

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        *,
        dtype: DTypeLike = "float32",
        rng: int | np.random.Generator | None = None,
    ) -> None:
        self.input_dim = as_size("Embedding", "input_dim", input_dim)
        self.output_dim = as_size("Embedding", "output_dim", output_dim)
        self.dtype = as_dtype("Embedding", dtype)
        self.rng = as_generator("Embedding", rng)
        shapes = {"weight": (self.input_dim, self.output_dim)}
        self._own(draw_parameters("Embedding", shapes, 0.05, self.dtype, self.rng))

    def _rows(self, ids: Array, **options: Any) -> Array:
        """The vectors of `ids`."""
        self._ledger.check()
        rows: Array = self._parameters["weight"].take(ids, axis=0, **options)
        return rows

    def _as_ids(self, x: ArrayLike) -> Array:
        ids = as_ids("Embedding", "x", x, self.input_dim, "input_dim")
        return ids.astype(np.intp, copy=False)

    def _infer(self, x: Array, state: State, lengths: Array | None) -> tuple[Array, State]:
        return self._rows(self._as_ids(x)), None

    def _forward(self, x: Array, state: State, lengths: Array | None) -> tuple[Array, State, Any]:
        ids = self._as_ids(as_integers("Embedding", "x", x).copy())  # x is the caller's, and may change
        return self._rows(ids), None, ids

    def _step(self, x_t: Array, out: Array | None = None) -> Array:
        """One streaming step: ids (B,) to vectors (B, E), into `out` if given."""
        # The ids are in range: "clip" only spares the copy that take makes of `out` with "raise".
        return self._rows(self._as_ids(x_t), out=out, mode="clip")

    def _backward(self, tape: Any, dy: Array, dstate: State) -> Gradients:
        from scipy.sparse import csc_array  # only training needs it, and it is slow to import

        ids = tape.reshape(-1)
        # The one-hot matrix (V, N) by columns: its product adds row n of dy to row ids[n], n ascending.
        one_hot = csc_array(
            (np.ones(ids.size, self.dtype), ids, np.arange(ids.size + 1)), shape=(self.input_dim, ids.size)
        )
        return Gradients(None, None, {"weight": one_hot @ dy.reshape(ids.size, self.output_dim)})


# The activations g of y = g(z): z -> y in place, and the gradient dz from y and dy.


def _softmax(z: Array) -> None:
    z -= z.max(axis=-1, keepdims=True)
    np.exp(z, out=z)
    z /= z.sum(axis=-1, keepdims=True)


def _d_softmax(y: Array, dy: Array) -> Array:
    """dz_i = y_i (dy_i - sum_j dy_j y_j)."""
    dz: Array = dy - np.einsum("...j,...j->...", dy, y)[..., np.newaxis]
    dz *= y
    return dz


def _sigmoid(z: Array) -> None:
    # exp overflows to inf where y rounds to 0, and 1 / inf is that 0.
    np.negative(z, out=z)
    np.exp(z, out=z)
    z += 1
    np.reciprocal(z, out=z)


def _d_sigmoid(y: Array, dy: Array) -> Array:
    dz = 1 - y
    dz *= y
    dz *= dy
    return dz


def _tanh(z: Array) -> None:
    np.tanh(z, out=z)


def _d_tanh(y: Array, dy: Array) -> Array:
    dz = np.square(y)
    np.subtract(1, dz, out=dz)
    dz *= dy
    return dz


def _relu(z: Array) -> None:
    np.maximum(z, 0, out=z)


def _d_relu(y: Array, dy: Array) -> Array:
    return dy * (y > 0)


class _Activation(NamedTuple):
    apply: Callable[[Array], None]
    backward: Callable[[Array, Array], Array]


_ACTIVATIONS: dict[str, _Activation | None] = {
    "linear": None,
    "softmax": _Activation(_softmax, _d_softmax),
    "sigmoid": _Activation(_sigmoid, _d_sigmoid),
    "tanh": _Activation(_tanh, _d_tanh),
    "relu": _Activation(_relu, _d_relu),
}


class Dense(_StatelessLayer):
    """The output layer ``y_t = g(W h_t + b)``: an affine map of the last axis and an activation g.

    Parameters
    ----------
    input_size
        F, the size of the last axis of x.
    units
        V, the size of the last axis of y.
    activation
        g: ``"linear"``, ``"softmax"`` (over the last axis), ``"sigmoid"``, ``"tanh"`` or ``"relu"``.
    bias
        Whether there is a b.
    dtype
        ``"float32"`` or ``"float64"``.
    rng
        Seed or generator for the initial values, U(-1/sqrt(F), 1/sqrt(F)).

    Notes
    -----
    `x` is (..., F) of any real dtype, cast to the layer's; y is (..., V). The parameters are those of
    ``torch.nn.Linear``: ``weight`` (V, F) and ``bias`` (V,). All positions go through one matrix
    product, forward, and two backward. The tape refers to x and, unless g is linear, to y.

    Examples
    --------
    >>> layer = Dense(4, 3, activation="softmax", rng=0)
    >>> y, _ = layer(np.ones((5, 2, 4)))
    >>> y.shape, bool(np.allclose(y.sum(axis=-1), 1))
    ((5, 2, 3), True)
    """

    _options: ClassVar[tuple[str, ...]] = ("input_size", "units", "activation", "bias", "dtype")

    def __init__(
        self,
        input_size: int,
        units: int,
        *,
        activation: str = "linear",
        bias: bool = True,
        dtype: DTypeLike = "float32",
        rng: int | np.random.Generator | None = None,
    ) -> None:
        self.input_size = as_size("Dense", "input_size", input_size)
        self.units = as_size("Dense", "units", units)
        self.activation = as_choice("Dense", "activation", activation, *_ACTIVATIONS)
        self.bias = as_flag("Dense", "bias", bias)
        self.dtype = as_dtype("Dense", dtype)
        self.rng = as_generator("Dense", rng)
        shapes: dict[str, tuple[int, ...]] = {"weight": (self.units, self.input_size)}
        if self.bias:
            shapes["bias"] = (self.units,)
        bound = self.input_size**-0.5
        self._own(draw_parameters("Dense", shapes, bound, self.dtype, self.rng))
        self._affine = Affine(self._parameters["weight"], self._ledger)

    def _prepare(self) -> None:
        self._affine.prepare()

    def _as_input(self, x: ArrayLike) -> Array:
        x = as_array("Dense", "x", x, self.dtype)
        if x.ndim == 0 or x.shape[-1] != self.input_size:
            raise ValueError(
                f"Dense: x has shape {x.shape}, expected (..., input_size) = (..., {self.input_size})"
            )
        return x

    def _logits(self, x: Array, out: Array | None = None) -> Array:
        """``x W^T + b`` for x (..., F), as one product over all positions, into `out` if given."""
        rows = x.reshape(-1, self.input_size)
        z = np.empty((len(rows), self.units), self.dtype) if out is None else out
        self._affine.forward(rows, z)
        if self.bias:
            z += self._parameters["bias"]
        return z.reshape(*x.shape[:-1], self.units)

    def _activate(self, z: Array) -> Array:
        """``g(z)`` in place. Infinities may become NaN, and go through without a warning."""
        activation = _ACTIVATIONS[self.activation]
        if activation is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                activation.apply(z)
        return z

    def _infer(self, x: Array, state: State, lengths: Array | None) -> tuple[Array, State]:
        return self._activate(self._logits(self._as_input(x))), None

    def _forward(self, x: Array, state: State, lengths: Array | None) -> tuple[Array, State, Any]:
        z, x = self._forward_logits(x)
        y = self._activate(z)
        return y, None, (x, y.view() if self.activation != "linear" else None)

    def _step(self, x_t: Array, out: Array | None = None) -> Array:
        """One streaming step: (B, F) to (B, V), into `out` if given."""
        return self._activate(self._logits(self._as_input(x_t), out))

    def _backward(self, tape: Any, dy: Array, dstate: State) -> Gradients:
        x, y = tape
        activation = _ACTIVATIONS[self.activation]
        if activation is not None:
            with np.errstate(over="ignore", invalid="ignore"):
                dy = activation.backward(y, dy)
        return self._backward_logits(x, dy)

    def _forward_logits(self, x: Array) -> tuple[Array, Array]:
        """``(z, tape)`` with z what the activation would get: a loss may fuse the activation into itself."""
        x = self._as_input(x).view()  # the caller may give the array itself another shape
        return self._logits(x), x

    def _backward_logits(self, tape: Array, dlogits: Array) -> Gradients:
        """The gradients from `dlogits` (..., V), that of the loss with respect to z.

        dx = dz W,  dW = dz^T x,  db = sum_n dz_n.
        """
        rows = tape.reshape(-1, self.input_size)
        dz = np.ascontiguousarray(dlogits, self.dtype).reshape(-1, self.units)
        dx, dweight = np.empty_like(rows), np.empty_like(self._parameters["weight"])
        product(dz, rows, dweight, transpose_a=True)
        self._affine.backward(dz, dx)
        parameters = {"weight": dweight}
        if self.bias:
            parameters["bias"] = dz.sum(axis=0)
        return Gradients(dx.reshape(tape.shape), None, parameters)


class Dropout(_StatelessLayer):
    """Zeroes each element with probability `rate` in training, and scales the rest by 1 / (1 - rate).

    Parameters
    ----------
    rate
        The probability that an element is dropped, in [0, 1).
    rng
        Seed or generator for the masks: each `forward` draws one number for each element.

    Notes
    -----
    Where nothing is dropped, at inference or with a rate of 0, y is x itself and not a copy. `x` is float32
    or float64 of any shape, TypeError for other dtypes; y has its dtype. The tape holds one byte for each
    element.

    Examples
    --------
    >>> layer = Dropout(0.5, rng=0)
    >>> y, _, tape = layer.forward(np.ones((2, 3)))
    >>> sorted(set(y.ravel().tolist()))
    [0.0, 2.0]
    """

    _options: ClassVar[tuple[str, ...]] = ("rate",)

    def __init__(self, rate: float, *, rng: int | np.random.Generator | None = None) -> None:
        self.rate = as_fraction("Dropout", "rate", rate)
        self.rng = as_generator("Dropout", rng)
        self._own({})

    def _infer(self, x: Array, state: State, lengths: Array | None) -> tuple[Array, State]:
        return as_array("Dropout", "x", x), None

    def _forward(self, x: Array, state: State, lengths: Array | None) -> tuple[Array, State, Any]:
        x = as_array("Dropout", "x", x)
        if self.rate == 0:
            return x, None, None
        # The same numbers for either dtype, so that both see the same masks.
        keep = self.rng.random(x.shape, dtype=np.float32) >= self.rate
        return self._masked(x, keep), None, keep

    def _step(self, x_t: Array, out: Array | None = None) -> Array:
        """One streaming step: x_t itself, or a copy of it in `out`."""
        if out is None:
            return x_t
        out[...] = x_t
        return out

    def _backward(self, tape: Any, dy: Array, dstate: State) -> Gradients:
        return Gradients(dy if tape is None else self._masked(dy, tape), None, {})

    def _masked(self, x: Array, keep: Array) -> Array:
        with np.errstate(invalid="ignore"):  # an infinity times 0
            y: Array = x * keep
            y *= 1 / (1 - self.rate)
        return y


class LastStep(_StatelessLayer):
    """The last real step of each row, (T, B, F) to (B, F): what a many-to-one model goes on with.

    Notes
    -----
    With ``lengths`` (B,) that is step ``lengths[b] - 1`` of row b; without, step T - 1. A row of
    length 0 has no last step and gives zeros, and so do all rows where T = 0. `x` is float32 or float64,
    TypeError for other dtypes; y has its dtype. The tape holds the lengths alone.

    After a bidirectional layer the reverse half of the features is that of the reverse direction's *first*
    step: at the last real step it has seen that one step only (in PyTorch ``y[-1]`` is the same). The state
    that has seen all steps of both directions is the layer's final state, which a Sequential doesn't pass
    on; there put a recurrent layer of one direction between the two, ``GRU(2 * H, H), LastStep()``.

    Examples
    --------
    >>> x = np.arange(6.0).reshape(3, 2, 1)
    >>> LastStep()(x, lengths=[1, 3])[0].tolist()
    [[0.0], [5.0]]
    """

    def __init__(self) -> None:
        self._own({})

    def _infer(self, x: Array, state: State, lengths: Array | None) -> tuple[Array, State]:
        y, _, _ = self._forward(x, state, lengths)
        return y, None

    def _forward(self, x: Array, state: State, lengths: Array | None) -> tuple[Array, State, Any]:
        x = as_array("LastStep", "x", x)
        check_ndim("LastStep", "x", x, "(T, B, F)")
        T, B, F = x.shape
        lengths = as_lengths("LastStep", lengths, T, B)
        if lengths is None:
            lengths = np.full(B, T)
        rows = np.flatnonzero(lengths)
        steps = lengths[rows] - 1
        y = np.zeros((B, F), x.dtype)
        y[rows] = x[steps, rows]
        return y, None, (x.shape, steps, rows)

    def _backward(self, tape: Any, dy: Array, dstate: State) -> Gradients:
        shape, steps, rows = tape
        dx = np.zeros(shape, dy.dtype)
        dx[steps, rows] = dy[rows]
        return Gradients(dx, None, {})
