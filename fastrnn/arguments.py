"""The boundary: turns what callers pass into arrays that the kernels can trust, or says what is wrong.

Nothing here writes to a caller's array; a cast or a layout change makes a copy, anything else does not.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .base import Array

#: BLAS takes its sizes as 32-bit integers.
LARGEST = 2**31 - 1


def as_array(owner: str, name: str, value: Any, dtype: np.dtype[Any] | None = None) -> Array:
    """`value` as a C-contiguous array of `dtype` (None: its own float32 or float64).

    Takes whatever NumPy can see: arrays, buffers, DLPack, nested sequences. TypeError for what is not real.
    """
    if type(value) is not np.ndarray:
        try:
            if not hasattr(value, "__array__") and hasattr(value, "__dlpack__"):
                value = np.from_dlpack(value)
            value = np.asarray(value)
        except (ValueError, TypeError, RuntimeError, BufferError) as error:
            raise TypeError(f"{owner}: {name} cannot be seen as an array: {error}") from error
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


def as_lengths(owner: str, lengths: Any, T: int, B: int) -> Array | None:
    """The lengths (B,) as integers in 0..T, or None if there are none or no row is short."""
    if lengths is None:
        return None
    array = np.asarray(lengths)
    if array.dtype.kind not in "iu" and array.size:
        raise TypeError(f"{owner}: lengths has dtype {array.dtype}, expected integers")
    check_shape(owner, "lengths", array, "(B,)", (B,))
    bad = np.flatnonzero((array < 0) | (array > T))
    if bad.size:
        raise ValueError(f"{owner}: lengths[{bad[0]}] is {array[bad[0]]}, expected 0 <= length <= T = {T}")
    return None if np.all(array == T) else array.astype(np.intp)
