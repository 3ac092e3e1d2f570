"""Documents with arrays in safetensors files, which are read as if an enemy had written them.

A file holds one document, any tree of dicts, lists, strings, numbers and arrays. The arrays are its
tensors; the rest is JSON, the entry "fastrnn" of the metadata (the only one, because safetensors writes
several in random order, and the same document shall give the same bytes):

    kind       "model" or "checkpoint"
    version    1
    document   the tree, with {"$tensor": name} where an array belongs
    sha256     of all that, tensors included; a program that changes the file on purpose leaves it out

Nothing in a file is ever executed, and no size that it declares is believed before it has been compared
with the size of the file. The writer reads its own header back, so that every file that is written can be
read again.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from .arguments import Array, see, show
from .files import (
    MAX_BYTES,
    MAX_DEPTH,
    MAX_DIGITS,
    MAX_MARKS,
    Path,
    as_path,
    open_regular,
    parse_json,
    some,
    write_atomically,
)

__all__ = [
    "Path",
    "TensorFile",
    "TensorInfo",
    "as_path",
    "check_json",
    "check_like",
    "open_file",
    "read_file",
    "write_file",
]

VERSION = 1

#: A layer of as many arrays as a file may have tensors is made in less than a second.
MAX_TENSORS = 1 << 14

_DTYPES = {
    "F32": "<f4",
    "F64": "<f8",
    "I32": "<i4",
    "I64": "<i8",
    "U32": "<u4",
    "U64": "<u8",
}
_CODES = {np.dtype(dtype): code for code, dtype in _DTYPES.items()}

_TOO_LARGE = 10**MAX_DIGITS

#: What code raises when data are not as it expects them.
_FAULTS = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)


class TensorInfo(NamedTuple):
    """What the header says of one tensor; the bytes are ``[begin, end)`` of what follows the header."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int


# ---------------------------------------------------------------------------------------------- writing


def write_file(path: Path, kind: str, document: Mapping[str, Any]) -> None:
    """Write `document` to `path`, atomically, if `read_file` would give it back.

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
        For what is beyond the limits of `files`, cyclic, or would be changed by JSON.
    """
    from safetensors.numpy import save

    path = as_path("write", path)
    packer = _Packer()
    content = {"kind": kind, "version": VERSION, "document": packer.pack(document, ())}
    content["sha256"] = _digest(content, packer.tensors)
    data = save(packer.tensors, {"fastrnn": json.dumps(content, allow_nan=False)})
    try:
        same = TensorFile(io.BytesIO(data), len(data), kind).content == content
    except ValueError as fault:
        raise ValueError(f"{path}: what is to be written could not be read again: {fault}") from None
    if not same:
        raise ValueError(f"{path}: a string has two surrogates that JSON reads as one character")
    write_atomically(path, data)


def check_json(name: str, value: Any) -> None:
    """TypeError or ValueError names what in `value`, which is called `name`, can't be written as JSON."""
    _Packer(arrays=False).pack(value, (name,))


