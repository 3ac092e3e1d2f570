"""One layer in one direction: arrays in, arrays out, on packed rows.

Above this file stand the public faces (functional.py, recurrent.py), which validate; below it the
compiled loops (_kernels.pyx), which trust. Here the scratch is allocated and the batch is packed.

Packing is how rows of different lengths share a batch at the cost of their real steps only: rows are
sorted by length, longest first, and of every time step only the rows that are still alive are kept.
The rows of a step are then a prefix of the batch, and a full batch is the case where nothing moves.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import _kernels
from ._kernels import Weights
from .arguments import Array


class Cell(NamedTuple):
    """What Python needs to know of a compiled cell (the other half is `fastrnn_cell_shape` in C)."""

    number: int
    gates: int  # blocks of H rows in the weight matrices
    accumulators: int  # blocks of H columns kept for backward
    has_c: bool
    has_reset: bool


CELLS = {
    shape["name"]: Cell(
        k, shape["gates"], shape["accumulators"], bool(shape["has_c"]), bool(shape["has_reset"])
    )
    for k, shape in enumerate(_kernels.cell_shapes())
}

# Rows of one chunk of BPTT: the depth of the products that make the weight gradients.
BACKWARD_ROWS = 512


class Packing:
    """How a padded batch (T, B, ...) maps to packed rows (N, ...)."""

    def __init__(self, T: int, B: int, lengths: Array | None = None) -> None:
        self.T, self.B = T, B
        self.order: Array | None = None
        self._index: Array | None = None
        if lengths is None:
            self.offsets = np.arange(T + 1 if B else 1, dtype=np.intp) * B
            return
        self.order = np.argsort(-lengths, kind="stable")
        alive = np.arange(lengths.max(initial=0))[:, None] < lengths[self.order]
        step, row = np.nonzero(alive)
        self._index = step * B + self.order[row]
        self.offsets = np.zeros(len(alive) + 1, np.intp)
        np.cumsum(alive.sum(axis=1), out=self.offsets[1:])

    @property
    def rows(self) -> int:
        """N: the real steps of all rows together."""
        return int(self.offsets[-1])

    def pack(self, x: Array) -> Array:
        """(T, B, K) to (N, K); the same memory for a full batch."""
        flat = x.reshape(self.T * self.B, x.shape[2])
        return flat if self._index is None else flat[self._index]

    def unpack(self, y: Array) -> Array:
        """(N, K) to (T, B, K), zero where there is no row; the same memory for a full batch."""
        if self._index is None:
            return y.reshape(self.T, self.B, y.shape[1])
        padded = np.zeros((self.T * self.B, y.shape[1]), y.dtype)
        padded[self._index] = y
        return padded.reshape(self.T, self.B, y.shape[1])

    def sort(self, state: Array) -> Array:
        """A copy of a state (..., B, H) in the order of the packed rows."""
        return state.copy() if self.order is None else np.take(state, self.order, axis=-2)

    def unsort(self, state: Array) -> Array:
        """A state (..., B, H) back in the caller's order."""
        if self.order is None:
            return state
        result = np.empty_like(state)
        result[..., self.order, :] = state
        return result


class DirectionTape(NamedTuple):
    """What BPTT needs of one layer and direction. Its own arrays are gates and c; the rest are references.

    gates (N, accumulators*H), c (N, H) or None, y (N, P) columns of the layer's output, x (N, I),
    state: the initial (B, P) and (B, H) or None, sorted.
    """

    cell: Cell
    weights: Weights
    packing: Packing
    reverse: bool
    x: Array
    state: tuple[Array, Array | None]
    y: Array
    gates: Array
    c: Array | None


def forward(
    cell: Cell,
    weights: Weights,
    packing: Packing,
    reverse: bool,
    x: Array,
    state: tuple[Array, Array | None],
    y: Array,
    *,
    keep: bool,
) -> DirectionTape | None:
    """Write y (N, P) and bring `state`, (B, P) and (B, H) or None, from the initial to the final one.

    With `keep`, returns the tape; without, memory beyond y does not grow with T.
    """
    N, dtype = packing.rows, x.dtype
    H = weights.weight_ih.shape[0] // cell.gates
    h, c = state
    gates = c_kept = initial = None
    if keep:
        initial = (h.copy(), None if c is None else c.copy())
        if cell.accumulators == 1 and y.flags.c_contiguous:
            gates = y  # all that an RNN keeps is its output
        else:
            gates = _kernels.empty((N, cell.accumulators * H), dtype)
        c_kept = _kernels.empty((N, H), dtype) if cell.has_c else None
    if N:
        _kernels.forward(weights, reverse, packing.offsets, x, state, y, gates, c_kept)
    if initial is None or gates is None:
        return None
    return DirectionTape(cell, weights, packing, reverse, x, initial, y, gates, c_kept)


def backward(
    tape: DirectionTape,
    dy: Array | None,
    dstate: tuple[Array, Array | None],
    dx: Array | None,
    *,
    accumulate_dx: bool = False,
) -> dict[str, Array]:
    """Gradients of the parameters, by the field names of `Weights`; `dstate` goes from final to initial.

    dy (N, P) may be columns of a wider array. dx (N, I) is written, or added to.
    """
    cell, weights, packing = tape.cell, tape.weights, tape.packing
    dtype, N = tape.x.dtype, packing.rows
    GH = weights.weight_ih.shape[0]
    H = GH // cell.gates
    AH = cell.accumulators * H
    dweight_ih, dweight_hh = (_kernels.empty(w.shape, dtype) for w in (weights.weight_ih, weights.weight_hh))
    dweight_hr = None if weights.weight_hr is None else _kernels.empty(weights.weight_hr.shape, dtype)
    dbias = np.zeros(AH, dtype)
    if N:
        rows = min(N, max(packing.B, BACKWARD_ROWS))
        _kernels.backward(
            weights, tape.reverse, packing.offsets, tape.x, tape.state, tape.y, tape.gates, tape.c, dy,
            dstate, dx, accumulate_dx, (dweight_ih, dweight_hh, dweight_hr), dbias, rows,
        )  # fmt: skip
    else:
        for dweight in (dweight_ih, dweight_hh, dweight_hr):
            if dweight is not None:
                dweight.fill(0)
    gradients = {"weight_ih": dweight_ih, "weight_hh": dweight_hh}
    if weights.bias_ih is not None:
        # A cell with one accumulator too many keeps the input's part of its last gate there.
        own = dbias[:GH].copy() if AH == GH else np.concatenate([dbias[: GH - H], dbias[AH - H :]])
        gradients["bias_ih"] = own
    if weights.bias_hh is not None:
        gradients["bias_hh"] = dbias[:GH].copy()
    if dweight_hr is not None:
        gradients["weight_hr"] = dweight_hr
    return gradients

