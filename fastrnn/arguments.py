"""The boundary: turns what callers pass into values that the kernels can trust, or says what is wrong.

Every error names the call, the argument, what came and what was expected. Nothing here writes to a
caller's array; a cast or a change of layout makes a copy, anything else does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
T = TypeVar("T")

#: BLAS takes its sizes as 32-bit integers.
LARGEST = 2**31 - 1


# ---- options --------------------------------------------------------------------------------------


def as_dtype(owner: str, dtype: Any) -> np.dtype[Any]:
    """The layer dtype, float32 or float64; TypeError for anything else."""
    try:
        result = None if dtype is None else np.dtype(dtype)
    except Exception:  # NumPy has many ways to refuse
        result = None
    for real in (np.dtype(np.float32), np.dtype(np.float64)):
        if result is not None and result == real:
            return real
    raise TypeError(f"{owner}: dtype is {dtype!r}, expected 'float32' or 'float64'")


def as_size(owner: str, name: str, value: Any, minimum: int = 1) -> int:
    """An integer of at least `minimum`; TypeError or ValueError names the argument."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{owner}: {name} is {value!r}, expected an integer")
    if not minimum <= value <= LARGEST:
        raise ValueError(f"{owner}: {name} is {value}, expected {minimum} <= {name} <= {LARGEST}")
    return int(value)


def as_fraction(owner: str, name: str, value: Any) -> float:
    """A probability in [0, 1); TypeError or ValueError names the argument."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{owner}: {name} is {value!r}, expected a number in [0, 1)")
    if not 0.0 <= value < 1.0:
        raise ValueError(f"{owner}: {name} is {value}, expected 0 <= {name} < 1")
    return float(value)


def as_flag(owner: str, name: str, value: Any) -> bool:
    """True or False, also as 0 or 1; TypeError for anything else."""
    if not isinstance(value, (bool, np.bool_, int, np.integer)) or value not in (0, 1):
        raise TypeError(f"{owner}: {name} is {value!r}, expected True or False")
    return bool(value)


def as_choice(owner: str, name: str, value: Any, *choices: str) -> str:
    """One of `choices`; ValueError lists them."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{owner}: {name} is {value!r}, expected {' or '.join(map(repr, choices))}")
    return value


def as_generator(owner: str, rng: Any) -> np.random.Generator:
    """`rng` itself if it is a Generator, else a new one from an integer seed or (None) from the system."""
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is None or (isinstance(rng, (int, np.integer)) and not isinstance(rng, bool)):
        if rng is not None and rng < 0:
            raise ValueError(f"{owner}: rng is {rng}, expected a seed of at least 0")
        return np.random.default_rng(rng)
    raise TypeError(f"{owner}: rng is {rng!r}, expected None, an int seed or a numpy.random.Generator")


def make_by_name(what: str, table: Mapping[str, Callable[..., T]], config: Mapping[str, Any]) -> T:
    """The entry of `table` that ``config["name"]`` names, called with the rest; ValueError if that fails."""
    options = dict(config)
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{what}: name is {name!r}, expected one of {list(table)}")
    try:
        return table[name](**options)
    except TypeError as error:
        raise ValueError(f"{what}: {name} can't be made from {options}: {error}") from error


# ---- arrays ---------------------------------------------------------------------------------------


