"""The boundary: turns what callers pass into values that the kernels can trust, or says what is wrong.

Every error names the call, the argument, what came and what was expected. Nothing here writes to a
caller's array; a cast or a change of layout makes a copy, anything else does not.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
T = TypeVar("T")

#: BLAS takes its sizes as 32-bit integers.
LARGEST = 2**31 - 1

#: An array of more elements than any memory holds: a broadcast view, which would take hours to read.
MOST_ELEMENTS = 2**38

#: Bits of a seed. Any hash fits; NumPy's time grows with the square of the bits, a minute for ten million.
_SEED_BITS = 1024


def show(value: Any) -> str:
    """`value` as messages have it: its repr, cut where it is long."""
    try:
        text = repr(value[:100] if isinstance(value, (str, bytes)) else value)
    except Exception:  # an int of more than 4300 digits, or an object whose own __repr__ fails
        return f"an unprintable {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


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
    raise TypeError(f"{owner}: dtype is {show(dtype)}, expected 'float32' or 'float64'")


def is_integer(value: Any) -> bool:
    """An int of Python's or NumPy's; no bool, and no timedelta64, which is a subclass of np.integer."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.timedelta64))


def as_size(owner: str, name: str, value: Any, minimum: int = 1, maximum: int = LARGEST) -> int:
    """An integer from `minimum` to `maximum`; TypeError or ValueError names the argument."""
    if not is_integer(value):
        raise TypeError(f"{owner}: {name} is {show(value)}, expected an integer")
    size = int(value)
    if not minimum <= size <= maximum:
        raise ValueError(f"{owner}: {name} is {show(size)}, expected {minimum} <= {name} <= {maximum}")
    return size


def _as_real_number(owner: str, name: str, value: Any, expected: str) -> float:
    """An int or a float of Python's, of the value of one of Python's or NumPy's."""
    if is_integer(value):
        return int(value)
    if not isinstance(value, (float, np.floating)):
        raise TypeError(f"{owner}: {name} is {show(value)}, expected {expected}")
    return float(value)


def as_fraction(owner: str, name: str, value: Any) -> float:
    """A probability in [0, 1); TypeError or ValueError names the argument."""
    number = _as_real_number(owner, name, value, "a number in [0, 1)")
    if not 0 <= number < 1:
        raise ValueError(f"{owner}: {name} is {show(number)}, expected 0 <= {name} < 1")
    return float(number)


def as_number(
    owner: str, name: str, value: Any, *, positive: bool = False, maximum: float = sys.float_info.max
) -> float:
    """A finite number of at least 0, or above it; TypeError or ValueError names the argument."""
    number = _as_real_number(owner, name, value, "a number")
    if not 0 <= number <= maximum or (positive and number == 0):  # exact for integers beyond any float
        expected = f"a finite number {'>' if positive else '>='} 0"
        if maximum < sys.float_info.max:
            expected = f"0 {'<' if positive else '<='} {name} <= {maximum}"
        raise ValueError(f"{owner}: {name} is {show(number)}, expected {expected}")
    return float(number)


def as_flag(owner: str, name: str, value: Any) -> bool:
    """True or False, also as 0 or 1; TypeError for anything else."""
    if not (isinstance(value, (bool, np.bool_)) or (is_integer(value) and value in (0, 1))):
        raise TypeError(f"{owner}: {name} is {show(value)}, expected True or False")
    return bool(value)


def as_choice(owner: str, name: str, value: Any, *choices: str) -> str:
    """One of `choices`; ValueError for another string and TypeError for what is none, which list them."""
    if not isinstance(value, str) or value not in choices:
        kind = ValueError if isinstance(value, str) else TypeError
        raise kind(f"{owner}: {name} is {show(value)}, expected {' or '.join(map(repr, choices))}")
    return value


