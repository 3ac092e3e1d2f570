"""Values that no callable expects: wrong kinds, extreme numbers, odd arrays, objects that raise or lie.

Three tables, each from a label to a function; a label is all that a report has to say.

    WRONG      () -> value                    stands in for any argument
    DERIVED    valid value -> hostile value   raises `DoesNotApply` for a value that it cannot change
    TAMPERS    array -> None                  changes an array in place, between two calls
"""

from __future__ import annotations

import array
import collections
import datetime
import enum
import fractions
import os
import pathlib
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

import numpy as np

#: Elements of an array that takes no memory until somebody copies it.
HUGE = 2**40


class DoesNotApply(Exception):
    """The valid value is not of a kind that a mutation can change."""


class Outrage(Exception):
    """What hostile objects raise; no part of the package may expect it."""


# ---- objects that raise or lie ---------------------------------------------------------------------


def _object(**methods: Callable[..., Any]) -> Any:
    """An object of a class of its own with these special methods, `array=` for ``__array__``."""
    return type("Hostile", (), {f"__{name}__": method for name, method in methods.items()})()


def _raise(*_: Any, **__: Any) -> Any:
    raise Outrage("raised by the argument itself")


def _raising(name: str) -> Callable[[], Any]:
    if name == "getitem":
        return lambda: _object(len=lambda self: 3, getitem=__getitem__)
    return lambda: _object(**{name: _raise}, **({"getitem": _three} if name == "len" else {}))


def __getitem__(self: Any, index: Any) -> Any:  # so that it can be told in a traceback
    _raise()


def _three(self: Any, index: Any) -> float:
    return [0.0, 0.0, 0.0][index]


def _growing_array() -> Any:
    """An object whose ``__array__`` gives another shape at each call."""
    sizes = iter(range(1, 100))
    return _object(array=lambda self, dtype=None, copy=None: np.zeros(next(sizes)))


_LIES: dict[str, Callable[[], Any]] = {
    "__len__ is 2**62": lambda: _object(len=lambda self: 2**62, getitem=_three),
    "__len__ is -1": lambda: _object(len=lambda self: -1, getitem=_three),
    "__len__ is 3, __getitem__ ends at once": lambda: _object(
        len=lambda self: 3, getitem=lambda self, index: [][index]
    ),
    "__len__ is 'x'": lambda: _object(len=lambda self: "x", getitem=_three),
    "__iter__ is None": lambda: _object(iter=lambda self: None),
    "__iter__ yields objects": lambda: _object(iter=lambda self: iter([object()] * 3)),
    "__index__ is 'x'": lambda: _object(index=lambda self: "x"),
    "__index__ is 10**30": lambda: _object(index=lambda self: 10**30),
    "__float__ is 'x'": lambda: _object(float=lambda self: "x"),
    "__float__ is nan": lambda: _object(float=lambda self: float("nan")),
    "__array__ is None": lambda: _object(array=lambda self, dtype=None, copy=None: None),
    "__array__ is a list": lambda: _object(array=lambda self, dtype=None, copy=None: [1.0]),
    "__array__ is of objects": lambda: _object(
        array=lambda self, dtype=None, copy=None: np.array([self, self], object)
    ),
    "__array__ grows": _growing_array,
    "__array_interface__ is 'x'": lambda: type("Hostile", (), {"__array_interface__": "x"})(),
    "__array_interface__ is {}": lambda: type("Hostile", (), {"__array_interface__": {}})(),
    "__dlpack__ is None": lambda: _object(dlpack=lambda self, **_: None, dlpack_device=lambda self: (1, 0)),
    "__fspath__ is 3": lambda: _object(fspath=lambda self: 3),
    "__bool__ is 'x'": lambda: _object(bool=lambda self: "x"),
    "__class__ is dict": lambda: type("Hostile", (), {"__class__": property(lambda self: dict)})(),
    "__class__ is ndarray": lambda: type("Hostile", (), {"__class__": property(lambda self: np.ndarray)})(),
    "__class__ is int": lambda: type("Hostile", (), {"__class__": property(lambda self: int)})(),
}

_RAISERS = ("array", "dlpack", "len", "iter", "index", "float", "bool", "eq", "fspath", "getitem", "call")


