"""The limits of one core: multiply-adds in registers, and reading memory of a given size.

    taskset -c 1 python bench/peak.py

peak.c is compiled by `cc` for this processor, or, as the kernels and what they are compared with, held to
AVX2 where FASTRNN_ISA is x86_v3. Other work on the machine can only make a core look slower than it is:
the best of several short rounds counts, and against.py looks again between its cases.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

#: Bytes: from what fits in any first-level cache to what fits in none.
SIZES = tuple(2**k for k in range(14, 27))

#: Work of one measurement: about a millisecond.
FLOPS, BYTES = 10**8, 2**26


class Limits:
    """The best that `measure` has seen of one core, in operations and bytes per second."""

    def __init__(self, dtype: str) -> None:
        suffix = {"float32": "f32", "float64": "f64"}[dtype]
        self._fma = getattr(kernels(), f"fma_{suffix}")
        self._bandwidths = np.zeros(len(SIZES))
        #: Floating-point operations per second.
        self.peak = 0.0

    def measure(self) -> None:
        """One round, of some tens of milliseconds."""
        flops = self._fma(1)
        repeats = FLOPS // flops
        self.peak = max(self.peak, repeats * flops / seconds(lambda: self._fma(repeats)))
        for k, size in enumerate(SIZES):
            self._bandwidths[k] = max(self._bandwidths[k], BYTES / read_seconds(size, BYTES // size))

    def bandwidth(self, size: float) -> float:
        """Bytes per second, reading `size` bytes again and again; interpolated."""
        # Less is never slower to read; where it looks so, something has disturbed the measurement.
        least = np.maximum.accumulate(self._bandwidths[::-1])[::-1]
        return float(np.interp(np.log2(size), np.log2(SIZES), least))


def limits(dtype: str = "float32", rounds: int = 10) -> Limits:
    """The limits of the core that this runs on."""
    found = Limits(dtype)
    for _ in range(rounds):
        found.measure()
    return found


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def read_seconds(size: int, repeats: int) -> float:
    address = memory().ctypes.data
    kernels().read_bytes(address, size, 1)  # what fits in a cache is in it from here on
    return seconds(lambda: kernels().read_bytes(address, size, repeats))


@cache
def memory() -> np.ndarray:
    """The largest of SIZES, on a page boundary, and written to: pages that were not are all the same one."""
    page = 4096
    whole = np.ones(SIZES[-1] + page, np.uint8)
    start = -whole.ctypes.data % page
    return whole[start : start + SIZES[-1]]


@cache
def kernels() -> ctypes.CDLL:
    """peak.c, compiled and loaded. RuntimeError if that cannot be done."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError("measuring the limits of a core needs a C compiler, and there is no `cc` here")
    machine = ["-mavx2", "-mfma"] if os.environ.get("FASTRNN_ISA") == "x86_v3" else ["-march=native"]
    source = Path(__file__).with_suffix(".c")
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory, "peak.so")
        flags = ["-O2", *machine, "-ffp-contract=fast", "-shared", "-fPIC"]
        done = subprocess.run(
            [compiler, *flags, "-o", str(target), str(source)], capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{source.name} does not compile: {done.stderr.strip()}")
        library = ctypes.CDLL(str(target))
    for name in ("fma_f32", "fma_f64"):
        function = getattr(library, name)
        function.argtypes, function.restype = [ctypes.c_size_t], ctypes.c_size_t
    library.read_bytes.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    library.read_bytes.restype = None
    return library


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    for dtype in ("float32", "float64"):
        found = limits(dtype, options.rounds)
        print(f"{dtype:>10}  {found.peak * 1e-9:6.1f} GFLOP/s")
    for size in SIZES:
        print(f"{size // 1024:6d} KiB  {found.bandwidth(size) * 1e-9:6.1f} GB/s")


if __name__ == "__main__":
    main()