class _Packer:
    """Makes JSON of a document; the arrays go to `tensors`, or are a TypeError without `arrays`."""

    def __init__(self, *, arrays: bool = True) -> None:
        self.tensors: dict[str, Array] = {}
        self._arrays = arrays
        self._count = 0

    def pack(self, value: Any, path: tuple[str, ...]) -> Any:
        """`value`, which stands at `path` of the document, as JSON."""
        self._count += 1  # a few lists that hold each other are a document without end
        if self._count > MAX_MARKS:
            raise ValueError(f"{_where(path[:1])} has more than {MAX_MARKS} values in it")
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, (str, bool)):
            return value
        if isinstance(value, int):
            if not -_TOO_LARGE < value < _TOO_LARGE:
                raise ValueError(f"{_where(path)} is an integer of more than {MAX_DIGITS} digits")
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"$float": repr(float(value))}
        if isinstance(value, np.ndarray) and self._arrays:
            return {"$tensor": self._add(path, value)}
        if len(path) >= MAX_DEPTH:
            raise ValueError(f"{_where(path)} is nested more than {MAX_DEPTH} levels deep, or holds itself")
        if isinstance(value, (list, tuple)):
            return [self.pack(item, (*path, str(index))) for index, item in enumerate(value)]
        if isinstance(value, Mapping):
            for key in value:
                if not isinstance(key, str) or key.startswith("$"):
                    found = f"{_where(path)}: a key is {repr(key)[:80]}"
                    raise TypeError(f"{found}, expected a string without $ before it")
            return {key: self.pack(item, (*path, key)) for key, item in value.items()}
        expected = "JSON values or arrays" if self._arrays else "JSON values"
        raise TypeError(f"{_where(path)} is {type(value).__name__}, expected {expected}")

    def _add(self, path: tuple[str, ...], array: Array) -> str:
        """Put an array into `tensors`; returns its name there."""
        array = see("write", _where(path), array)
        if array.dtype not in _CODES:
            known = [str(dtype) for dtype in _CODES]
            raise TypeError(f"{_where(path)} has dtype {array.dtype}, expected one of {known}")
        name = "/".join(path).encode("utf-8", "backslashreplace").decode()  # safetensors takes no surrogates
        while name in self.tensors or name == "__metadata__":  # {"a": {"b": array}, "a/b": array}
            name += "'"
        self.tensors[name] = np.require(array, requirements="C")
        return name


def _where(path: tuple[str, ...]) -> str:
    """The place of a value in a document, for messages."""
    place = "/".join(path[:10])
    return f"{place[:80]}..." if len(path) > 10 or len(place) > 80 else place or "the document"


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
    content : dict
        What `write_file` put into the metadata.
    document : Any
        The JSON document in it, with ``{"$tensor": name}`` where an array belongs.
    """

    def __init__(self, file: io.BufferedIOBase, size: int, kind: str) -> None:
        self._file = file
        header = _read_header(file, size)
        self.content = _as_content(header.pop("__metadata__", None), kind)
        self._begin = file.tell()
        self.tensors = _as_tensor_infos(header, size - self._begin)
        self.document = self.content["document"]

    def read(self) -> dict[str, Array]:
        """All tensors, after comparing the checksum, if there is one."""
        # Empty, not zeros: the header has been checked to add up to the size of the file.
        data = np.empty(max((info.end for info in self.tensors.values()), default=0), np.uint8)
        self._file.seek(self._begin)
        if self._file.readinto(data.data) != data.size:
            raise ValueError("the file was cut short while it was being read")
        arrays = {name: _as_array(info, data[info.begin : info.end]) for name, info in self.tensors.items()}
        if "sha256" in self.content and self.content["sha256"] != _digest(self.content, arrays):
            raise ValueError("the contents do not have the checksum that was written with them")
        return arrays

    def outline(self) -> Any:
        """The document with a TensorInfo in place of each array, to be checked before any tensor is read."""
        unmentioned = dict(self.tensors)
        outline = _unpack(self.document, unmentioned)
        if unmentioned:
            raise ValueError(f"there are tensors that the document does not mention: {some(unmentioned)}")
        return outline

    def read_document(self) -> Any:
        """The document with its arrays in their places."""
        self.outline()
        return _unpack(self.document, self.read())


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
        If it cannot be opened, is no regular file, or is too large for the memory.
    """
    path = as_path("load", path)
    with open_regular(path) as (file, size):
        try:
            yield TensorFile(file, size, kind)
        except _FAULTS as fault:
            missing = "the document lacks " if isinstance(fault, KeyError) else ""
            raise ValueError(f"{path}: {missing}{str(fault)[:1000]}") from fault


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
        A document or a part of one, or of its outline.
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
        if not isinstance(value, (np.ndarray, TensorInfo)) or (value.shape, value.dtype) != (
            like.shape,
            like.dtype,
        ):
            raise ValueError(f"{name} is not an array of {like.dtype} with shape {like.shape}")
    elif isinstance(like, range):
        if type(value) is not int or value not in like:
            raise ValueError(
                f"{name} is {show(value)}, expected an integer from {like.start} to {like.stop - 1}"
            )
    elif like is None:
        if value is not None:
            raise ValueError(f"{name} is {show(value)}, expected null")
    elif like is not object and (type(value) is not like or (like is float and not math.isfinite(value))):
        finite = "a finite " if like is float else ""
        raise ValueError(f"{name} is {show(value)}, expected {finite}{like.__name__}")


