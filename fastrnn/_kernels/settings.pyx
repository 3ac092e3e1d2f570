"""What the process has set: the engine in use, its threads. And what the engine knows of its cells."""

from fastrnn._kernels._engine cimport (
    FASTRNN_CELLS, FASTRNN_MOST_ISAS, FASTRNN_MOST_THREADS, fastrnn_available_isas, fastrnn_backend,
    fastrnn_cell_shapes, fastrnn_current_isa, fastrnn_isa, fastrnn_is_fused, fastrnn_most_threads, fastrnn_use,
    fastrnn_use_threads,
)

MOST_THREADS = FASTRNN_MOST_THREADS  # of one call

cdef const fastrnn_isa *available_isas[FASTRNN_MOST_ISAS]
cdef int isa_count = fastrnn_available_isas(available_isas)
cdef const fastrnn_backend *blas = NULL


cdef void offer_blas(const fastrnn_backend *backend) noexcept:
    """Make `backend` the one that runs where there are no fused kernels, or where BLAS is asked for."""
    global blas
    blas = backend


def engines():
    """Names of the engines that this machine has, the default last.

    Each instruction set is one; `blas` is SciPy's products with the elementwise kernels of the widest.
    `baseline`, which every processor has, has no fused kernels, so its products are SciPy's as well.
    """
    names = [available_isas[k].name.decode() for k in range(isa_count)]
    return [*names, "blas"] if isa_count == 1 else ["blas", *names]


def use_engine(str name):
    """Run everything from now on by the engine `name`, one of engines(). Returns the one used before."""
    before = engine()
    names = [available_isas[k].name.decode() for k in range(isa_count)]
    isa = available_isas[isa_count - 1 if name == "blas" else names.index(name)]
    if name != "blas" and isa.table[0].run_forward != NULL:
        fastrnn_use(isa, NULL)
    else:
        fastrnn_use(isa, blas)
    return before


def engine():
    """The name of the engine in use."""
    isa = fastrnn_current_isa()
    by_blas = not fastrnn_is_fused() and (isa_count == 1 or isa.table[0].run_forward != NULL)
    return "blas" if by_blas else isa.name.decode()


def is_fused():
    """Whether products are the engine's own, not BLAS's."""
    return bool(fastrnn_is_fused())


def use_threads(int n):
    """Let the engine use up to `n` threads. Returns the number before."""
    return fastrnn_use_threads(n)


def threads():
    """The most threads that the engine uses."""
    return fastrnn_most_threads()


def cell_shapes():
    """The `fastrnn_cell_shape` of every cell as a dict, by the cell's number."""
    return [dict(fastrnn_cell_shapes[k], name=fastrnn_cell_shapes[k].name.decode()) for k in range(FASTRNN_CELLS)]