def as_generator(owner: str, rng: Any, name: str = "rng") -> np.random.Generator:
    """`rng` itself if it is a Generator, else a new one from an integer seed or (None) from the system."""
    if isinstance(rng, np.random.Generator):
        return rng
    if rng is None:
        return np.random.default_rng()
    if not is_integer(rng):
        expected = "None, an int seed or a numpy.random.Generator"
        raise TypeError(f"{owner}: {name} is {show(rng)}, expected {expected}")
    seed = int(rng)
    if seed < 0 or seed.bit_length() > _SEED_BITS:
        expected = f"a seed of at least 0 and at most {_SEED_BITS} bits"
        raise ValueError(f"{owner}: {name} is {show(seed)}, expected {expected}")
    return np.random.default_rng(seed)


def as_mapping(owner: str, name: str, value: Any) -> Mapping[Any, Any]:
    """`value` if it is a mapping, else TypeError."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{owner}: {name} is {type(value).__name__}, expected a mapping")
    return value


def as_list(owner: str, name: str, value: Any, expected: str) -> list[Any]:
    """The items of any iterable that has an order; TypeError for the others, mappings and text."""
    if not isinstance(value, (str, bytes, bytearray, AbstractSet, Mapping)):
        try:
            items = iter(value)
        except Exception:  # which says nothing of the argument
            pass
        else:
            return list(items)
    raise TypeError(f"{owner}: {name} is {show(value)}, expected {expected}")


def make_by_name(what: str, table: Mapping[str, Callable[..., T]], config: Mapping[str, Any]) -> T:
    """The entry of `table` that ``config["name"]`` names, called with the rest; ValueError if that fails."""
    options = dict(as_mapping(what, "config", config))
    name = options.pop("name", None)
    if not isinstance(name, str) or name not in table:
        raise ValueError(f"{what}: name is {show(name)}, expected one of {list(table)}")
    try:
        return table[name](**options)
    except TypeError as error:
        raise ValueError(f"{what}: {name} can't be made from {show(options)}: {error}") from error


# ---- arrays ---------------------------------------------------------------------------------------


def see(owner: str, name: str, value: Any) -> Array:
    """Whatever NumPy can see as an array: arrays, buffers, DLPack, nested sequences; else TypeError."""
    if type(value) is not np.ndarray:
        try:
            if _is_masked(value):
                value = None
            elif not hasattr(value, "__array__") and hasattr(value, "__dlpack__"):
                value = np.from_dlpack(value)
            else:
                value = np.asarray(value)
        except MemoryError:
            raise
        except Exception as error:  # whatever a foreign object raises when it is asked for its numbers
            raise TypeError(f"{owner}: {name} cannot be seen as an array: {error}") from error
        if value is None:
            raise TypeError(f"{owner}: {name} is a masked array, whose mask would be lost; fill it first")
    array: Array = value
    if array.size >= MOST_ELEMENTS:
        raise ValueError(f"{owner}: {name} has shape {array.shape}, more elements than any memory holds")
    return array


def _is_masked(value: Any) -> bool:
    """Whether `value` is a masked array, or holds one at any depth of its lists and tuples."""
    if isinstance(value, (list, tuple)):
        kinds = set(map(type, value))  # far fewer than there are items
        return any(issubclass(kind, (list, tuple, np.ma.MaskedArray)) for kind in kinds) and any(
            map(_is_masked, value)
        )
    return isinstance(value, np.ma.MaskedArray)


def as_real(owner: str, name: str, value: Any) -> Array:
    """`value` as an array of its own dtype; TypeError for what is not real."""
    array = see(owner, name, value)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{owner}: {name} has dtype {array.dtype}, expected a real dtype")
    return array


def as_array(owner: str, name: str, value: Any, dtype: np.dtype[Any] | None = None) -> Array:
    """`value` as a C-contiguous array of `dtype` (None: its own float32 or float64).

    TypeError for what is not real.
    """
    value = as_real(owner, name, value)
    if dtype is None:
        dtype = value.dtype.newbyteorder("=")
        if dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise TypeError(f"{owner}: {name} has dtype {value.dtype}, expected float32 or float64")
    # order="C" gives up 0-d and C-contiguous arrays uncopied; a misaligned one is copied after all.
    if value.dtype.itemsize <= dtype.itemsize:
        array: Array = np.asarray(value, dtype, order="C")
    else:
        with np.errstate(over="ignore"):  # what is too large for `dtype` is an infinity there
            array = np.asarray(value, dtype, order="C")
    return array if array.flags.aligned else array.copy()


def as_integers(owner: str, name: str, value: Any, expected: str = "integers") -> Array:
    """`value` as an array of its own integer dtype; an empty list, which has a float dtype, will do."""
    array = see(owner, name, value)
    if array.dtype.kind not in "iu" and (array.size or array.dtype.kind != "f"):
        raise TypeError(f"{owner}: {name} has dtype {array.dtype}, expected {expected}")
    return array


def as_ids(owner: str, name: str, value: Any, count: int, limit: str) -> Array:
    """Ids in 0 ... count - 1, as an array of their own integer dtype; ValueError names the worst.

    `limit` is the name of `count`.
    """
    ids = as_integers(owner, name, value, "integer ids")
    if ids.size:
        # What the methods min and max call, at half their time for few ids.
        low, high = int(np.minimum.reduce(ids, axis=None)), int(np.maximum.reduce(ids, axis=None))
        if low < 0 or high >= count:
            worst = low if low < 0 else high
            raise ValueError(f"{owner}: {name} has id {worst}, expected 0 <= id < {limit} = {count}")
    return ids


def as_engine_array(value: Array, dtype: np.dtype[Any]) -> Array:
    """`value`, which is real, as the engine takes sequences: of `dtype`, aligned, the last axis contiguous.

    All other axes may lie as they like, so most views need no copy.
    """
    contiguous = value.ndim and (value.shape[-1] == 1 or value.strides[-1] == dtype.itemsize)
    steps_fit = all(stride % dtype.itemsize == 0 for stride in value.strides)
    if value.dtype == dtype and contiguous and steps_fit and value.flags.aligned:
        return value
    return as_array("", "", value, dtype)


def hold(*arrays: Array | None) -> list[Any]:
    """What keeps the memory of `arrays`, some of them the caller's, where it is while the result lives.

    NumPy resizes no array to which there is a weak reference, whatever `refcheck` says.
    """
    owners = []
    for array in arrays:
        if array is not None:
            while isinstance(array.base, np.ndarray):
                array = array.base
            owners.append(weakref.ref(array))
    return owners


def check_shape(owner: str, name: str, array: Array, letters: str, shape: tuple[int, ...]) -> None:
    """ValueError unless `array` has `shape`; `letters` says the same in the documentation's letters."""
    if array.shape != shape:
        raise ValueError(f"{owner}: {name} has shape {array.shape}, expected {letters} = {shape}")