def _read_header(file: io.BufferedIOBase, size: int) -> dict[str, Any]:
    if size < 8:
        raise ValueError(f"not a safetensors file: {size} bytes are too few")
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise ValueError(
            f"incomplete or not a safetensors file: a header of {length} bytes in a file of {size}"
        )
    if length > MAX_BYTES:
        raise ValueError(f"the header has {length} bytes, expected at most {MAX_BYTES}")
    try:
        header = parse_json(file.read(length))
    except ValueError as fault:
        raise ValueError(f"the header is not sound JSON: {fault}") from None
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    return header


def _as_content(metadata: Any, kind: str) -> dict[str, Any]:
    """What `write_file` put into the metadata."""
    if not isinstance(metadata, dict) or not isinstance(metadata.get("fastrnn"), str):
        raise ValueError("not written by fastrnn: the metadata have no entry 'fastrnn'")
    content = parse_json(metadata["fastrnn"])
    if len(metadata) > 1 or not isinstance(content, dict) or not {"kind", "version"} <= content.keys():
        raise ValueError("the metadata are not as fastrnn writes them")
    if content["version"] != VERSION or content["version"] is True:
        raise ValueError(f"the format has version {show(content['version'])}, expected {VERSION}")
    if content["kind"] != kind:
        raise ValueError(f"the file is a {show(content['kind'])}, expected a {kind!r}")
    if content.keys() - {"sha256"} != {"kind", "version", "document"}:
        raise ValueError("the metadata have no document, or unknown keys")
    return content


def _as_tensor_infos(header: dict[str, Any], size: int) -> dict[str, TensorInfo]:
    """The entries of the header; their bytes must be the `size` bytes of the body, each just once."""
    if len(header) > MAX_TENSORS:
        raise ValueError(f"there are {len(header)} tensors, expected at most {MAX_TENSORS}")
    infos = {name: _as_tensor_info(name, entry) for name, entry in header.items()}
    position = 0
    for name, info in sorted(infos.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            raise ValueError(f"tensor {show(name)} begins at byte {info.begin}, expected {position}")
        position = info.end
    if position != size:
        raise ValueError(f"the tensors take {position} bytes, but the file has {size} for them")
    return infos


def _as_tensor_info(name: str, entry: Any) -> TensorInfo:
    fault = f"the entry of tensor {show(name)} is wrong: "
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{fault}expected dtype, shape and data_offsets")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in _DTYPES:
        raise ValueError(f"{fault}dtype is {show(code)}, expected one of {list(_DTYPES)}")
    if not _are_sizes(shape) or len(shape) > 32:
        raise ValueError(f"{fault}the shape is not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{fault}data_offsets are not two sizes")
    dtype = np.dtype(_DTYPES[code])
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{fault}{end - begin} bytes for {code} of shape {tuple(shape)}")
    return TensorInfo(dtype.newbyteorder("="), tuple(shape), begin, end)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _as_array(info: TensorInfo, data: Array) -> Array:
    array = data.view(info.dtype.newbyteorder("<")).reshape(info.shape)
    return np.require(array.astype(info.dtype, copy=False), requirements="A")


def _unpack(value: Any, arrays: dict[str, Any]) -> Any:
    """Undo `_pack`; each array is taken out of `arrays`."""
    if isinstance(value, list):
        return [_unpack(item, arrays) for item in value]
    if not isinstance(value, dict):
        return value
    if "$tensor" in value:
        name = value["$tensor"]
        if len(value) != 1 or not isinstance(name, str) or name not in arrays:
            raise ValueError(f"tensor {show(name)} is missing")
        return arrays.pop(name)
    if "$float" in value:
        if len(value) != 1 or value["$float"] not in ("inf", "-inf", "nan"):
            raise ValueError("a $float is not inf, -inf or nan")
        return float(value["$float"])
    return {key: _unpack(item, arrays) for key, item in value.items()}
