"""Files that are whole or not there: atomic writing, and safetensors read as if an enemy had written them.

A file holds one document, any tree of dicts, lists, strings, numbers and arrays. The arrays are its
tensors; the rest is JSON, the entry "fastrnn" of the metadata (the only one, because safetensors writes
several in random order, and the same document shall give the same bytes):

    kind       "model" or "checkpoint"
    version    1
    document   the tree, with {"$tensor": name} where an array belongs
    sha256     of all that, tensors included; a program that changes the file on purpose leaves it out

Nothing in a file is ever executed, and no size that it declares is believed before it has been compared
with the size of the file.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BufferedReader
from typing import Any, NamedTuple

import numpy as np

from .arguments import Array

__all__ = [
    "TensorFile",
    "TensorInfo",
    "as_path",
    "check_like",
    "open_file",
    "read_file",
    "write_atomically",
    "write_file",
]

VERSION = 1

#: Longer headers are neither written nor read: JSON takes tens of bytes of memory for each of its own.
MAX_HEADER = 1 << 25

_DTYPES = {
    "F32": "<f4",
    "F64": "<f8",
    "I32": "<i4",
    "I64": "<i8",
    "U32": "<u4",
    "U64": "<u8",
}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}

#: What code raises when data are not as it expects them.
_FAULTS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)

Path = str | os.PathLike[str]


class TensorInfo(NamedTuple):
    """What the header says of one tensor; the bytes are ``[begin, end)`` of what follows the header."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


# ---------------------------------------------------------------------------------------------- writing


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that, whatever happens, `path` is either what it was or all of `data`.

    A temporary file beside it is written, synced and renamed over it, and the directory is synced. If
    the process is killed in between, the temporary file (a dot, 16 digits, ``.tmp``) may be left over.

    Parameters
    ----------
    path
        Where to; a symbolic link is followed. A file that is there already keeps its permissions.
    data
        The whole contents.

    Raises
    ------
    OSError
        If it cannot be written, or something is there that is no regular file: a directory, a device. What
        was there is then still there, and the temporary file isn't.
    ValueError, TypeError
        If `path` is empty, or no path.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "a")
    >>> write_atomically(path, b"abc")
    >>> path.read_bytes()
    b'abc'
    """
    path = as_path("write", path)
    try:
        _replace(os.path.realpath(path), _mode_of(path), data)
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, path) from error  # not the name of the temporary file


def as_path(owner: str, path: Any, name: str = "path") -> str:
    """The path of a file, as a string; TypeError or ValueError names the argument."""
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise TypeError(f"{owner}: {name} is {path!r}, expected the path of a file")
    result = os.fspath(path)
    if not result or "\0" in result:
        raise ValueError(f"{owner}: {name} is {result!r}, expected the path of a file")
    return result


def _mode_of(path: str) -> int | None:
    """The permissions of the regular file at `path`, None if there is nothing; OSError for anything else."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if not path.endswith(os.sep):
            return None
        mode = stat.S_IFDIR
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "Not a regular file")
    return stat.S_IMODE(mode)


def _replace(target: str, mode: int | None, data: bytes) -> None:
    directory = os.path.dirname(target)
    temporary = os.path.join(directory, f".{os.urandom(8).hex()}.tmp")  # short: names have a limit
    try:
        with open(temporary, "xb") as file:
            if mode is not None and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_directory(directory)


def _sync_directory(directory: str) -> None:
    """Make a rename in it last; only POSIX can open a directory for that."""
    if os.name == "posix":
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_file(path: Path, kind: str, document: Mapping[str, Any]) -> None:
    """Write `document` to `path`, atomically.

    Parameters
    ----------
    path
        Where to.
    kind
        What the file is, ``"model"`` or ``"checkpoint"``.
    document
        Dicts with string keys, lists, tuples (read back as lists), strings, numbers, booleans, None
        and arrays of real dtype.

    Raises
    ------
    TypeError
        For anything else in the document.
    ValueError
        If what isn't arrays would take more than `MAX_HEADER` bytes.
    """
    from safetensors.numpy import save

    tensors: dict[str, Array] = {}
    content = {"kind": kind, "version": VERSION, "document": _pack(document, (), tensors)}
    content["sha256"] = _digest(content, tensors)
    data = save(tensors, {"fastrnn": json.dumps(content, allow_nan=False)})
    if int.from_bytes(data[:8], "little") > MAX_HEADER:
        raise ValueError(f"{os.fspath(path)}: the metadata takes more than {MAX_HEADER} bytes")
    write_atomically(path, data)