# ---- wrong kinds and numbers -------------------------------------------------------------------------


class _Int(int):
    """An integer that claims to be another one."""

    def __index__(self) -> int:
        return -7


class _Enum(enum.IntEnum):
    TWO = 2


_KINDS: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "'junk'": lambda: "junk",
    "''": lambda: "",
    "a lone surrogate": lambda: "\ud800",
    "a NUL": lambda: "a\0b",
    "{}": lambda: "{} {0!r} {x.__class__}",
    "a long str": lambda: "x" * 100_000,
    "bytes": lambda: b"junk",
    "bytearray": lambda: bytearray(b"junk"),
    "memoryview": lambda: memoryview(b"junk"),
    "array.array": lambda: array.array("d", [1.0, 2.0]),
    "object()": object,
    "set": lambda: {1, 2},
    "frozenset": lambda: frozenset((1, 2)),
    "dict": lambda: {"a": 1},
    "empty dict": dict,
    "dict with keys of many kinds": lambda: {1: 2, None: 3, (): 4},
    "[]": list,
    "()": tuple,
    "[None]": lambda: [None],
    "['a', 1, None]": lambda: ["a", 1, None],
    "a ragged list": lambda: [[1.0], [1.0, 2.0]],
    "a list that holds itself": lambda: (lambda items: items.append(items) or items)([]),
    "a deep list": lambda: (lambda deep: [deep := [deep] for _ in range(500)][-1])([]),
    "a lambda": lambda: lambda *args, **kwargs: 1.0,
    "1j": lambda: 1j,
    "a generator": lambda: (n for n in range(3)),
    "a used generator": lambda: iter(()),
    "a generator that raises": lambda: (_raise() for _ in range(3)),
    "int": lambda: int,
    "type": lambda: type,
    "Ellipsis": lambda: ...,
    "NotImplemented": lambda: NotImplemented,
    "an exception": lambda: ValueError("an argument"),
    "a module": lambda: os,
    "a slice": lambda: slice(None),
    "range(3)": lambda: range(3),
    "a deque": lambda: collections.deque([1, 2]),
    "a timedelta": lambda: datetime.timedelta(seconds=-1),
    "a datetime": lambda: datetime.datetime(2020, 1, 1),
    "a Path": lambda: pathlib.Path("no", "such", "directory", "file"),
    "a directory": lambda: os.curdir,
    "a RandomState": lambda: np.random.RandomState(0),
    "a dtype": lambda: np.dtype("f4"),
    "a structured dtype": lambda: np.dtype([("a", "f4")]),
}

_NUMBERS: dict[str, Any] = {
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "-1": -1,
    "0": 0,
    "-0.0": -0.0,
    "1": 1,
    "1.0": 1.0,
    "1.5": 1.5,
    "1e-320": 1e-320,
    "1e308": 1e308,
    "2**31 - 1": 2**31 - 1,
    "2**31": 2**31,
    "2**63": 2**63,
    "2**64": 2**64,
    "-2**63": -(2**63),
    "10**400": 10**400,
    "-10**400": -(10**400),
    "10**5000": 10**5000,  # int to str refuses so many digits
    "_Int(2)": _Int(2),
    "_Enum.TWO": _Enum.TWO,
    "Fraction": fractions.Fraction(1, 2),
    "Decimal": Decimal("0.5"),
    "Decimal nan": Decimal("nan"),
    "Decimal snan": Decimal("snan"),  # comparing it raises
    "np.bool_": np.True_,
    "np.int8(-1)": np.int8(-1),
    "np.int64(2)": np.int64(2),
    "np.uint64(2**64 - 1)": np.uint64(2**64 - 1),
    "np.float16(0.5)": np.float16(0.5),
    "np.float32(nan)": np.float32("nan"),
    "np.float64(inf)": np.float64("inf"),
    "np.longdouble(0.5)": np.longdouble("0.5"),
    "np.longdouble(1e4000)": np.longdouble("1e4000"),
    "np.complex64": np.complex64(1j),
    "np.datetime64": np.datetime64("2020-01-01"),
    "np.timedelta64": np.timedelta64(1, "s"),
    "np.timedelta64(NaT)": np.timedelta64("NaT", "s"),
    "np.str_": np.str_("junk"),
    "np.bytes_": np.bytes_(b"junk"),
    "np.void": np.void(b"junk"),
    "array of int ()": np.array(2),
    "array of float ()": np.array(0.5),
    "array of object ()": np.array(object(), object),
    "array of int (1,)": np.array([2]),
    "array (0,)": np.zeros(0),
    "array (2,)": np.array([1.0, 2.0]),
}


