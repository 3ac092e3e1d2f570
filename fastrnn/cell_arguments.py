"""The arguments of one layer in one direction, checked, for `fastrnn.functional` and `fastrnn.reference`.

Shape letters: ``T`` time steps, ``B`` batch rows, ``I`` inputs, ``H`` hidden units, ``P`` projection size
(H without a projection), ``G`` gate rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .arguments import (
    Array,
    Steps,
    as_array,
    as_flag,
    as_state,
    as_steps,
    check_blas_sizes,
    check_ndim,
    check_shape,
)

WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


class Sizes(NamedTuple):
    """Of a call."""

    T: int
    B: int
    I: int
    P: int
    H: int


class Call(NamedTuple):
    """What a forward function works on. The arrays may be the caller's own."""

    sizes: Sizes
    x: Array  #: (T, B, I), float32 or float64
    state: tuple[Array, ...]  #: (h,) or (h, c), of the dtype of x; zeros where the caller gave none
    weights: dict[str, Array]  #: those that were given, of the dtype of x
    steps: Steps
    reverse: bool


def as_call(
    owner: str,
    gates: int,
    has_c: bool,
    x: Any,
    state: Any,
    given: tuple[Any, ...],
    steps: tuple[Any, Any, Any],
    reverse: Any,
) -> Call:
    """The arguments of a forward function.

    `given` are the weights in the order of `WEIGHTS`, `steps` are lengths, mask and reset.
    """
    x = as_array(owner, "x", x)
    check_ndim(owner, "x", x, "(T, B, I)")
    T, B, I = x.shape
    weights, P, H = _as_weights(owner, gates, given, x.dtype, I)
    check_blas_sizes(owner, B=B, I=I, P=P, **{"4*H": 4 * H})
    sizes = Sizes(T, B, I, P, H)
    states = as_states(owner, "state", has_c, state, sizes, x.dtype)
    reverse = as_flag(owner, "reverse", reverse)
    return Call(sizes, x, states, weights, as_steps(owner, *steps, T, B), reverse)


def as_output_gradient(owner: str, has_c: bool, dy: Any, sizes: Sizes, dtype: np.dtype[Any]) -> Array | None:
    """dy (T, B, P), None for zeros."""
    if dy is None:
        return None
    array = as_array(owner, "dy", dy, dtype)
    letters = "(T, B, P)" if has_c else "(T, B, H)"
    check_shape(owner, "dy", array, letters, (sizes.T, sizes.B, sizes.P))
    return array


def as_states(
    owner: str, name: str, has_c: bool, state: Any, sizes: Sizes, dtype: np.dtype[Any]
) -> tuple[Array, ...]:
    """A state or its gradient, (h,) or (h, c); zeros for what is None."""
    both = (("(B, P)", (sizes.B, sizes.P)), ("(B, H)", (sizes.B, sizes.H)))
    letters, shapes = zip(*(both if has_c else both[1:]), strict=True)
    h, c = as_state(owner, name, state, letters, shapes, dtype)
    return (h,) if c is None else (h, c)


def _as_weights(
    owner: str, gates: int, given: tuple[Any, ...], dtype: np.dtype[Any], I: int
) -> tuple[dict[str, Array], int, int]:
    """The weights by name, P and H; each is checked against I and against the rows of weight_ih."""
    weights = {
        name: as_array(owner, name, value, dtype)
        for name, value in zip(WEIGHTS, given, strict=True)
        if value is not None
    }
    for name, letters in (("weight_ih", "(G, I)"), ("weight_hh", "(G, H)")):
        if name not in weights:
            raise TypeError(f"{owner}: {name} is None, expected an array")
        check_ndim(owner, name, weights[name], letters)
    G = "H" if gates == 1 else f"{gates}*H"
    rows = weights["weight_ih"].shape[0]
    if rows % gates or not rows:
        shape = weights["weight_ih"].shape
        raise ValueError(f"{owner}: weight_ih has shape {shape}, expected ({G}, I) with H >= 1")
    H = rows // gates
    P, width = (weights["weight_hh"].shape[1], "P") if "weight_hr" in weights else (H, "H")
    expected = {
        "weight_ih": (f"({G}, I)", (rows, I)),
        "weight_hh": (f"({G}, {width})", (rows, P)),
        "bias_ih": (f"({G},)", (rows,)),
        "bias_hh": (f"({G},)", (rows,)),
        "weight_hr": ("(P, H)", (P, H)),
    }
    for name, weight in weights.items():
        check_shape(owner, name, weight, *expected[name])
    for name, letter, size in (("x", "I", I), ("weight_hh", "P", P)):
        if not size:
            raise ValueError(f"{owner}: {name} has {letter} = 0, expected at least 1")
    return weights, P, H