def check_ndim(owner: str, name: str, array: Array, *letters: str) -> None:
    """ValueError unless `array` has as many dimensions as one of the shapes in `letters`."""
    if array.ndim not in [len(shape.strip("(,)").split(",")) for shape in letters]:
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
    array = as_integers(owner, "lengths", lengths)
    check_shape(owner, "lengths", array, "(B,)", (B,))
    bad = np.flatnonzero((array < 0) | (array > T))
    if bad.size:
        raise ValueError(f"{owner}: lengths[{bad[0]}] is {array[bad[0]]}, expected 0 <= length <= T = {T}")
    return None if np.all(array == T) else array.astype(np.int64)


class Given(NamedTuple):
    """What a caller says of the steps of a batch. None: nothing."""

    lengths: Any = None
    mask: Any = None
    reset: Any = None
    batch_sizes: Any = None


class Steps(NamedTuple):
    """Which steps of a batch (T, B) are real, and where episodes begin. None: all are; none does."""

    T: int
    B: int
    lengths: Array | None = None  #: (B,) of integers
    mask: Array | None = None  #: (T, B) of bool
    reset: Array | None = None  #: (T, B) of bool
    #: (T,) of integers: sequences are packed rows, and step t has the first batch_sizes[t] rows of the batch
    batch_sizes: Array | None = None

    @property
    def are_all(self) -> bool:
        """Whether every step is real, and no episode begins, in sequences (T, B, ...)."""
        return self.lengths is None and self.mask is None and self.reset is None and self.batch_sizes is None

    def real(self) -> Array:
        """(T, B) of bool: t < length and mask, or b < batch size."""
        real = np.ones((self.T, self.B), bool) if self.mask is None else self.mask.copy()
        if self.lengths is not None:
            real &= np.arange(self.T)[:, None] < self.lengths
        if self.batch_sizes is not None:
            real &= np.arange(self.B) < self.batch_sizes[:, None]
        return real