def _number(value: Any) -> Callable[[], Any]:
    return lambda: value.copy() if isinstance(value, np.ndarray) else value


WRONG: dict[str, Callable[[], Any]] = (
    _KINDS
    | {f"number {label}": _number(value) for label, value in _NUMBERS.items()}
    | {f"__{name}__ raises": _raising(name) for name in _RAISERS}
    | _LIES
    | {
        "huge 1-d": lambda: np.broadcast_to(np.float32(1), HUGE),
        "huge 3-d": lambda: np.broadcast_to(np.float32(1), (2**14, 2**13, 2**13)),
        "huge 1-d of ints": lambda: np.broadcast_to(np.int64(1), HUGE),
        "huge 2-d of ints": lambda: np.broadcast_to(np.int64(1), (2**20, 2**20)),
    }
)

#: Valid where a count is wanted, and then the work is done: no fault.
LARGE_COUNTS = {"number 2**31 - 1"}


# ---- arrays, from a valid one ---------------------------------------------------------------------------


class _Subclass(np.ndarray):
    """An array of another class, which every view is of too."""


class _LyingShape(np.ndarray):
    """Says that it has another shape, to Python code only."""

    @property
    def shape(self) -> Any:  # type: ignore[override]
        return (7, 7, 7)


class _LyingDtype(np.ndarray):
    @property
    def dtype(self) -> Any:  # type: ignore[override]
        return np.dtype("f4")


class _Jealous(np.ndarray):
    """No view of it can be taken."""

    def __array_finalize__(self, source: Any) -> None:
        if isinstance(source, _Jealous):
            raise Outrage("raised by the argument itself")


