"""What is measured: cells, shapes, the work in each, and the numbers that go in.

Shape letters: ``T`` time steps, ``B`` batch rows, ``H`` hidden units, ``G`` = H, 3 H or 4 H gate rows. The
input size is H throughout, as in every layer of a stack but the first.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Arrays = dict[str, Array]

#: Gate blocks of each cell: G = GATES[cell] * H.
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
MODES = ("forward", "training")

STATES = {"lstm": ("h_0", "c_0"), "gru": ("h_0",), "rnn": ("h_0",)}
LAST_STATES = {"lstm": ("h_n", "c_n"), "gru": ("h_n",), "rnn": ("h_n",)}
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Shape(NamedTuple):
    """The size of one problem, written T100-B16-H64."""

    T: int
    B: int
    H: int

    def __str__(self) -> str:
        return f"T{self.T}-B{self.B}-H{self.H}"

    @classmethod
    def parse(cls, text: str) -> Shape:
        """The inverse of str(); ValueError for anything else."""
        match = re.fullmatch(r"T(\d+)-B(\d+)-H(\d+)", text)
        if match is None or "0" in (sizes := match.groups()):
            raise ValueError(f"shape is {text!r}, expected one like T100-B16-H64")
        return cls(*map(int, sizes))


#: One row at a time, as in streaming and generation; small batches; batches that fill the machine.
SHAPES = (
    Shape(100, 1, 32),
    Shape(100, 1, 128),
    Shape(100, 1, 256),
    Shape(50, 1, 512),
    Shape(100, 16, 64),
    Shape(100, 32, 128),
    Shape(50, 64, 256),
    Shape(25, 64, 512),
    Shape(10, 64, 1024),
)

#: Enough to see that everything runs, with one row and with several.
SMOKE_SHAPES = (SHAPES[0], SHAPES[4])


class Case(NamedTuple):
    """One layer in one direction: what a library is prepared for."""

    cell: str
    shape: Shape
    dtype: str = "float32"

    def flops(self, mode: str) -> int:
        """Floating-point operations of the matrix products; those of the gates are not counted.

        Forward, each step multiplies (B, I) and (B, H) by weights of G rows: 2 T B G (I + H) in all.
        Training is three times that: the forward pass, then two products of the same size each, one
        for dx and dh and one for the weight gradients.
        """
        T, B, H = self.shape
        forward = 2 * T * B * GATES[self.cell] * H * (H + H)
        return forward if mode == "forward" else 3 * forward

    def inputs(self) -> tuple[str, ...]:
        """The names of all that has a gradient, in the order in which it is passed to a cell."""
        return ("x", *STATES[self.cell], *PARAMETERS)

    def problem(self, seed: int = 0) -> Arrays:
        """Random inputs, states, weights (PyTorch's layout and scale) and dy, the same for every library."""
        T, B, H = self.shape
        G = GATES[self.cell] * H
        rng = np.random.default_rng(seed)
        arrays = {"x": rng.standard_normal((T, B, H)), "dy": rng.standard_normal((T, B, H))}
        arrays |= {name: rng.standard_normal((B, H)) for name in STATES[self.cell]}
        for name, shape in zip(PARAMETERS, ((G, H), (G, H), (G,), (G,)), strict=True):
            arrays[name] = rng.uniform(-1, 1, shape) / np.sqrt(H)
        return {name: value.astype(self.dtype) for name, value in arrays.items()}
