"""The layers: RNN, LSTM and GRU, stacked and bidirectional, with PyTorch's parameters.

A call checks its arguments, compiles lengths, mask, reset and batch_sizes into a map, and hands both to the
stack (_kernels/stack.pyx), which runs all layers and directions.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from ._kernels import Map, Stack, Tape, empty
from .arguments import (
    Array,
    Given,
    Steps,
    as_dtype,
    as_engine_array,
    as_flag,
    as_fraction,
    as_generator,
    as_real,
    as_size,
    as_state,
    as_steps,
    check_blas_sizes,
    check_ndim,
    check_shape,
    with_width,
)
from .base import Gradients, Layer, State, draw_parameters
from .cells import FAMILIES, WEIGHTS, Cell, Family, as_map
from .stream import Stream

__all__ = ["GRU", "LSTM", "RNN"]

#: Layers of one stack: far more than have ever been trained, and made in a fraction of a second.
_MOST_LAYERS = 10_000

#: How a caller's sequences lie: the axes before the width.
_TIME_FIRST, _BATCH_FIRST, _ONE_ROW, _PACKED = "(T, B)", "(B, T)", "(T,)", "(N,)"


class Recurrent(Layer):
    """What RNN, LSTM and GRU share, which is all but the cell."""

    _family: ClassVar[Family]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        dtype: DTypeLike = "float32",
        rng: Any = None,
    ) -> None:
        owner = type(self).__name__
        self.input_size = as_size(owner, "input_size", input_size)
        self.hidden_size = as_size(owner, "hidden_size", hidden_size)
        self.num_layers = as_size(owner, "num_layers", num_layers, maximum=_MOST_LAYERS)
        self.bias = as_flag(owner, "bias", bias)
        self.batch_first = as_flag(owner, "batch_first", batch_first)
        self.bidirectional = as_flag(owner, "bidirectional", bidirectional)
        self.dropout = as_fraction(owner, "dropout", dropout)
        self.proj_size = as_size(owner, "proj_size", proj_size, minimum=0)
        if self.proj_size >= self.hidden_size:
            raise ValueError(
                f"{owner}: proj_size is {proj_size}, expected less than hidden_size = {hidden_size}"
            )
        self.dtype = as_dtype(owner, dtype)
        self.rng = as_generator(owner, rng)
        check_blas_sizes(owner, **{"4*hidden_size": 4 * self.hidden_size})
        bound = 1.0 / np.sqrt(self.hidden_size)
        option = self._family.option
        self._cell: Cell = self._family.cells[getattr(self, option) if option else None]
        self._own(draw_parameters(owner, self._shapes(), bound, self.dtype, self.rng))
        names = [
            self._names(layer, direction)
            for layer in range(self.num_layers)
            for direction in range(self.num_directions)
        ]
        arrays = [tuple(self._parameters.get(part.get(field, "")) for field in WEIGHTS) for part in names]
        self._stack = Stack(self._cell.number, arrays, self.num_directions, ledger=self._ledger)

    @property
    def num_directions(self) -> int:
        """D: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """Width of y: D*H, or D*P."""
        return self.num_directions * self._width

    @property
    def _width(self) -> int:
        return self.proj_size or self.hidden_size

    def _names(self, layer: int, direction: int) -> dict[str, str]:
        """Field -> parameter name, for the parameters that this layer has."""
        suffix = f"_l{layer}" + ("_reverse" if direction else "")
        fields = ["weight_ih", "weight_hh"]
        fields += ["bias_ih", "bias_hh"] if self.bias else []
        fields += ["weight_hr"] if self.proj_size else []
        return {field: field + suffix for field in fields}

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name -> shape, layer-major."""
        result: dict[str, tuple[int, ...]] = {}
        for layer in range(self.num_layers):
            width = self.input_size if layer == 0 else self.output_size
            shapes = self._cell.shapes(width, self.hidden_size, self._width)
            for direction in range(self.num_directions):
                result |= {name: shapes[field] for field, name in self._names(layer, direction).items()}
        return result

    def _prepare(self) -> None:
        self._stack.prepare()

    def __repr__(self) -> str:
        options = ", ".join(f"{k}={v!r}" for k, v in self.config().items())
        return f"{type(self).__name__}({options})"

    # -- the public calls: whatever shape the caller has, to time-major and back ------------------

    def __call__(
        self,
        x: Any,
        state: State = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        reset: Any = None,
        batch_sizes: Any = None,
    ) -> tuple[Array, State]:
        """Run the layer at inference: keeps nothing, applies no dropout, safe from many threads at once.

        Parameters
        ----------
        x : array (T, B, input_size); (B, T, input_size) with ``batch_first``; or (T, input_size)
            Any real dtype, cast to the layer's; any layout; never written to.
        state : optional
            Initial state, as the one returned; None is zeros.
        lengths : integers (B,), optional
            Real steps of each row, in any order, 0 allowed. Costs only the real steps.
        mask : booleans, laid out as x without its last axis, optional
            Which steps are real. A step that is not is left out: y is zero there, and the state stays.
        reset : booleans, laid out as mask, optional
            Where an episode begins: before such a step, real or not, the state is zero, and no gradient
            passes. The reverse direction is cut at the same place. Nothing beyond a row's length counts.
        batch_sizes : integers (T,), optional
            As in PyTorch's packed sequences: x (N, input_size) and y (N, D*H) are packed rows, one step after
            the other whatever ``batch_first`` says, and those of step t are the first ``batch_sizes[t]`` rows
            of the batch. They never rise, are at least 1, and N is their sum; B is the first of them, 0 if
            there is none. Not together with lengths, mask or reset. The results are those of the rows'
            lengths, to the bit.

        Returns
        -------
        y : array (T, B, D*H), laid out as x
            The top layer's output, zero where a step is not real. D*P wide with a projection.
        state : h (L*D, B, H), or for the LSTM the pair (h, c)
            Each row's state after its last real step; without B for an unbatched x.

        Raises
        ------
        TypeError, ValueError
            Wrong dtype or kind; wrong shape or value. The message names the argument.
        """
        plain = lengths is None and mask is None and reset is None and batch_sizes is None
        if plain and not self.batch_first:
            result = self._stack.call_exact(x, state)
            if result is not None:
                return result
        x, state, batch, layout = self._accept(x, state, Given(lengths, mask, reset, batch_sizes))
        y, state = self._run(x, state, batch)
        return _give(y, layout), self._give_state(state, layout)

    def forward(
        self,
        x: Any,
        state: State = None,
        *,
        lengths: Any = None,
        mask: Any = None,
        reset: Any = None,
        batch_sizes: Any = None,
    ) -> tuple[Array, State, Tape]:
        """As a call, with dropout, and the tape that `backward` needs.

        The tape refers to x (unless it had to be cast or copied) and to the parameters: change neither
        before backward has run (y is read-only where the tape refers to it).

        Dropout draws a number for each real step of each row, in the order of packed rows sorted by falling
        length. So lengths and batch_sizes have the same masks.

        Memory: beside x and y, the tape keeps ``N * k * H`` numbers for each layer and direction, N the
        number of real steps (T*B if all are), k = 5 for an LSTM, 4 for a GRU (3 with the reset before), 0 for
        an RNN (1 if bidirectional). It keeps the outputs of all layers below the top, with dropout also what
        is left of them and a byte for each number, and the top layer's where steps are not real or
        ``batch_first``. `backward` works in chunks of at most ``R = max(B, 512)`` row-steps, which take about
        ``R * (2*A*H + 2*P + I)`` numbers, A = 4 (LSTM, GRU), 3 or 1; in the last two cases also a chunk of x,
        dy and dx. Beside them it has dx between layers.
        """
        plain = lengths is None and mask is None and reset is None and batch_sizes is None
        if plain and not self.batch_first and not self.dropout:
            result = self._stack.keep_exact(x, state)
            if result is not None:
                result[2].owner, result[2].layout = self, _TIME_FIRST
                return result
        x, state, batch, layout = self._accept(x, state, Given(lengths, mask, reset, batch_sizes))
        y, state, tape = self._keep(x, state, batch)
        tape.layout = layout
        return _give(y, layout), self._give_state(state, layout), tape

    def backward(self, tape: Tape, dy: Any, dstate: State = None) -> Gradients:
        """Backpropagation through time.

        Parameters
        ----------
        tape : from `forward` of this layer; it may be used again
        dy : array like y, or None for zeros
        dstate : like the state, optional
            Gradient of the returned state; None, or a None in the pair, is zeros.

        Returns
        -------
        Gradients(x, state, parameters)
            x like the input, state like the initial state, parameters name -> array.
        """
        owner = f"{type(self).__name__}.backward"
        if not isinstance(tape, Tape) or tape.owner is not self:
            raise TypeError(f"{owner}: tape is not one that forward of this layer returned")
        self._check_thawed(owner)
        layout = tape.layout
        if layout == _TIME_FIRST:
            result = self._stack.back_exact(tape, dy, dstate)
            if result is not None:
                return Gradients(result[0], result[1], self._name(result[2]))
        if dy is not None:
            dy = as_engine_array(as_real(owner, "dy", dy), self.dtype)
            letters = with_width(layout, "D*P" if self.proj_size else "D*H")
            check_shape(owner, "dy", dy, letters, _give(tape.y, layout).shape)
            dy = _take(dy, layout)
        dstate = self._accept_state(owner, "dstate", dstate, tape.B, layout)
        grads = self._backward(tape, dy, dstate)
        assert grads.x is not None
        return Gradients(_give(grads.x, layout), self._give_state(grads.state, layout), grads.parameters)

    def stream(self, batch_size: int = 1) -> Stream:
        """The layer one step at a time, with its own state: see `Stream`.

        ValueError for a bidirectional layer: its reverse direction begins at the last step, which a
        stream does not have yet.
        """
        owner = f"{type(self).__name__}.stream"
        if self.bidirectional:
            raise ValueError(
                f"{owner}: a bidirectional layer cannot stream: its reverse direction starts at the last step"
            )
        batch_size = as_size(owner, "batch_size", batch_size)
        return Stream(self._stack, batch_size)

    # -- arguments --------------------------------------------------------------------------------

    def _accept(self, x: Any, state: State, given: Given) -> tuple[Array, State, Map | None, str]:
        owner = type(self).__name__
        x = as_real(owner, "x", x)
        layouts = [_BATCH_FIRST if self.batch_first else _TIME_FIRST, _ONE_ROW]
        if given.batch_sizes is not None:
            layouts = [_PACKED]
        letters = [with_width(layout, "I") for layout in layouts]
        check_ndim(owner, "x", x, *letters)
        layout = layouts[-1] if x.ndim == 2 else layouts[0]
        if x.shape[-1] != self.input_size:
            raise ValueError(
                f"{owner}: x has shape {x.shape}, "
                f"expected {' or '.join(letters)} with I = input_size = {self.input_size}"
            )
        if layout == _ONE_ROW and given.lengths is not None:
            raise ValueError(f"{owner}: lengths needs a batched x, {letters[0]}; x has shape {x.shape}")
        steps = as_steps(owner, given, x.shape[:-1], layout)
        check_blas_sizes(owner, B=steps.B)
        x = _take(as_engine_array(x, self.dtype), layout)
        return x, self._accept_state(owner, "state", state, steps.B, layout), as_map(steps), layout

    def _accept_state(self, owner: str, name: str, state: State, B: int, layout: str = _TIME_FIRST) -> State:
        """h (L*D, B, P), or (h, c) with c (L*D, B, H), of the layer's dtype; zeros for what is None."""
        count, batched = self.num_layers * self.num_directions, layout != _ONE_ROW
        if state is None:
            h = np.zeros((count, B, self._width), self.dtype)
            return (h, np.zeros((count, B, self.hidden_size), self.dtype)) if self._cell.has_c else h
        middle = (B,) if batched else ()
        letters = "(L*D, B, {})" if batched else "(L*D, {})"
        shapes = [(count, *middle, self._width)]
        if self._cell.has_c:
            shapes.append((count, *middle, self.hidden_size))
        widths = ("P" if self.proj_size else "H", "H")[: len(shapes)]
        named = tuple(letters.format(width) for width in widths)
        h, c = as_state(owner, name, state, named, tuple(shapes), self.dtype)
        if not batched:
            h, c = h[:, None, :], None if c is None else c[:, None, :]
        return h if c is None else (h, c)

    def _give_state(self, state: State, layout: str) -> State:
        if layout != _ONE_ROW:
            return state
        return tuple(part[:, 0] for part in state) if self._cell.has_c else state[:, 0]

    # -- the stack, time-major (the protocol of base.Layer) ---------------------------------------

    def _infer(self, x: Array, state: State, lengths: Array | None) -> tuple[Array, State]:
        return self._run(as_engine_array(x, self.dtype), state, _map_of(x, lengths))

    def _forward(self, x: Array, state: State, lengths: Array | None) -> tuple[Array, State, Tape]:
        return self._keep(as_engine_array(x, self.dtype), state, _map_of(x, lengths))

    def _run(self, x: Array, state: State, batch: Map | None) -> tuple[Array, State]:
        h, c, y = self._begin(x, state)
        self._stack.infer(x, h, c, y, batch)
        return y, h if c is None else (h, c)

    def _keep(self, x: Array, state: State, batch: Map | None) -> tuple[Array, State, Tape]:
        h, c, y = self._begin(x, state)
        masks = None
        if self.dropout and self.num_layers > 1:
            N = math.prod(x.shape[:-1]) if batch is None else batch.N
            shape = (self.num_layers - 1, N, self.output_size)
            masks = self.rng.random(shape, np.float32) >= self.dropout
        tape = self._stack.keep(x, h, c, y, batch, masks, 1.0 / (1.0 - self.dropout))
        tape.owner, tape.layout = self, _TIME_FIRST
        y.flags.writeable = False  # the tape has a view of it
        return y, h if c is None else (h, c), tape

    def _begin(self, x: Array, state: State) -> tuple[Array, Array | None, Array]:
        """Copies of h and c, which the engine turns into the final state, and an array for y."""
        if state is None:
            state = self._accept_state(type(self).__name__, "state", None, x.shape[1])
        h, c = state if self._cell.has_c else (state, None)
        return h.copy(), None if c is None else c.copy(), self._new_sequence(x, self.output_size)

    def _new_sequence(self, x: Array, width: int) -> Array:
        """An array like x, but for its width, laid out as the caller has x."""
        if self.batch_first and x.ndim == 3:
            T, B, _ = x.shape
            return empty((B, T, width), self.dtype).transpose(1, 0, 2)
        return empty((*x.shape[:-1], width), self.dtype)

    def _backward(self, tape: Tape, dy: Array | None, dstate: State) -> Gradients:
        if dstate is None:
            dstate = self._accept_state(type(self).__name__, "dstate", None, tape.B)
        dh, dc = dstate if self._cell.has_c else (dstate, None)
        dh, dc = dh.copy(), None if dc is None else dc.copy()
        dy = None if dy is None else as_engine_array(dy, self.dtype)
        dx = self._new_sequence(tape.x, self.input_size)
        gradients = self._stack.back(tape, dy, dh, dc, dx)
        return Gradients(dx, dh if dc is None else (dh, dc), self._name(gradients))

    def _name(self, gradients: list[tuple[Array | None, ...]]) -> dict[str, Array]:
        """What `Stack.back` gave for each layer and direction, by the parameters' names."""
        arrays = [array for direction in gradients for array in direction if array is not None]
        return dict(zip(self._parameters, arrays, strict=True))


