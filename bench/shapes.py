"""What is measured: cells, shapes, the work in each, and the numbers that go in.

Shape letters: ``T`` time steps, ``B`` batch rows, ``I`` inputs, ``H`` hidden units, ``G`` = H, 3 H or 4 H
gate rows.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = dict[str, Array]

#: The cells that other libraries have too.
CELLS = ("lstm", "gru", "rnn")
MODES = ("forward", "training")
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Shape(NamedTuple):
    """The size of one problem, written T100-B3-I13-H48, or T100-B16-H64 where I is H."""

    T: int
    B: int
    I: int
    H: int

    def __str__(self) -> str:
        inputs = "" if self.I == self.H else f"-I{self.I}"
        return f"T{self.T}-B{self.B}{inputs}-H{self.H}"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """The inverse of str(); ValueError for anything else."""
        match = re.fullmatch(r"T(\d+)-B(\d+)(?:-I(\d+))?-H(\d+)", text)
        if match is None or 0 in (sizes := [int(size or match[4]) for size in match.groups()]):
            raise ValueError(f"shape is {text!r}, expected one like T100-B16-H64 or T100-B3-I13-H48")
        return cls(*sizes)


def shapes(text: str) -> tuple[Shape, ...]:
    return tuple(map(Shape.parse, text.split()))


#: One row at a time, as in streaming and generation; small batches; batches that fill the machine. I is H,
#: as in every layer of a stack but the first.
SHAPES = shapes(
    "T100-B1-H32 T100-B1-H128 T100-B1-H256 T50-B1-H512 "
    "T100-B16-H64 T100-B32-H128 T50-B64-H256 T25-B64-H512 T10-B64-H1024"
)

#: First layers, in sizes that are no multiple of what vectors and tiles would like.
ODD_SHAPES = shapes(
    "T1000-B1-I3-H24 T500-B1-I80-H200 T50-B1-I13-H650 "
    "T500-B3-I13-H48 T50-B3-I80-H650 T500-B7-I3-H24 T100-B7-I13-H200 "
    "T200-B20-I80-H48 T10-B20-I80-H650"
)

TABLES = {"main": SHAPES, "odd": ODD_SHAPES}

#: Enough to see that everything runs: one row, several, and sizes that divide nothing.
SMOKE_SHAPES = shapes("T100-B1-H32 T100-B16-H64 T50-B3-I13-H48")


class Case(NamedTuple):
    """One layer in one direction: what a library is prepared for."""

    cell: str
    shape: Shape
    dtype: str
    gates: int  #: G = gates * H
    states: tuple[str, ...]  #: parts of the state: "h", or "h" and "c"

    @classmethod
    def of(cls, cell: str, shape: Shape, dtype: str = "float32") -> Case:
        """A case of one of fastrnn's cells. For the driver: a worker's interpreter may have no fastrnn."""
        from fastrnn.cells import FAMILIES

        described = next(iter(FAMILIES[cell].cells.values()))
        return cls(cell, shape, dtype, described.gates, described.states)

    @property
    def first_states(self) -> tuple[str, ...]:
        return tuple(f"{name}_0" for name in self.states)

    @property
    def last_states(self) -> tuple[str, ...]:
        return tuple(f"{name}_n" for name in self.states)

    def flops(self, mode: str) -> int:
        """Floating-point operations of the matrix products; those of the gates are not counted.

        Forward, each step multiplies (B, I) and (B, H) by weights of G rows: 2 T B G (I + H) in all.
        Training is three times that: the forward pass, then two products of the same size each, one
        for dx and dh and one for the weight gradients.
        """
        T, B, I, H = self.shape
        forward = 2 * T * B * self.gates * H * (I + H)
        return forward if mode == "forward" else 3 * forward

    def inputs(self) -> tuple[str, ...]:
        """The names of all that has a gradient, in the order in which it is passed to a cell."""
        return ("x", *self.first_states, *PARAMETERS)

    def problem(self, seed: int = 0) -> Arrays:
        """Random inputs, states, weights (PyTorch's layout and scale) and dy, the same for every library."""
        T, B, I, H = self.shape
        G = self.gates * H
        rng = np.random.default_rng(seed)
        arrays = {"x": rng.standard_normal((T, B, I)), "dy": rng.standard_normal((T, B, H))}
        arrays |= {name: rng.standard_normal((B, H)) for name in self.first_states}
        for name, shape in zip(PARAMETERS, ((G, I), (G, H), (G,), (G,)), strict=True):
            arrays[name] = rng.uniform(-1, 1, shape) / np.sqrt(H)
        return {name: value.astype(self.dtype) for name, value in arrays.items()}
