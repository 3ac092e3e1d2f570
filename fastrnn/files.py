"""The boundary to files: which are opened, how they are written, and which JSON is cheap enough to parse."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from typing import Any

import numpy as np

from .arguments import show

# What JSON may cost, in files that are read and in files that are written: less than a second and 200 MB for
# a text at the limits. A model with the vocabulary of 300,000 Russian words stays below MAX_BYTES, a
# checkpoint with the losses of 170,000 epochs below MAX_MARKS.

#: Bytes of a text; half of that if it is not in ASCII, because Python takes four bytes a character then.
MAX_BYTES = 1 << 25
#: Brackets, commas and colons outside of strings: at most that many values and names.
MAX_MARKS = 1 << 19
#: Levels of lists and objects in a document.
MAX_DEPTH = 100
#: Digits of a number. Python reads integers of 640 digits whatever limit the user has set for longer ones.
MAX_DIGITS = 640

_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))

Path = str | os.PathLike[str]


def as_path(owner: str, path: Any, name: str = "path") -> str:
    """The path of a file, as a string; TypeError or ValueError names the argument."""
    try:
        result = os.fspath(path)
    except TypeError:  # no path, or one whose __fspath__ gives no text
        result = None
    if not isinstance(result, str):
        raise TypeError(f"{owner}: {name} is {show(path)}, expected the path of a file")
    try:
        possible = b"\0" not in os.fsencode(result) and result != ""
    except UnicodeEncodeError:  # surrogates that stand for no byte
        possible = False
    if not possible:
        raise ValueError(f"{owner}: {name} is {show(result)}, expected the path of a file")
    return result


@contextmanager
def open_regular(path: str) -> Iterator[tuple[BufferedReader, int]]:
    """Open a regular file for reading; gives it and its size.

    An OSError for anything else: a FIFO may block, a device may never end. The body's OSErrors name the file,
    and so does its lack of memory, which becomes an OSError.
    """

    def opener(name: str, flags: int) -> int:  # to open a FIFO takes no writer with O_NONBLOCK
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))

    try:
        with open(path, "rb", opener=opener) as file:
            status = os.fstat(file.fileno())  # of what is open, which nobody can exchange any more
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "Not a regular file")
            yield file, status.st_size
    except MemoryError as fault:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), path) from fault
    except OSError as fault:
        fault.filename = fault.filename or path
        raise


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


# ---------------------------------------------------------------------------------------------- JSON


def parse_json(text: str | bytes) -> Any:
    """JSON, without what Python adds to it (NaN, repeated keys, numbers too large for a float).

    ValueError also for a text that is beyond the limits at the top of this module; such a one isn't parsed.
    """
    _check_cost(text)
    if isinstance(text, bytes):
        text = text.decode()

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) != len(items):
            counts = Counter(name for name, _ in items)
            raise ValueError(f"repeated: {some(name for name in counts if counts[name] > 1)}")
        return result

    def constant(name: str) -> float:
        raise ValueError(f"{name} is no JSON number")

    def checked(digits: str) -> str:
        if len(digits.lstrip("-")) > MAX_DIGITS:
            raise ValueError(f"{digits[:20]}... has more than {MAX_DIGITS} digits")
        return digits

    def number(digits: str) -> float:
        value = float(checked(digits))
        return value if math.isfinite(value) else constant(digits[:20])

    return json.loads(
        text,
        object_pairs_hook=pairs,
        parse_constant=constant,
        parse_float=number,
        parse_int=lambda digits: int(checked(digits)),
    )


def _check_cost(text: str | bytes) -> None:
    """ValueError if JSON would take much time or memory to parse, found out without building any of it.

    Sound JSON is measured exactly. Of any other text, what comes before the first fault is; it is all that a
    parser sees.
    """
    data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    limit = MAX_BYTES if data.isascii() else MAX_BYTES // 2
    if len(data) > limit:
        raise ValueError(f"the JSON has more than {limit} bytes")
    bare = data.replace(rb"\\", b".").replace(rb"\"", b".")  # so that each quote begins or ends a string
    if bare.count(b'"') > 2 * MAX_MARKS:
        raise ValueError(f"the JSON has more than {MAX_MARKS} strings")
    pieces = bare.split(b'"')
    outside, strings = b"".join(pieces[::2]), pieces[1::2]
    marks = sum(map(outside.count, (b"[", b"]", b"{", b"}", b",", b":")))
    if marks > MAX_MARKS:
        raise ValueError(f"the JSON has {marks} brackets, commas and colons, expected at most {MAX_MARKS}")
    brackets = np.frombuffer(outside.translate(None, _NO_BRACKETS), np.uint8)
    levels = np.cumsum(np.where(np.isin(brackets, list(b"[{")), 1, -1))
    # checkpoint.py puts one level around a document, and {"$tensor": name} in place of an array.
    if levels.max(initial=0) > MAX_DEPTH + 2:
        raise ValueError(f"the JSON is nested too deeply, expected at most {MAX_DEPTH} levels")
    # One character beyond ASCII, as such or as an escape, widens all others of its string.
    wide = sum(len(s) - 5 * s.count(rb"\u") for s in strings if not s.isascii() or rb"\u" in s)
    if wide > MAX_BYTES // 2:
        raise ValueError(
            f"the JSON has strings of {wide} characters, not all in ASCII, expected at most {MAX_BYTES // 2}"
        )


def some(names: Iterable[str]) -> str:
    """A few names for a message, however many a hostile file has."""
    names = sorted(names)
    return ", ".join(map(show, names[:3])) + (", ..." if len(names) > 3 else "")