def _map_of(x: Array, lengths: Array | None) -> Map | None:
    T, B = x.shape[:2]
    return as_map(Steps(T, B, lengths))


def _take(x: Array, layout: str) -> Array:
    """A caller's sequence as the engine takes it: (T, B, width), or packed rows as they are."""
    if layout == _ONE_ROW:
        return x[:, None]
    return x.transpose(1, 0, 2) if layout == _BATCH_FIRST else x


def _give(y: Array, layout: str) -> Array:
    """The inverse of `_take`."""
    if layout == _ONE_ROW:
        return y[:, 0]
    return y.transpose(1, 0, 2) if layout == _BATCH_FIRST else y


class RNN(Recurrent):
    """Elman's recurrent network, h_t = f(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh).

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        I, H and L. Layer k > 0 reads the output of layer k-1.
    nonlinearity : {"tanh", "relu"}
        f.
    bias : bool
        Without it, no bias_ih and bias_hh.
    batch_first : bool
        x and y are (B, T, ...) instead of (T, B, ...); states are (L*D, B, H) either way.
    dropout : float in [0, 1)
        On the inputs of layers above the first, in `forward` only, from the layer's generator.
    bidirectional : bool
        A second set of weights runs from the last step to the first; y holds both, D*H wide.
    dtype : "float32" or "float64"
    rng : int seed, numpy.random.Generator, or None
        Source of the initial values, U(-1/sqrt(H), 1/sqrt(H)), and of dropout.

    Notes
    -----
    Parameters are named, shaped and ordered as PyTorch's: ``weight_ih_l{k}[_reverse]`` (H, I or D*H),
    ``weight_hh_l{k}[_reverse]`` (H, H), ``bias_ih_*``, ``bias_hh_*`` (H,). tanh is within 2 ULP.
    Source: Elman, Finding structure in time, 1990; docs/math.md.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> layer = fastrnn.RNN(3, 4, rng=0)
    >>> y, h_n = layer(np.ones((5, 2, 3)))
    >>> y.shape, h_n.shape
    ((5, 2, 4), (1, 2, 4))
    """

    _family = FAMILIES["rnn"]
    _options: ClassVar[tuple[str, ...]] = (
        "input_size", "hidden_size", "num_layers", "nonlinearity", "bias", "batch_first", "dropout",
        "bidirectional", "dtype",
    )  # fmt: skip

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: DTypeLike = "float32",
        rng: Any = None,
    ) -> None:
        self.nonlinearity = self._family.check("RNN", nonlinearity)
        super().__init__(
            input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional, dtype=dtype, rng=rng,
        )  # fmt: skip


