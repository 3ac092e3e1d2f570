"""fastrnn: RNN, LSTM and GRU layers for the CPU, forward and backward, in a small package.

    layers      RNN, LSTM, GRU; Embedding, Dense, Dropout, LastStep
    training    Sequential, pad_sequences, losses, optimizers, schedules, callbacks, load
    text        text (tokenizers), generate, iter_generate
    functional  one layer, one direction, over plain arrays; reference: the same in NumPy
    diagnostics gradient_flow: what vanishes and what explodes
    settings    set_num_threads, get_num_threads, release_memory, show_config
    in C        get_include, get_library

Shape letters in all documentation: T time steps, B batch rows, I input size, H hidden size,
P projection size, L layers, D directions, G gate rows (H, 3H or 4H).
"""

from importlib import import_module
from typing import TYPE_CHECKING

try:
    import_module(f"{__name__}._kernels")
except ModuleNotFoundError as error:
    if not str(error.name).startswith(f"{__name__}._kernels."):
        raise  # it is compiled, and says itself what it lacks
    raise ImportError(
        f"fastrnn is not compiled in {__path__[0]}: if that is the source folder, run Python from another "
        "folder after `pip install .`, or use `pip install -e .`"
    ) from error

from . import functional
from .base import Gradients
from .layers import Dense, Dropout, Embedding, LastStep
from .recurrent import GRU, LSTM, RNN
from .settings import (
    get_include,
    get_library,
    get_num_threads,
    release_memory,
    set_num_threads,
    show_config,
)
from .version import __version__

if TYPE_CHECKING:
    from . import callbacks, diagnostics, losses, optimizers, reference, schedules, text
    from .data import pad_sequences
    from .generation import generate, iter_generate
    from .model import Sequential
    from .saving import load

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Dense",
    "Dropout",
    "Embedding",
    "Gradients",
    "LastStep",
    "Sequential",
    "__version__",
    "callbacks",
    "diagnostics",
    "functional",
    "generate",
    "get_include",
    "get_library",
    "get_num_threads",
    "iter_generate",
    "load",
    "losses",
    "optimizers",
    "pad_sequences",
    "reference",
    "release_memory",
    "schedules",
    "set_num_threads",
    "show_config",
    "text",
]

# Who only runs a layer does not wait for what trains one: these are imported when they are first asked for.
_LATER = {
    "Sequential": "model",
    "generate": "generation",
    "iter_generate": "generation",
    "load": "saving",
    "pad_sequences": "data",
} | dict.fromkeys(("callbacks", "diagnostics", "losses", "optimizers", "reference", "schedules", "text"), "")


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_LATER[name] or name}")
    value = getattr(module, name) if _LATER[name] else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
