"""Settings of the process: the engine in use, the threads, and a description of both.

Environment, read once, by the engine when it is loaded (src/kernels/runtime/settings.c):

    FASTRNN_ISA          the engine: `x86_v4` (AVX-512), `x86_v3` (AVX2, FMA) or `neon`, the fused kernels of
                         src/kernels for that instruction set; `blas`, SciPy's products with our elementwise
                         kernels; `baseline`, the same with portable ones. Default: the widest there is,
                         `blas` where there is none
    FASTRNN_NUM_THREADS  as set_num_threads; default: as many as the process has cores
    FASTRNN_CHECK_FROZEN 1: layers that are frozen look at each use whether their parameters have changed, and
                         raise if so. Default: 0, they trust the promise
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import scipy
import scipy.linalg.cython_blas as _cython_blas

from . import _kernels
from .arguments import as_size
from .version import __version__

# Where the extensions find it when they are loaded. In an editable install they can lie apart from this file.
_LIBRARY_FOLDER = os.path.join(os.path.dirname(os.path.abspath(_kernels.__path__[0])), "_lib")


class _BlasThreads:
    """The thread setting of the BLAS behind SciPy, and behind NumPy where that is another library.

    OpenBLAS builds differ in what they call it; a BLAS that has none of the names keeps its own setting.
    """

    _NAMES = (
        ("scipy_openblas_set_num_threads", "scipy_openblas_get_num_threads"),
        ("scipy_openblas_set_num_threads64_", "scipy_openblas_get_num_threads64_"),
        ("openblas_set_num_threads", "openblas_get_num_threads"),
        ("openblas_set_num_threads64_", "openblas_get_num_threads64_"),
        ("MKL_Set_Num_Threads", "MKL_Get_Max_Threads"),
    )

    def __init__(self) -> None:
        self._set: list[Callable[[int], Any]] = []
        self._get: list[Callable[[], int]] = []
        for module in (_cython_blas, getattr(np.linalg, "_umath_linalg", None)):
            if module is None:
                continue
            # A handle on the extension finds the symbols of the library that it is linked with, too.
            library = ctypes.CDLL(module.__file__)
            for set_name, get_name in self._NAMES:
                if hasattr(library, set_name) and hasattr(library, get_name):
                    setter, getter = getattr(library, set_name), getattr(library, get_name)
                    setter.argtypes, setter.restype, getter.restype = [ctypes.c_int], None, ctypes.c_int
                    self._set.append(setter)
                    self._get.append(getter)
                    break

    def set(self, n: int) -> None:
        for function in self._set:
            function(n)

    def get(self) -> int:
        return self._get[0]() if self._get else 1


@cache
def _blas() -> _BlasThreads:
    return _BlasThreads()


def set_num_threads(n: int) -> None:
    """Use at most `n` threads in a call, in this process, from the next call on; small calls use fewer.

    The results do not depend on it, to the last bit, unless the engine is `blas`: that takes its threads from
    SciPy's BLAS, so there this sets the number of threads of that BLAS (and of NumPy's, lest two pools of
    spinning threads share the cores), and other code of the process that calls them is affected as well.

    Raises
    ------
    TypeError, ValueError
        `n` is no integer, or not from 1 to 1024.
    """
    n = as_size("set_num_threads", "n", n, maximum=_kernels.MOST_THREADS)
    _kernels.set_threads(n)
    if not _kernels.is_fused():
        _blas().set(n)


def get_num_threads() -> int:
    """How many threads a call uses at most."""
    return _kernels.get_threads() if _kernels.is_fused() else _blas().get()


def release_memory() -> int:
    """Give the memory that is kept for later arrays back to the system.

    The memory of freed arrays is kept for the next call, up to 64 MiB: most calls want the arrays that the
    call before wanted.

    Returns
    -------
    int
        The bytes that were kept.

    Examples
    --------
    >>> import numpy as np, fastrnn
    >>> y, state = fastrnn.RNN(4, 64)(np.ones((200, 2, 4)))
    >>> del y
    >>> fastrnn.release_memory() >= 200 * 2 * 64 * 4
    True
    """
    return _kernels.release_memory()


def get_include() -> str:
    """Folder of `fastrnn.h`, the API of the engine for programs in C and C++.

    Returns
    -------
    str
        What the compiler's `-I` takes.

    See Also
    --------
    get_library : what to link with.

    Examples
    --------
    >>> import os, fastrnn
    >>> os.path.exists(os.path.join(fastrnn.get_include(), "fastrnn.h"))
    True
    """
    return os.path.join(_LIBRARY_FOLDER, "include")


def get_library() -> str:
    """Path of the engine, a shared library that needs no Python.

    A process has one engine with one pool of threads: all programs and extensions that link with this file
    share it.

    Returns
    -------
    str
        `cc -I$INCLUDE program.c $LIBRARY -Wl,-rpath,$(dirname $LIBRARY)` links a program with it, where
        `INCLUDE` is what `get_include` returns.

    See Also
    --------
    get_include : what to compile with.

    Examples
    --------
    >>> import ctypes, fastrnn
    >>> ctypes.CDLL(fastrnn.get_library()).fastrnn_abi()
    1
    """
    return os.path.join(_LIBRARY_FOLDER, "libfastrnn.so")


def show_config() -> None:
    """Print what is in use: version, engine, instruction sets, threads, BLAS, Python and its packages."""
    print(_description())


def _description() -> str:
    blas = scipy.show_config(mode="dicts")["Build Dependencies"]["blas"]
    name, fused = _kernels.engine(), _kernels.is_fused()
    rows = {
        "fastrnn": __version__,
        "engine": f"{name} ({'fused kernels' if fused else 'BLAS products, elementwise kernels of our own'})",
        "engines here": ", ".join(_kernels.engines()),
        "threads": str(get_num_threads()),
        "BLAS": f"{blas.get('name', 'unknown')} {blas.get('version', '')}".strip(),
        "NumPy": np.__version__,
        "SciPy": scipy.__version__,
        "Python": f"{platform.python_version()} on {platform.machine()}",
    }
    return "\n".join(f"{name:16s} {value}" for name, value in rows.items())


def _choose_check(value: str | None) -> bool:
    """Whether FASTRNN_CHECK_FROZEN asks for it."""
    if value not in (None, "", "0", "1"):
        raise ValueError(f"FASTRNN_CHECK_FROZEN is {value!r}, expected 0 or 1")
    return value == "1"


# The engine has read the environment. BLAS has a setting of its own, which stays unless somebody asks.
_kernels.check_settings()
_kernels.check_frozen(_choose_check(os.environ.get("FASTRNN_CHECK_FROZEN")))
if os.environ.get("FASTRNN_NUM_THREADS") and not _kernels.is_fused():
    _blas().set(_kernels.get_threads())