class LSTM(Recurrent):
    """Long short-term memory.

    ::

        i, f, g, o = split(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh)
        c_t = sigmoid(f) c_{t-1} + sigmoid(i) tanh(g)
        h_t = sigmoid(o) tanh(c_t),  or W_hr times that with proj_size

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        I, H and L. Layer k > 0 reads the output of layer k-1.
    bias : bool
        Without it, no bias_ih and bias_hh.
    batch_first : bool
        x and y are (B, T, ...) instead of (T, B, ...); states are (L*D, B, ...) either way.
    dropout : float in [0, 1)
        On the inputs of layers above the first, in `forward` only, from the layer's generator.
    bidirectional : bool
        A second set of weights runs from the last step to the first; y holds both, D*H wide.
    proj_size : int
        P: 0, or less than H: h_t is projected to P numbers by weight_hr (P, H).
    dtype : "float32" or "float64"
    rng : int seed, numpy.random.Generator, or None
        Source of the initial values, U(-1/sqrt(H), 1/sqrt(H)), and of dropout.

    Notes
    -----
    Parameters are named, shaped and ordered (i, f, g, o) as PyTorch's: ``weight_ih_l{k}[_reverse]``
    (4*H, I or D*P), ``weight_hh_*`` (4*H, P), ``bias_ih_*``, ``bias_hh_*`` (4*H,), ``weight_hr_*`` (P, H).
    The state is the pair (h, c), (L*D, B, P) and (L*D, B, H). sigmoid and tanh are within 2 ULP.
    Sources: Hochreiter & Schmidhuber, 1997; Gers et al., 2000; Sak et al., 2014; docs/math.md.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> layer = fastrnn.LSTM(3, 4, num_layers=2, rng=0)
    >>> y, (h_n, c_n) = layer(np.ones((5, 2, 3)))
    >>> y.shape, h_n.shape
    ((5, 2, 4), (2, 2, 4))
    """

    _family = FAMILIES["lstm"]
    _options: ClassVar[tuple[str, ...]] = (
        "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
        "bidirectional", "proj_size", "dtype",
    )  # fmt: skip


