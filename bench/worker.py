"""One library in a process of its own, at the other end of a pipe from against.py.

The process may be of another interpreter, with packages of its own; it needs NumPy and this folder. What
goes over the pipe is therefore plain: commands and answers are pickled, arrays are in NumPy's file format.
"""

from __future__ import annotations

import gc
import io
import math
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from peers import LIBRARIES
from shapes import Array, Arrays, Case

#: Largest difference from the reference, relative to the largest magnitude of an array.
TOLERANCE = {"float32": 1e-4, "float64": 1e-9}


class Worker:
    """Answers the driver's commands, which are the names of its public methods."""

    def __init__(self, name: str, threads: int, cores: Sequence[int]) -> None:
        if missing := LIBRARIES[name].missing():
            raise ImportError(f"{' and '.join(missing)} not installed")
        self._library = LIBRARIES[name](threads)
        self._cores = cores

    def version(self) -> str:
        return self._library.version()

    def prepare(self, case: Case, arrays: bytes, expected: dict[str, bytes]) -> dict[str, str | None]:
        """Build and check one case; for each mode that the library has: what is wrong, or None."""
        library = self._library
        modes = [mode for mode in expected if library.supports(mode, case.dtype)]
        if modes:
            library.prepare(case, unpack(arrays))
        faults: dict[str, str | None] = {}
        for mode in modes:
            result = library.read(mode, getattr(library, mode)())
            faults[mode] = mismatch(result, unpack(expected[mode]), TOLERANCE[case.dtype])
        return faults

    def time(self, mode: str, seconds: float) -> float:
        """The best time of one call, in seconds, of as many as fit in `seconds`, at least two."""
        pin(self._cores)  # also the threads that a library has started and placed itself
        call = getattr(self._library, mode)
        gc.collect()
        gc.disable()
        try:
            return best_time(call, seconds)
        finally:
            gc.enable()


def best_time(call: Callable[[], Any], seconds: float) -> float:
    """The shortest call, in seconds; the first is not counted: its caches are the last one's."""
    call()
    best = sys.maxsize
    end = time.perf_counter_ns() + int(seconds * 1e9)
    while True:
        start = time.perf_counter_ns()
        call()
        stop = time.perf_counter_ns()
        best = min(best, stop - start)
        if stop >= end:
            return best * 1e-9


def mismatch(result: Arrays, expected: Arrays, tolerance: float) -> str | None:
    """Which array is missing or differs most from what is expected, or None if all is well."""
    if result.keys() != expected.keys():
        return f"gives {sorted(result)}, expected {sorted(expected)}"
    errors = {name: relative_error(result[name], value) for name, value in expected.items()}
    # NaN compares false with everything, so ask for what is right.
    wrong = {name: error for name, error in errors.items() if not error <= tolerance}
    return ", ".join(f"{name} is wrong by {error:.1e}" for name, error in wrong.items()) or None


def relative_error(value: Array, expected: Array) -> float:
    if value.shape != expected.shape:
        return math.inf
    return float(np.max(np.abs(value - expected)) / np.max(np.abs(expected)))


def pin(cores: Iterable[int]) -> None:
    """Put every thread of this process on `cores`, where the system can do that."""
    if not hasattr(os, "sched_setaffinity"):
        return
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except ProcessLookupError:  # it has ended meanwhile
            continue


def pack(arrays: Arrays) -> bytes:
    """As bytes that every version of NumPy reads, which a pickled array is not."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]  # a keyword for each array
    return buffer.getvalue()


def unpack(data: bytes) -> Arrays:
    with np.load(io.BytesIO(data)) as arrays:
        return dict(arrays)


def serve(pipe: Connection, name: str, threads: int, cores: Sequence[int]) -> None:
    """Commands in, until the pipe closes; out come pairs of an answer and, if there is none, the reason."""
    worker: Worker | None = None
    while True:
        try:
            command, *arguments = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        answer, reason = None, None
        try:
            worker = worker or Worker(name, threads, cores)
            answer = getattr(worker, command)(*arguments)
        except KeyboardInterrupt:
            return
        except ImportError as error:
            reason = str(error)
        except Exception as error:  # of whatever library: it is reported, and the others go on
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
        pipe.send((answer, reason))


def main(descriptor: str, name: str, threads: str, cores: str) -> None:
    serve(Connection(int(descriptor)), name, int(threads), [int(core) for core in cores.split(",")])


if __name__ == "__main__":
    main(*sys.argv[1:])