def see(owner: str, name: str, value: Any) -> Array:
    """Whatever NumPy can see as an array: arrays, buffers, DLPack, nested sequences; else TypeError."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{owner}: {name} is a masked array, whose mask would be lost; fill it first")
    try:
        if not hasattr(value, "__array__") and hasattr(value, "__dlpack__"):
            value = np.from_dlpack(value)
        return np.asarray(value)
    except MemoryError:
        raise
    except Exception as error:  # whatever a foreign object raises when it is asked for its numbers
        raise TypeError(f"{owner}: {name} cannot be seen as an array: {error}") from error


def as_array(owner: str, name: str, value: Any, dtype: np.dtype[Any] | None = None) -> Array:
    """`value` as a C-contiguous array of `dtype` (None: its own float32 or float64).

    TypeError for what is not real.
    """
    value = see(owner, name, value)
    if value.dtype.kind not in "fiub":
        raise TypeError(f"{owner}: {name} has dtype {value.dtype}, expected a real dtype")
    if dtype is None:
        dtype = value.dtype.newbyteorder("=")
        if dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise TypeError(f"{owner}: {name} has dtype {value.dtype}, expected float32 or float64")
    # order="C" gives up 0-d and C-contiguous arrays uncopied; a misaligned one is copied after all.
    array: Array = np.asarray(value, dtype, order="C")
    return array if array.flags.aligned else array.copy()


def check_shape(owner: str, name: str, array: Array, letters: str, shape: tuple[int, ...]) -> None:
    """ValueError unless `array` has `shape`; `letters` says the same in the documentation's letters."""
    if array.shape != shape:
        raise ValueError(f"{owner}: {name} has shape {array.shape}, expected {letters} = {shape}")


def check_ndim(owner: str, name: str, array: Array, *letters: str) -> None:
    """ValueError unless `array` has as many dimensions as one of the shapes in `letters`."""
    if array.ndim not in [len(shape.split(",")) for shape in letters]:
        raise ValueError(f"{owner}: {name} has shape {array.shape}, expected {' or '.join(letters)}")


def check_blas_sizes(owner: str, **sizes: int) -> None:
    """ValueError for a size that BLAS could not take."""
    for name, size in sizes.items():
        if size > LARGEST:
            raise ValueError(f"{owner}: {name} is {size}, expected at most {LARGEST}")


def as_state(
    owner: str,
    name: str,
    state: Any,
    letters: tuple[str, ...],
    shapes: tuple[tuple[int, ...], ...],
    dtype: np.dtype[Any],
) -> tuple[Array, Array | None]:
    """A state, or its gradient, as (h, None), or for two shapes (h, c); zeros where None is given.

    The arrays may be the caller's own.
    """
    labels, parts = [name], [state]
    if len(shapes) == 2:
        if state is None:
            state = (None, None)
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(f"{owner}: {name} is {type(state).__name__}, expected a pair (h, c)")
        labels, parts = [f"{name} h", f"{name} c"], list(state)
    arrays = []
    for label, part, letter, shape in zip(labels, parts, letters, shapes, strict=True):
        array = np.zeros(shape, dtype) if part is None else as_array(owner, label, part, dtype)
        check_shape(owner, label, array, letter, shape)
        arrays.append(array)
    return arrays[0], arrays[1] if len(arrays) == 2 else None


def as_lengths(owner: str, lengths: Any, T: int, B: int) -> Array | None:
    """The lengths (B,) as integers in 0..T, or None if there are none or no row is short."""
    if lengths is None:
        return None
    array = see(owner, "lengths", lengths)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{owner}: lengths has dtype {array.dtype}, expected integers")
    check_shape(owner, "lengths", array, "(B,)", (B,))
    bad = np.flatnonzero((array < 0) | (array > T))
    if bad.size:
        raise ValueError(f"{owner}: lengths[{bad[0]}] is {array[bad[0]]}, expected 0 <= length <= T = {T}")
    return None if np.all(array == T) else array.astype(np.intp)


def as_rows(owner: str, rows: Any, B: int) -> Array:
    """Which of B rows: integers in -B..B-1 or a mask (B,); None is all of them."""
    if rows is None:
        return np.arange(B)
    array = np.atleast_1d(see(owner, "rows", rows))
    if array.dtype.kind == "b":
        check_shape(owner, "rows", array, "(B,)", (B,))
        return np.flatnonzero(array)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{owner}: rows has dtype {array.dtype}, expected integers or booleans")
    check_ndim(owner, "rows", array, "(rows)")
    bad = np.flatnonzero((array < -B) | (array >= B))
    if bad.size:
        raise ValueError(f"{owner}: rows[{bad[0]}] is {array[bad[0]]}, expected {-B} <= row < B = {B}")
    return array.astype(np.intp)