def _pack(value: Any, path: tuple[str, ...], tensors: dict[str, Array]) -> Any:
    """`value` as JSON, its arrays moved to `tensors`."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, np.ndarray):
        return {"$tensor": _add_tensor("/".join(path), value, tensors)}
    if isinstance(value, (list, tuple)):
        return [_pack(item, (*path, str(index)), tensors) for index, item in enumerate(value)]
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str) or key.startswith("$"):
                raise TypeError(f"{'/'.join(path)}: a key is {key!r}, expected a string without $ before it")
        return {key: _pack(item, (*path, key), tensors) for key, item in value.items()}
    raise TypeError(f"{'/'.join(path)} is {type(value).__name__}, expected JSON values or arrays")


def _add_tensor(name: str, array: Array, tensors: dict[str, Array]) -> str:
    if array.dtype not in _CODES:
        raise TypeError(f"{name} has dtype {array.dtype}, expected one of {[str(d) for d in _CODES]}")
    while name in tensors:  # {"a": {"b": array}, "a/b": array}
        name += "'"
    tensors[name] = np.require(array, requirements="C")
    return name


def _digest(content: Mapping[str, Any], tensors: Mapping[str, Array]) -> str:
    """The same for the same contents, in whatever order the file has the tensors."""
    sha = hashlib.sha256()
    sha.update(json.dumps([content["kind"], content["version"], content["document"]]).encode())
    for name in sorted(tensors):
        array = tensors[name].astype(tensors[name].dtype.newbyteorder("<"), copy=False)
        sha.update(json.dumps([name, _CODES[tensors[name].dtype], array.shape]).encode())
        sha.update(array.reshape(-1).view(np.uint8).data)
    return sha.hexdigest()


# ---------------------------------------------------------------------------------------------- reading


class TensorFile:
    """An open file whose header is sound, of which no tensor has been read yet.

    Attributes
    ----------
    tensors : dict of str to TensorInfo
        What there is to read.
    document : Any
        The JSON document, with ``{"$tensor": name}`` where an array belongs.
    """

    def __init__(self, file: BufferedReader, kind: str) -> None:
        self._file = file
        size = os.fstat(file.fileno()).st_size
        header = _read_header(file, size)
        self._content = _as_content(header.pop("__metadata__", None), kind)
        self._begin = file.tell()
        self.tensors = _as_tensor_infos(header, size - self._begin)
        self.document = self._content["document"]

    def read(self) -> dict[str, Array]:
        """All tensors, after comparing the checksum, if there is one."""
        # Empty, not zeros: the header has been checked to add up to the size of the file.
        data = np.empty(max((info.end for info in self.tensors.values()), default=0), np.uint8)
        self._file.seek(self._begin)
        if self._file.readinto(data.data) != data.size:
            raise ValueError("the file was cut short while it was being read")
        arrays = {name: _as_array(info, data[info.begin : info.end]) for name, info in self.tensors.items()}
        if "sha256" in self._content and self._content["sha256"] != _digest(self._content, arrays):
            raise ValueError("the contents do not have the checksum that was written with them")
        return arrays

    def read_document(self) -> Any:
        """The document with its arrays in their places."""
        arrays = self.read()
        document = _unpack(self.document, arrays)
        if arrays:
            raise ValueError(f"there are tensors that the document does not mention: {_some(arrays)}")
        return document


@contextmanager
def open_file(path: Path, kind: str) -> Iterator[TensorFile]:
    """Open what `write_file` wrote, and name the file in every ValueError until it is closed.

    Parameters
    ----------
    path
        The file.
    kind
        What it must be, ``"model"`` or ``"checkpoint"``.

    Raises
    ------
    ValueError
        If the file is damaged, incomplete, of another kind or not from here: names file and fault. The
        errors that the body of the ``with`` raises about what it has read become such a ValueError too.
    FileNotFoundError, OSError
        If it cannot be opened.
    """
    with open(as_path("load", path), "rb") as file:
        try:
            yield TensorFile(file, kind)
        except _FAULTS as fault:
            raise ValueError(f"{os.fspath(path)}: {fault}") from fault


def read_file(path: Path, kind: str) -> Any:
    """The document that `write_file` wrote; errors as for `open_file`.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "a.safetensors")
    >>> write_file(path, "checkpoint", {"step": 3, "w": np.ones(2)})
    >>> read_file(path, "checkpoint")
    {'step': 3, 'w': array([1., 1.])}
    """
    with open_file(path, kind) as file:
        return file.read_document()


def check_like(name: str, value: Any, like: Any) -> None:
    """ValueError unless `value`, which comes from a file, is as `like` describes it.

    Parameters
    ----------
    name
        What it is, for messages.
    value
        A document or a part of one.
    like
        A mapping or a sequence of descriptions (the same keys, the same length), an array (the same shape
        and dtype), a range (an integer in it), None, or a type: exactly that one, `float` for a finite
        number, `object` for anything.

    Examples
    --------
    >>> check_like("run", {"epoch": 3, "loss": 0.5}, {"epoch": range(10), "loss": float})
    """
    if isinstance(like, Mapping):
        if not isinstance(value, dict) or value.keys() != like.keys():
            raise ValueError(f"{name} is not an object with the keys {list(like)}")
        for key, item in like.items():
            check_like(f"{name}.{key}", value[key], item)
    elif isinstance(like, (list, tuple)):
        if not isinstance(value, list) or len(value) != len(like):
            raise ValueError(f"{name} is not a list of {len(like)}")
        for index, item in enumerate(like):
            check_like(f"{name}[{index}]", value[index], item)
    elif isinstance(like, np.ndarray):
        if not isinstance(value, np.ndarray) or (value.shape, value.dtype) != (like.shape, like.dtype):
            raise ValueError(f"{name} is not an array of {like.dtype} with shape {like.shape}")
    elif isinstance(like, range):
        if type(value) is not int or value not in like:
            raise ValueError(
                f"{name} is {_short(value)}, expected an integer from {like.start} to {like.stop - 1}"
            )
    elif like is None:
        if value is not None:
            raise ValueError(f"{name} is {_short(value)}, expected null")
    elif like is not object and (type(value) is not like or (like is float and not math.isfinite(value))):
        finite = "a finite " if like is float else ""
        raise ValueError(f"{name} is {_short(value)}, expected {finite}{like.__name__}")


def _short(value: Any) -> str:
    """For a message, however long it is in a hostile file."""
    return repr(value)[:80] if isinstance(value, (int, float)) else repr(str(value)[:80])


def _some(names: Iterable[str]) -> str:
    """A few names for a message, however many a hostile file has."""
    names = sorted(names)
    return ", ".join(map(_short, names[:3])) + (", ..." if len(names) > 3 else "")


def _parse(text: str | bytes) -> Any:
    """JSON, without what Python adds to it (NaN, repeated keys, numbers too large for a float)."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            counts = Counter(name for name, _ in items)
            raise ValueError(f"repeated: {_some(name for name in counts if counts[name] > 1)}")
        return result

    def constant(name: str) -> float:
        raise ValueError(f"{name} is no JSON number")

    def number(digits: str) -> float:
        value = float(digits)
        return value if math.isfinite(value) else constant(digits[:20])

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_float=number)
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None


