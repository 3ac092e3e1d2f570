"""The arguments of one layer in one direction, checked, for `fastrnn.functional` and `fastrnn.reference`.

Shape letters: ``T`` time steps, ``B`` batch rows, ``I`` inputs, ``H`` hidden units, ``P`` projection size
(H without a projection), ``G`` gate rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .arguments import (
    Array,
    Given,
    Steps,
    as_array,
    as_flag,
    as_state,
    as_steps,
    check_blas_sizes,
    check_ndim,
    check_shape,
    with_width,
)
from .cells import WEIGHTS, Cell


class Sizes(NamedTuple):
    """Of a call."""

    rows: tuple[int, ...]  #: of x and y, before their width: (T, B), or (N,) of packed rows
    B: int
    I: int
    P: int
    H: int


class Call(NamedTuple):
    """What a forward function works on. The arrays may be the caller's own."""

    sizes: Sizes
    x: Array  #: (T, B, I) or (N, I), float32 or float64
    state: tuple[Array, ...]  #: (h,) or (h, c), of the dtype of x; zeros where the caller gave none
    weights: dict[str, Array]  #: those that were given, of the dtype of x
    steps: Steps
    reverse: bool


def as_call(
    owner: str,
    cell: Cell,
    x: Any,
    state: Any,
    given: tuple[Any, ...],
    steps: Given,
    reverse: Any,
) -> Call:
    """The arguments of a forward function; `given` are the weights in the order of `WEIGHTS`."""
    x = as_array(owner, "x", x)
    layout = "(T, B)" if steps.batch_sizes is None else "(N,)"
    check_ndim(owner, "x", x, with_width(layout, "I"))
    *rows, I = x.shape
    checked = as_steps(owner, steps, tuple(rows), layout)
    weights, P, H = _as_weights(owner, cell, given, x.dtype, I)
    check_blas_sizes(owner, B=checked.B, I=I, P=P, **{"4*H": 4 * H})
    sizes = Sizes(tuple(rows), checked.B, I, P, H)
    states = as_states(owner, "state", cell, state, sizes, x.dtype)
    return Call(sizes, x, states, weights, checked, as_flag(owner, "reverse", reverse))


def as_output_gradient(owner: str, cell: Cell, dy: Any, sizes: Sizes, dtype: np.dtype[Any]) -> Array | None:
    """dy (T, B, P) or (N, P), None for zeros."""
    if dy is None:
        return None
    array = as_array(owner, "dy", dy, dtype)
    letters = with_width("(T, B)" if len(sizes.rows) == 2 else "(N,)", "P" if cell.has_c else "H")
    check_shape(owner, "dy", array, letters, (*sizes.rows, sizes.P))
    return array


def as_states(
    owner: str, name: str, cell: Cell, state: Any, sizes: Sizes, dtype: np.dtype[Any]
) -> tuple[Array, ...]:
    """A state or its gradient, (h,) or (h, c); zeros for what is None."""
    both = (("(B, P)", (sizes.B, sizes.P)), ("(B, H)", (sizes.B, sizes.H)))
    letters, shapes = zip(*(both if cell.has_c else both[1:]), strict=True)
    h, c = as_state(owner, name, state, letters, shapes, dtype)
    return (h,) if c is None else (h, c)


def _as_weights(
    owner: str, cell: Cell, given: tuple[Any, ...], dtype: np.dtype[Any], I: int
) -> tuple[dict[str, Array], int, int]:
    """The weights by name, P and H; each is checked against I and against the rows of weight_ih."""
    weights = {
        name: as_array(owner, name, value, dtype)
        for name, value in zip(WEIGHTS, given, strict=True)
        if value is not None
    }
    for name, axes in (("weight_ih", "(G, I)"), ("weight_hh", "(G, H)")):
        if name not in weights:
            raise TypeError(f"{owner}: {name} is None, expected an array")
        check_ndim(owner, name, weights[name], axes)
    G = "H" if cell.gates == 1 else f"{cell.gates}*H"
    rows = weights["weight_ih"].shape[0]
    if rows % cell.gates or not rows:
        shape = weights["weight_ih"].shape
        raise ValueError(f"{owner}: weight_ih has shape {shape}, expected ({G}, I) with H >= 1")
    H = rows // cell.gates
    P, width = (weights["weight_hh"].shape[1], "P") if "weight_hr" in weights else (H, "H")
    letters = (f"({G}, I)", f"({G}, {width})", f"({G},)", f"({G},)", "(P, H)")
    shapes = cell.shapes(I, H, P)
    for name, letter in zip(WEIGHTS, letters, strict=True):
        if name in weights:
            check_shape(owner, name, weights[name], letter, shapes[name])
    for name, letter, size in (("x", "I", I), ("weight_hh", "P", P)):
        if not size:
            raise ValueError(f"{owner}: {name} has {letter} = 0, expected at least 1")
    return weights, P, H
