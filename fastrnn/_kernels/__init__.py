"""The engine (src/kernels/include/fastrnn.h), as Python calls it.

::

    settings    the engine in use, threads, the cell table
    blas        the portable back end: each step of time by BLAS products
    memory      blocks that large arrays and workspaces come from
    leases      who may write the parameters of a layer
    weights     panels of weights, never stale
    stack       a call of a stack of layers, forward and back
    stream      one step at a time
    dense       products and activations of other layers
    signals     Ctrl-C in the middle of a call (a .pxd alone, compiled into the others)
    _engine     the declarations of the C headers (the same)
"""

from .dense import Affine, activation, product  # and with it blas, which registers itself as a back end
from .leases import Lease, Ledger, check_frozen, frozen_owner
from .memory import empty, release_memory, spare_memory
from .settings import (
    MOST_THREADS,
    cell_shapes,
    check_settings,
    engine,
    engines,
    get_threads,
    is_fused,
    set_threads,
    use_engine,
)
from .stack import Map, Stack, Tape
from .stream import Stepper, Turn
from .weights import Weights

__all__ = [
    "MOST_THREADS",
    "Affine",
    "Lease",
    "Ledger",
    "Map",
    "Stack",
    "Stepper",
    "Tape",
    "Turn",
    "Weights",
    "activation",
    "cell_shapes",
    "check_frozen",
    "check_settings",
    "empty",
    "engine",
    "engines",
    "frozen_owner",
    "get_threads",
    "is_fused",
    "product",
    "release_memory",
    "set_threads",
    "spare_memory",
    "use_engine",
]