class GRU(Recurrent):
    """Gated recurrent unit.

    ::

        r, z = sigmoid(W_i{r,z} x_t + b_i{r,z} + W_h{r,z} h_{t-1} + b_h{r,z})
        n = tanh(W_in x_t + b_in + r (W_hn h_{t-1} + b_hn))        reset_after
        n = tanh(W_in x_t + b_in + W_hn (r h_{t-1}) + b_hn)        otherwise
        h_t = (1 - z) n + z h_{t-1}

    Parameters
    ----------
    input_size, hidden_size, num_layers : int
        I, H and L. Layer k > 0 reads the output of layer k-1.
    reset_after : bool
        True: as cuDNN and PyTorch have it. False: as in the paper of 2014.
    bias : bool
        Without it, no bias_ih and bias_hh.
    batch_first : bool
        x and y are (B, T, ...) instead of (T, B, ...); states are (L*D, B, H) either way.
    dropout : float in [0, 1)
        On the inputs of layers above the first, in `forward` only, from the layer's generator.
    bidirectional : bool
        A second set of weights runs from the last step to the first; y holds both, D*H wide.
    dtype : "float32" or "float64"
    rng : int seed, numpy.random.Generator, or None
        Source of the initial values, U(-1/sqrt(H), 1/sqrt(H)), and of dropout.

    Notes
    -----
    Parameters are named, shaped and ordered (r, z, n) as PyTorch's: ``weight_ih_l{k}[_reverse]``
    (3*H, I or D*H), ``weight_hh_*`` (3*H, H), ``bias_ih_*``, ``bias_hh_*`` (3*H,). sigmoid and tanh are
    within 2 ULP. Source: Cho et al., 2014; docs/math.md.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> layer = fastrnn.GRU(3, 4, bidirectional=True, rng=0)
    >>> y, h_n = layer(np.ones((5, 2, 3)))
    >>> y.shape, h_n.shape
    ((5, 2, 8), (2, 2, 4))
    """

    _family = FAMILIES["gru"]
    _options: ClassVar[tuple[str, ...]] = (
        "input_size", "hidden_size", "num_layers", "reset_after", "bias", "batch_first", "dropout",
        "bidirectional", "dtype",
    )  # fmt: skip

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool = True,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        dtype: DTypeLike = "float32",
        rng: Any = None,
    ) -> None:
        self.reset_after = self._family.check("GRU", reset_after)
        super().__init__(
            input_size, hidden_size, num_layers, bias=bias, batch_first=batch_first, dropout=dropout,
            bidirectional=bidirectional, dtype=dtype, rng=rng,
        )  # fmt: skip


#: All of the above, by the names of their families, which functions have too.
LAYERS: dict[str, type[Recurrent]] = {layer._family.name: layer for layer in Recurrent.__subclasses__()}
