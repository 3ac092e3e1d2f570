"""What Python knows of the compiled cells, and of the steps of a batch that are real."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import _kernels
from ._kernels import Map
from .arguments import Steps


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


def as_map(T: int, B: int, steps: Steps, *, repeat: bool = False) -> Map | None:
    """The batch compiled for the engine; None if all steps are real and no episode begins."""
    if steps.are_all:
        return None
    lengths = None if steps.lengths is None else steps.lengths.astype(np.int64)
    return Map(T, B, lengths, steps.mask, steps.reset, repeat=repeat)
