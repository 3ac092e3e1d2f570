"""What Python knows of the compiled cells, and of the steps of a batch that are real."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import _kernels
from ._kernels import Map
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


#: The arrays of one layer and direction, in the order in which `Weights` and the engine have them.
FIELDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


def as_map(
    T: int,
    B: int,
    lengths: Array | None = None,
    mask: Array | None = None,
    reset: Array | None = None,
    *,
    repeat: bool = False,
) -> Map | None:
    """The batch compiled for the engine; None if all steps are real and no episode begins."""
    if lengths is None and mask is None and reset is None:
        return None
    return Map(T, B, None if lengths is None else lengths.astype(np.int64), mask, reset, repeat=repeat)