def _read_header(file: BufferedReader, size: int) -> dict[str, Any]:
    if size < 8:
        raise ValueError(f"not a safetensors file: {size} bytes are too few")
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise ValueError(
            f"incomplete or not a safetensors file: a header of {length} bytes in a file of {size}"
        )
    if length > MAX_HEADER:
        raise ValueError(f"the header has {length} bytes, expected at most {MAX_HEADER}")
    try:
        header = _parse(file.read(length).decode())
    except ValueError as fault:
        raise ValueError(f"the header is not sound JSON: {fault}") from None
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    return header


def _as_content(metadata: Any, kind: str) -> dict[str, Any]:
    """What `write_file` put into the metadata."""
    if not isinstance(metadata, dict) or not isinstance(metadata.get("fastrnn"), str):
        raise ValueError("not written by fastrnn: the metadata have no entry 'fastrnn'")
    content = _parse(metadata["fastrnn"])
    if len(metadata) > 1 or not isinstance(content, dict) or not {"kind", "version"} <= content.keys():
        raise ValueError("the metadata are not as fastrnn writes them")
    if content["version"] != VERSION or content["version"] is True:
        raise ValueError(f"the format has version {_short(content['version'])}, expected {VERSION}")
    if content["kind"] != kind:
        raise ValueError(f"the file is a {_short(content['kind'])}, expected a {kind!r}")
    if content.keys() - {"sha256"} != {"kind", "version", "document"}:
        raise ValueError("the metadata have no document, or unknown keys")
    return content


def _as_tensor_infos(header: dict[str, Any], size: int) -> dict[str, TensorInfo]:
    """The entries of the header; their bytes must be the `size` bytes of the body, each just once."""
    infos = {name: _as_tensor_info(name, entry) for name, entry in header.items()}
    position = 0
    for name, info in sorted(infos.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            raise ValueError(f"tensor {_short(name)} begins at byte {info.begin}, expected {position}")
        position = info.end
    if position != size:
        raise ValueError(f"the tensors take {position} bytes, but the file has {size} for them")
    return infos


def _as_tensor_info(name: str, entry: Any) -> TensorInfo:
    fault = f"the entry of tensor {_short(name)} is wrong: "
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{fault}expected dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise ValueError(f"{fault}dtype is {_short(code)}, expected one of {list(_DTYPES)}")
    if not _are_sizes(shape) or len(shape) > 32:
        raise ValueError(f"{fault}the shape is not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{fault}data_offsets are not two sizes")
    dtype = np.dtype(_DTYPES[code])
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{fault}{end - begin} bytes for {code} of shape {tuple(shape)}")
    return TensorInfo(dtype, tuple(shape), begin, end)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _as_array(info: TensorInfo, data: Array) -> Array:
    array = data.view(info.dtype).reshape(info.shape)
    return np.require(array.astype(info.dtype.newbyteorder("="), copy=False), requirements="A")


def _unpack(value: Any, arrays: dict[str, Array]) -> Any:
    """Undo `_pack`; each array is taken out of `arrays`."""
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        name = value["$tensor"]
        if len(value) != 1 or not isinstance(name, str) or name not in arrays:
            raise ValueError(f"tensor {_short(name)} is missing")
        return arrays.pop(name)
    if "$float" in value:
        if len(value) != 1 or value["$float"] not in ("inf", "-inf", "nan"):
            raise ValueError("a $float is not inf, -inf or nan")
        return float(value["$float"])
    return {key: _unpack(item, arrays) for key, item in value.items()}