def with_width(layout: str, width: str) -> str:
    """The letters of sequences in this layout: "(T, B)" and "I" are "(T, B, I)"."""
    return f"{layout.rstrip(',)')}, {width})"


def as_steps(owner: str, given: Given, shape: tuple[int, ...], layout: str = "(T, B)") -> Steps:
    """What the caller says of the steps of x, whose axes but the last are `shape`, checked.

    `layout` is their letters, as well as those of mask and reset: (T, B), (B, T), (T,) where B is 1, or (N,)
    with batch_sizes.
    """
    if given.batch_sizes is not None:
        return _as_packed_steps(owner, given, shape[0])
    T, B = {"(T, B)": shape, "(B, T)": shape[::-1], "(T,)": (*shape, 1)}[layout]
    marks = []
    for name, value in (("mask", given.mask), ("reset", given.reset)):
        array = None
        if value is not None:
            array = as_marks(owner, name, value)
            check_shape(owner, name, array, layout, shape)
            array = array.T if layout == "(B, T)" else array.reshape(T, B)
            array = None if array.all() == array.any() == (name == "mask") else array
        marks.append(array)
    return Steps(T, B, as_lengths(owner, given.lengths, T, B), *marks)


def _as_packed_steps(owner: str, given: Given, N: int) -> Steps:
    """PyTorch's batch_sizes of N packed rows."""
    for name, value in given._asdict().items():
        if name != "batch_sizes" and value is not None:
            raise ValueError(f"{owner}: batch_sizes and {name} are both given, expected one of them")
    sizes = as_integers(owner, "batch_sizes", given.batch_sizes)
    check_ndim(owner, "batch_sizes", sizes, "(T,)")
    small, rising = np.flatnonzero(sizes < 1), np.flatnonzero(sizes[1:] > sizes[:-1])
    if small.size:
        t = small[0]
        raise ValueError(f"{owner}: batch_sizes[{t}] is {sizes[t]}, expected at least 1")
    if rising.size:
        t = rising[0] + 1
        raise ValueError(
            f"{owner}: batch_sizes[{t}] is {sizes[t]}, expected at most the one before, {sizes[t - 1]}"
        )
    total = int(sizes.sum(dtype=np.float64))  # exact if it is N: no sum wraps around
    if total != N:
        raise ValueError(f"{owner}: batch_sizes have the sum {total}, expected N = {N}, the rows of x")
    return Steps(len(sizes), int(sizes[0]) if N else 0, batch_sizes=sizes.astype(np.int64))


def as_marks(owner: str, name: str, value: Any) -> Array:
    """An array of booleans, or of integers 0 and 1."""
    array = see(owner, name, value)
    if array.dtype.kind not in "biu" and array.size:
        raise TypeError(f"{owner}: {name} has dtype {array.dtype}, expected booleans")
    if array.dtype.kind != "b":
        bad = array[(array != 0) & (array != 1)]
        if bad.size:
            raise ValueError(f"{owner}: {name} holds {bad[0]}, expected booleans, or 0 and 1")
        array = array.astype(bool)
    return array


def as_rows(owner: str, rows: Any, B: int) -> Array:
    """Which of B rows: integers in -B..B-1 or a mask (B,); None is all of them."""
    if rows is None:
        return np.arange(B)
    array = np.atleast_1d(see(owner, "rows", rows))
    if array.dtype.kind == "b":
        check_shape(owner, "rows", array, "(B,)", (B,))
        return np.flatnonzero(array)
    array = as_integers(owner, "rows", array, "integers or booleans")
    check_ndim(owner, "rows", array, "(rows)")
    bad = np.flatnonzero((array < -B) | (array >= B))
    if bad.size:
        raise ValueError(f"{owner}: rows[{bad[0]}] is {array[bad[0]]}, expected {-B} <= row < B = {B}")
    return array.astype(np.intp)
