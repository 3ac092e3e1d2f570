"""The settings of the process, which are the engine in use and the most threads of a call; and the cell table."""

from fastrnn._kernels._engine cimport (
    FASTRNN_CELLS, FASTRNN_MOST_THREADS, FASTRNN_OK, MOST_ENGINES, fastrnn_cell_shapes, fastrnn_check_settings,
    fastrnn_engine, fastrnn_engines, fastrnn_get_threads, fastrnn_is_fused, fastrnn_set_threads, fastrnn_use_engine,
)

MOST_THREADS = FASTRNN_MOST_THREADS  # of one call


def check_settings():
    """Raise ValueError if FASTRNN_ISA or FASTRNN_NUM_THREADS is wrong."""
    cdef char error[256]
    if fastrnn_check_settings(error) != FASTRNN_OK:
        raise ValueError((<bytes>error).decode(errors="backslashreplace"))


def engines():
    """Names of the engines that this machine has, the default last.

    Each instruction set with fused kernels is an engine. `blas` has SciPy's products, and the elementwise kernels of
    the widest instruction set. `baseline`, which every processor has, has SciPy's products and portable elementwise
    kernels.
    """
    cdef const char *names[MOST_ENGINES]
    cdef int count = fastrnn_engines(names, MOST_ENGINES)
    return [names[k].decode() for k in range(count)]


def use_engine(str name):
    """Use the engine `name`, one of engines(), from now on. Returns the name of the one before."""
    before = engine()
    if fastrnn_use_engine(name.encode()) != FASTRNN_OK:
        raise ValueError(f"no engine is called {name!r}; this machine has {', '.join(engines())}")
    return before


def engine():
    """The name of the engine in use."""
    return fastrnn_engine().decode()


def is_fused():
    """Whether products are the engine's own, not BLAS's."""
    return bool(fastrnn_is_fused())


def set_threads(int n):
    """Let the engine use up to `n` threads."""
    if fastrnn_set_threads(n) != FASTRNN_OK:
        raise ValueError(f"{n} threads, expected 1 to {MOST_THREADS}")


def get_threads():
    """The most threads that the engine uses."""
    return fastrnn_get_threads()


def cell_shapes():
    """The `fastrnn_cell_shape` of every cell as a dict, by the cell's number."""
    return [dict(fastrnn_cell_shapes[k], name=fastrnn_cell_shapes[k].name.decode()) for k in range(FASTRNN_CELLS)]
