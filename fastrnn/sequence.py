"""What Python knows of a cell, and how a batch of rows of any lengths becomes packed rows.

Above this file stand the public faces (functional.py, recurrent.py), which validate; below it the
compiled loops (_kernels.pyx), which trust.

Packing is how rows of different lengths share a batch at the cost of their real steps only: rows are
sorted by length, longest first, and of every time step only the rows that are still alive are kept.
The rows of a step are then a prefix of the batch, and a full batch is the case where nothing moves.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import _kernels
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


class Packing:
    """How a padded batch (T, B, ...) maps to packed rows (N, ...)."""

    def __init__(self, T: int, B: int, lengths: Array | None = None, *, offsets: Array | None = None) -> None:
        self.T, self.B = T, B
        self.order: Array | None = None
        self._index: Array | None = None
        if lengths is None:  # a full batch, whose offsets may be known
            self.offsets = np.arange(T + 1 if B else 1, dtype=np.intp) * B if offsets is None else offsets
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