def _misaligned(a: np.ndarray) -> np.ndarray:
    result = np.empty(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    result[...] = a
    return result


def _strided(a: np.ndarray) -> np.ndarray:
    result = np.zeros((*a.shape, 3), a.dtype)[..., 1]
    result[...] = a
    return result


def _read_only(a: np.ndarray) -> np.ndarray:
    a.flags.writeable = False
    return a


def _filled(value: Any) -> Callable[[np.ndarray], np.ndarray]:
    """Fills the array with the value, as far as its dtype can hold it."""

    def fill(a: np.ndarray) -> np.ndarray:
        if a.dtype.kind in "iu":
            limits = np.iinfo(a.dtype)
            a[...] = limits.max if value > 0 else limits.min
        else:
            a[...] = value
        return a

    return fill


def _one_nan(a: np.ndarray) -> np.ndarray:
    if a.dtype.kind != "f" or not a.size:
        raise DoesNotApply
    a.reshape(-1)[-1] = np.nan
    return a


def _structured(a: np.ndarray) -> np.ndarray:
    result = np.zeros(a.shape, [("a", a.dtype), ("b", "i4")])
    result["a"] = a
    return result


def _as_type(dtype: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda a: a.astype(dtype)


def _huge(a: np.ndarray) -> np.ndarray:
    """The same shape but for the first axis, without memory of its own."""
    return np.broadcast_to(a[:1], (HUGE // max(1, a[:1].size), *a.shape[1:]))


#: Changes of shape: a callable may blame another argument, which no longer fits.
_SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "0-d": lambda a: a.reshape(-1)[0].reshape(()),
    "one axis more": lambda a: a[np.newaxis],
    "one axis more at the end": lambda a: a[..., np.newaxis],
    "one axis less": lambda a: a[0],
    "flat": lambda a: a.reshape(-1),
    "64 axes": lambda a: a.reshape((1,) * (64 - a.ndim) + a.shape),
    "first axis longer": lambda a: np.concatenate([a, a[:1]]),
    "first axis shorter": lambda a: a[:-1],
    "last axis longer": lambda a: np.concatenate([a, a[..., :1]], axis=-1),
    "last axis shorter": lambda a: a[..., :-1],
    "second axis shorter": lambda a: a[:, :-1],
    "first axis of 0": lambda a: a[:0],
    "second axis of 0": lambda a: a[:, :0],
    "last axis of 0": lambda a: a[..., :0],
    "transposed": lambda a: a.T,
    "huge": _huge,
    "a list of lists": lambda a: a.tolist(),
    "a list of rows": lambda a: list(a),
    "a ragged list": lambda a: [a.tolist(), [a.tolist()]],
}

_DTYPES = (
    ">f4",
    ">f8",
    ">i8",
    "f2",
    "f4",
    "f8",
    "g",
    "i1",
    "i8",
    "u1",
    "u8",
    "?",
    "c8",
    "O",
    "S3",
    "U3",
    "M8[s]",
    "m8[s]",
)

_ARRAYS: dict[str, Callable[[np.ndarray], Any]] = {
    **_SHAPES,
    **{f"dtype {dtype}": _as_type(dtype) for dtype in _DTYPES},
    "dtype structured": _structured,
    "dtype StringDType": lambda a: a.astype(np.dtypes.StringDType()),
    "dtype V": lambda a: a.view(f"V{a.dtype.itemsize}"),
    "objects": lambda a: np.full(a.shape, object()),
    "Nones": lambda a: np.full(a.shape, None),
    "Fortran order": np.asfortranarray,
    "strided": _strided,
    "negative strides": lambda a: np.flip(np.flip(a).copy()),
    "stride 0": lambda a: np.broadcast_to(a[:1], a.shape),
    "misaligned": _misaligned,
    "read-only": _read_only,
    "masked": lambda a: np.ma.masked_array(a, np.arange(a.size).reshape(a.shape) % 2),
    "subclass": lambda a: a.view(_Subclass),
    "lying shape": lambda a: a.view(_LyingShape),
    "lying dtype": lambda a: a.view(_LyingDtype),
    "jealous": lambda a: a.view(_Jealous),
    "matrix": lambda a: np.asmatrix(a),
    "recarray": lambda a: a.view(np.recarray),
    "memoryview of it": memoryview,
    "all nan or largest": _filled(np.nan),
    "all inf or largest": _filled(np.inf),
    "all -inf or smallest": _filled(-np.inf),
    "all 1e38": lambda a: np.full_like(a, 1e38) if a.dtype.kind == "f" else np.full_like(a, 100),
    "one nan": _one_nan,
    "all -1": lambda a: np.full_like(a, -1),
    "__array__ of it": lambda a: _object(array=lambda self, dtype=None, copy=None: a),
    "__dlpack__ of it": lambda a: _object(dlpack=a.__dlpack__, dlpack_device=a.__dlpack_device__),
}


# ---- other values, from a valid one ------------------------------------------------------------------------


class _LyingMapping(Mapping):
    """Has every name, and then has not."""

    def __init__(self, names: Any) -> None:
        self._names = list(names)

    def __iter__(self) -> Any:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: Any) -> Any:
        raise KeyError(name)


class _DictSubclass(dict):
    def __missing__(self, name: Any) -> Any:
        return self


_MAPPINGS: dict[str, Callable[[dict], Any]] = {
    "key missing": lambda d: dict(list(d.items())[1:]),
    "key more": lambda d: d | {"more": 1},
    "key 7": lambda d: d | {7: 1},
    "keys of 7": lambda d: dict.fromkeys([7], *list(d.values())[:1]),
    "lying mapping": _LyingMapping,
    "items": lambda d: list(d.items()),
    "dict subclass": _DictSubclass,
}

_SEQUENCES: dict[str, Callable[[Any], Any]] = {
    "one item less": lambda s: s[:-1],
    "one item more": lambda s: s + s[:1],
    "twice": lambda s: s + s,
    "reversed": lambda s: s[::-1],
    "an iterator": iter,
    "a tuple of it": tuple,
    "a list of it": list,
    "a deque of it": collections.deque,
    "an array of objects": lambda s: np.array([*s, None], object)[:-1],
}

_TEXTS: dict[str, Callable[[str], Any]] = {
    "str subclass": lambda s: type("Text", (str,), {})(s),
    "upper case": str.upper,
    "with a NUL": lambda s: s + "\0",
    "with a surrogate": lambda s: s + "\udcff",
    "with a slash": lambda s: s + "/",
    "encoded": str.encode,
    "a PurePath": pathlib.PurePath,
    "np.str_ of it": np.str_,
    "a long name": lambda s: s + "x" * 300,
}


def _hollow(value: Any) -> Any:
    """An instance of the right class that was never initialised: it must not crash anything."""
    kind = type(value)
    if kind.__module__.partition(".")[0] in ("builtins", "numpy", "collections", "pathlib", "datetime"):
        raise DoesNotApply
    return kind.__new__(kind)


_INSTANCES: dict[str, Callable[[Any], Any]] = {"hollow": _hollow, "its class": type}


def _on_arrays(change: Callable[[np.ndarray], Any]) -> Callable[[Any], Any]:
    """`change` for arrays, and for lists of numbers as arrays."""

    def apply(value: Any) -> Any:
        if isinstance(value, (list, tuple)) and value and not isinstance(value[0], (int, float, list)):
            raise DoesNotApply
        if not isinstance(value, (np.ndarray, list, tuple)):
            raise DoesNotApply
        return change(np.array(value))

    return apply


def _on(kinds: Any, change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def apply(value: Any) -> Any:
        if not isinstance(value, kinds):
            raise DoesNotApply
        return change(value)

    return apply


DERIVED: dict[str, Callable[[Any], Any]] = (
    {f"array {label}": _on_arrays(change) for label, change in _ARRAYS.items()}
    | {f"mapping {label}": _on(dict, change) for label, change in _MAPPINGS.items()}
    | {f"sequence {label}": _on((list, tuple), change) for label, change in _SEQUENCES.items()}
    | {
        f"text {label}": _on((str, os.PathLike), lambda s, change=change: change(os.fspath(s)))
        for label, change in _TEXTS.items()
    }
    | {f"instance {label}": change for label, change in _INSTANCES.items()}
)

#: An array of another shape, or none at all: the fault may be another argument's.
SHAPES = {f"array {label}" for label in _SHAPES} | {
    label for label in WRONG if label.startswith(("huge", "number array", "None"))
}


def derive(label: str, valid: Any) -> Any:
    """The hostile value; DoesNotApply where the valid one cannot be changed like that."""
    try:
        return DERIVED[label](valid)
    except (DoesNotApply, ValueError, TypeError, IndexError, OverflowError, AttributeError) as error:
        raise DoesNotApply from error


# ---- in place ------------------------------------------------------------------------------------------


def _set(name: str, value: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], None]:
    return lambda a: setattr(a, name, value(a))


def _write(change: Callable[[np.ndarray], Any]) -> Callable[[np.ndarray], None]:
    def write(a: np.ndarray) -> None:
        a[...] = change(a.copy())

    return write


TAMPERS: dict[str, Callable[[np.ndarray], None]] = {
    "all nan or largest": _write(_filled(np.nan)),
    "all inf or smallest": _write(_filled(-np.inf)),
    "all -1": _write(lambda a: np.full_like(a, -1)),
    "all 0": _write(np.zeros_like),
    "shape flat": _set("shape", lambda a: (a.size,)),
    "shape reversed": _set("shape", lambda a: a.shape[::-1]),
    "shape 1 more": _set("shape", lambda a: (*a.shape, 1)),
    "dtype u1": _set("dtype", lambda a: "u1"),
    "dtype int": _set("dtype", lambda a: f"i{a.itemsize}"),
    "strides 0": _set("strides", lambda a: (0,) * a.ndim),
    "resized to nothing": lambda a: a.resize((0,), refcheck=False),
    "resized to less": lambda a: a.resize((1,) * a.ndim, refcheck=False),
    "resized to more": lambda a: a.resize((a.size + 5000,), refcheck=False),
    "read-only": lambda a: a.setflags(write=False),
    "writeable": lambda a: a.setflags(write=True),
}

#: These leave the numbers alone.
LAYOUT = {label for label in TAMPERS if not label.startswith("all ")}
