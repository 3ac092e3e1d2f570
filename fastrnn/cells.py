"""What Python knows of the compiled cells: which there are, their parameters, and the batches they run on.

All of it follows from the table in C (`FASTRNN_CELL_LIST`, src/kernels/engine/kernels.h).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from . import _kernels
from ._kernels import Map
from .arguments import Steps, as_choice, as_flag

#: The parameters that one layer in one direction may have, in the order in which functions take them.
WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


class Cell(NamedTuple):
    """A cell, as the table in C has it (`fastrnn_cell_shape`)."""

    name: str
    number: int
    gates: int  #: blocks of H rows in the weight matrices
    has_c: bool  #: whether the state is (h, c), and h may be projected

    @property
    def states(self) -> tuple[str, ...]:
        """The names of the parts of the state."""
        return ("h", "c") if self.has_c else ("h",)

    def shapes(self, I: int, H: int, P: int) -> dict[str, tuple[int, ...]]:
        """The shape of each of `WEIGHTS`, for I inputs, H units and P numbers of output."""
        G = self.gates * H
        return dict(zip(WEIGHTS, ((G, I), (G, P), (G,), (G,), (P, H)), strict=True))


CELLS: dict[str, Cell] = {
    shape["name"]: Cell(shape["name"], number, shape["gates"], shape["inner"] > 0)
    for number, shape in enumerate(_kernels.cell_shapes())
}


class Family(NamedTuple):
    """The cells that one layer class or function runs, and the option that tells them apart."""

    name: str
    cells: dict[Any, Cell]  #: by the value of the option; None if there is no option
    option: str | None = None

    def check(self, owner: str, value: Any) -> Any:
        """The value of the option; TypeError or ValueError names it."""
        if self.option is None:
            return None
        if True in self.cells:
            return as_flag(owner, self.option, value)
        return as_choice(owner, self.option, value, *self.cells)


_VARIANTS = (
    Family("rnn", {"tanh": CELLS["rnn_tanh"], "relu": CELLS["rnn_relu"]}, "nonlinearity"),
    Family("gru", {True: CELLS["gru"], False: CELLS["gru_reset_before"]}, "reset_after"),
)

#: All families by name: those of several cells, and one for each other cell.
FAMILIES: dict[str, Family] = {
    family.name: family
    for cell in CELLS.values()
    for family in (next((f for f in _VARIANTS if cell in f.cells.values()), Family(cell.name, {None: cell})),)
}


def as_map(steps: Steps, *, repeat: bool = False) -> Map | None:
    """The batch compiled for the engine; None if all steps are real and no episode begins."""
    return None if steps.are_all else Map(*steps, repeat=repeat)
