"""fastrnn: RNN, LSTM and GRU layers for the CPU, forward and backward, in a small package.

    layers      RNN, LSTM, GRU; Embedding, Dense, Dropout, LastStep
    training    Sequential, pad_sequences, losses, optimizers, schedules, callbacks, load
    text        text (tokenizers), generate, iter_generate
    functional  one layer, one direction, over plain arrays; reference: the same in NumPy
    diagnostics gradient_flow: what vanishes and what explodes
    settings    set_num_threads, get_num_threads, show_config

Shape letters in all documentation: T time steps, B batch rows, I input size, H hidden size,
P projection size, L layers, D directions, G gate rows (H, 3H or 4H).
"""

try:
    from . import _kernels  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"fastrnn is not compiled in {__path__[0]}: if that is the source folder, run Python from another "
        "folder after `pip install .`, or use `pip install -e .`"
    ) from error

from . import callbacks, diagnostics, functional, losses, optimizers, reference, schedules, text
from .base import Gradients
from .data import pad_sequences
from .generation import generate, iter_generate
from .layers import Dense, Dropout, Embedding, LastStep
from .model import Sequential
from .recurrent import GRU, LSTM, RNN
from .saving import load
from .settings import get_num_threads, set_num_threads, show_config
from .version import __version__

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
    "get_num_threads",
    "iter_generate",
    "load",
    "losses",
    "optimizers",
    "pad_sequences",
    "reference",
    "schedules",
    "set_num_threads",
    "show_config",
    "text",
]
