"""The engine (src/kernels/include/fastrnn.h), as Python calls it, and its BLAS back end.

    BLAS        loops over time whose products are BLAS calls and whose elementwise steps are the cells of src/kernels.
                The engine runs them on a processor without fused kernels, and with FASTRNN_ISA=blas
    Memory      blocks that large arrays and workspaces come from
    Weights     the parameters of a stack, and their panels
    Map         which steps of a batch are real, compiled
    Stack       a stack of layers: inference, training, and the tape between forward and backward
    Stepper     one step at a time, without allocating

Arguments have been checked (fastrnn/arguments.py); what is checked again is what decides whether memory is safe.
"""

cimport numpy as cnp
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.exc cimport PyErr_CheckSignals, PyErr_Occurred
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.ref cimport PyObject
from cython cimport floating as real
from libc.stdint cimport int64_t, uint8_t, uint64_t, uintptr_t
from libc.string cimport memcmp, memcpy, memset
from scipy.linalg.cython_blas cimport dgemm, dgemv, sgemm, sgemv

import weakref

import numpy as np

cnp.import_array()


cdef extern from *:
    """
    #undef I  /* <complex.h>, by way of NumPy's headers; here I is the input size */
    """
    Py_ssize_t Py_REFCNT(PyObject *)

cdef extern from "memory.h" nogil:
    enum:
        FASTRNN_LARGE_BLOCK
    ctypedef struct Block "fastrnn_block":
        void *start
        size_t size
    Block fastrnn_take_block(size_t)
    void fastrnn_give_block(Block)
    size_t fastrnn_spare_bytes()
    size_t fastrnn_release_memory()

cdef extern from "fastrnn.h" nogil:
    enum:
        FASTRNN_F32
        FASTRNN_F64
        FASTRNN_FORWARD
        FASTRNN_BACKWARD
        FASTRNN_KEEP_NOTHING
        FASTRNN_KEEP_ALL
        FASTRNN_BIAS_IH
        FASTRNN_BIAS_HH
        FASTRNN_PROJECTED
        FASTRNN_REVERSE
        FASTRNN_MOST_THREADS
    ctypedef enum fastrnn_status:
        FASTRNN_OK
        FASTRNN_STOPPED
    ctypedef struct fastrnn_spec:
        size_t size
        const char *cell
        int dtype
        int64_t I, H, P
        uint64_t options
    ctypedef struct fastrnn_stack:
        pass
    fastrnn_status fastrnn_stack_new(const fastrnn_spec *, int, int, fastrnn_stack **, char *)
    void fastrnn_stack_free(fastrnn_stack *)
    ctypedef struct fastrnn_batch:
        size_t size
        int64_t T, B
        const int64_t *lengths
        const int64_t *batch_sizes
        const uint8_t *mask
        const uint8_t *reset
        int64_t mask_step, mask_row, reset_step, reset_row
        int repeat_masked
    size_t fastrnn_map_size(int64_t, int64_t)
    fastrnn_status fastrnn_map(const fastrnn_batch *, void *, char *)
    void fastrnn_map_counts(const void *, int64_t *, int64_t *)
    ctypedef struct fastrnn_weights:
        size_t size
        void *weight_ih
        void *weight_hh
        void *bias_ih
        void *bias_hh
        void *weight_hr
    size_t fastrnn_panels_size(const fastrnn_stack *, int)
    fastrnn_status fastrnn_pack(const fastrnn_stack *, const fastrnn_weights *, int, void *)
    ctypedef struct fastrnn_sequence:
        void *data
        int64_t step, row
    ctypedef struct fastrnn_call:
        size_t size
        const void *map
        int64_t T, B
        int keep, threads
        const fastrnn_weights *weights
        const void *panels
        const void *panels_backward
        fastrnn_sequence x, y
        const void *h_0
        const void *c_0
        void *h_n
        void *c_n
        const uint8_t *x_masks
        double x_scale
        void *tape
        void *workspace
        size_t tape_size, workspace_size
        fastrnn_sequence dy, dx
        const void *dh_n
        const void *dc_n
        void *dh_0
        void *dc_0
        const fastrnn_weights *dweights
        int (*poll)(void *) except -1 nogil
        void *poll_context
    void fastrnn_call_sizes(const fastrnn_stack *, const fastrnn_call *, int, size_t *, size_t *)
    fastrnn_status fastrnn_check(const fastrnn_stack *, const fastrnn_call *, int, char *)
    fastrnn_status fastrnn_forward(const fastrnn_stack *, const fastrnn_call *)
    fastrnn_status fastrnn_backward(const fastrnn_stack *, const fastrnn_call *)
    const char *fastrnn_engine()
    int fastrnn_engines(const char **, int)
    fastrnn_status fastrnn_use_engine(const char *)
    int fastrnn_get_threads()
    fastrnn_status fastrnn_set_threads(int)
    fastrnn_status fastrnn_check_settings(char *)

cdef extern from "threads.h" nogil:
    enum:
        FASTRNN_FORKED
    ctypedef struct Poll "fastrnn_poll":
        int (*ask)(void *) except -1 nogil
        void *context
    uint64_t fastrnn_current_mode()
    uint64_t fastrnn_flush_denormals()
    void fastrnn_restore_mode(uint64_t)

cdef extern from "Python.h":
    Py_ssize_t PY_SSIZE_T_MAX
    int PyTraceMalloc_Track(unsigned int domain, uintptr_t pointer, size_t size)
    int PyTraceMalloc_Untrack(unsigned int domain, uintptr_t pointer)

cdef enum:
    TRACE_DOMAIN = 389047  # NumPy's, for tracemalloc

cdef extern from "kernels.h" nogil:
    enum: FASTRNN_CELLS
    enum: MOST_ENGINES "FASTRNN_MOST_ISAS + 1"  # and `blas`
    ctypedef struct fastrnn_cell_shape:
        const char *name
        int gates, accumulators, input_blocks, hidden_blocks, has_c, has_reset, stages
    ctypedef struct fastrnn_layer:
        int cell
        fastrnn_cell_shape shape
        Py_ssize_t I, H, P, G, AH
        int has_bias_ih, has_bias_hh, projected, reverse
    ctypedef struct fastrnn_rows:
        void *data
        Py_ssize_t row, step
        int scattered
    ctypedef struct Run "fastrnn_run":
        const fastrnn_layer *layer
        Py_ssize_t T, B, chunk
        const Py_ssize_t *offsets
        const fastrnn_weights *weights
        fastrnn_rows x
        void *x_chunk
        void *h_rows
        Py_ssize_t ldh
        int ring
        void *h
        void *c
        void *gates
        void *c_rows
        Poll poll
    ctypedef struct ForwardRun "fastrnn_forward_run":
        Run run
        fastrnn_rows y
        void *sums
        void *bias
        void *unit
    ctypedef struct BackwardRun "fastrnn_backward_run":
        Run run
        fastrnn_rows dy, dx
        int add_to_dx
        void *dh
        void *dc
        void *dbias
        fastrnn_weights dweights
        void *dy_chunk
        void *dx_chunk
        void *dgates
        void *units
        void *dh_rows
        void *dunit
        void *h_prev
        void *c_prev
    void fastrnn_gather(const Run *, const fastrnn_rows *, Py_ssize_t, Py_ssize_t, Py_ssize_t, int, void *)
    void fastrnn_scatter(const Run *, const fastrnn_rows *, Py_ssize_t, Py_ssize_t, Py_ssize_t, int, const void *,
                         Py_ssize_t)
    Py_ssize_t fastrnn_next_chunk(const Run *, Py_ssize_t, int)
    ctypedef struct fastrnn_sums:
        void *at
        Py_ssize_t row, block, unit
    ctypedef struct fastrnn_cell_forward:
        Py_ssize_t n, H, unit, end
        fastrnn_sums sums
        void *gates
        const void *h_prev
        void *h
        Py_ssize_t ld_prev, ldh
        void *c
        void *c_kept
        void *rh
    ctypedef struct fastrnn_cell_backward:
        Py_ssize_t n, H, unit, end
        const void *gates
        const void *h_prev
        const void *c
        const void *c_prev
        const void *dy
        Py_ssize_t ld_prev, lddy
        void *dgates
        void *dh
        void *dc
        void *h
        void *drh
    ctypedef struct fastrnn_cell:
        void (*forward)(const fastrnn_cell_forward *) noexcept nogil
        void (*backward)(const fastrnn_cell_backward *) noexcept nogil
        void (*reset_forward)(const fastrnn_cell_forward *) noexcept nogil
        void (*reset_backward)(const fastrnn_cell_backward *) noexcept nogil
    ctypedef struct fastrnn_table:
        const fastrnn_cell *cell
        void (*add_rows)(Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const void *, void *) noexcept nogil
        void (*tanh)(Py_ssize_t, const void *, void *) noexcept nogil
        void (*sigmoid)(Py_ssize_t, const void *, void *) noexcept nogil
        Py_ssize_t (*packed_size)(int, Py_ssize_t, Py_ssize_t) noexcept nogil
        void (*pack_rows)(int, Py_ssize_t, Py_ssize_t, const void *, void *) noexcept nogil
        void (*pack_columns)(Py_ssize_t, Py_ssize_t, const void *, void *) noexcept nogil
        int (*multiply)(Py_ssize_t, Py_ssize_t, Py_ssize_t, const void *, Py_ssize_t, Py_ssize_t, const void *, void *,
                        int, const Poll *) except -1 nogil
        int (*run_forward)(const ForwardRun *) except -1 nogil
        int (*run_backward)(const BackwardRun *) except -1 nogil
    ctypedef struct fastrnn_isa:
        const char *name
        int lanes_f32
        const fastrnn_table *table[2]
    const fastrnn_cell_shape fastrnn_cell_shapes[]
    double fastrnn_seconds()


cdef extern from "dispatch.h" nogil:
    ctypedef struct fastrnn_backend:
        int (*forward[2])(const ForwardRun *) except -1 nogil
        int (*backward[2])(const BackwardRun *) except -1 nogil
    void fastrnn_register_backend(const fastrnn_backend *)
    const fastrnn_isa *fastrnn_current_isa()
    int fastrnn_is_fused()


# --- the engine in use --------------------------------------------------------------------------------

MOST_THREADS = FASTRNN_MOST_THREADS  # of one call

cdef fastrnn_backend blas_backend


def check_settings():
    """Raise ValueError if the environment asks for what cannot be."""
    cdef char error[256]
    if fastrnn_check_settings(error) != FASTRNN_OK:
        raise ValueError((<bytes>error).decode(errors="backslashreplace"))


def engines():
    """Names of the engines that this machine has, the default last.

    Each instruction set is one; `blas` is SciPy's products with the elementwise kernels of the widest.
    `baseline`, which every processor has, has no fused kernels, so its products are SciPy's as well.
    """
    cdef const char *names[MOST_ENGINES]
    cdef int count = fastrnn_engines(names, MOST_ENGINES)
    return [names[k].decode() for k in range(count)]


def use_engine(str name):
    """Run everything from now on by the engine `name`, one of engines(). Returns the one used before."""
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


# --- Ctrl-C -------------------------------------------------------------------------------------------

cdef struct Watch:
    double last      # when signals were looked for; 0 before the first look at the clock
    uint64_t mode    # the caller's floating-point mode


cdef inline int look_for_signals(Watch *watch) except -1 nogil:
    """Ten times a second a long call takes the GIL to see whether Ctrl-C waits; it raises then."""
    cdef double now = fastrnn_seconds()
    if watch.last == 0:
        watch.last = now
    if now - watch.last < 0.1:
        return 0
    watch.last = now
    with gil:
        fastrnn_restore_mode(watch.mode)
        PyErr_CheckSignals()
        fastrnn_flush_denormals()
    return 0


cdef int ask_for_signals(void *watch) except -1 nogil:
    """The engine's poll: -1, with the exception set, once Ctrl-C waits."""
    return look_for_signals(<Watch *>watch)


cdef inline int ask(const Poll *poll) except -1 nogil:
    return poll.ask(poll.context) if poll.ask != NULL else 0


cdef int raise_stopped() except -1:
    """A call of the engine has ended early: the exception is set, or the process forked meanwhile."""
    if PyErr_Occurred():
        return -1
    raise RuntimeError("the process forked in the middle of a call of fastrnn: the child cannot finish it")


# --- BLAS, row-major ----------------------------------------------------------------------------------
# BLAS is column-major: a row-major matrix is its own transpose there, so operands swap places.
# A few rows go to gemv one by one: gemm packs the whole weight matrix first. Measured with OpenBLAS 0.3.30,
# N = 4H, H = 128 to 512: gemv keeps to 40 GFLOP/s; gemm has 5, 20, 34, 53, 72 at 1, 4, 8, 16, 32 rows.
# So the bits of a product depend on how many rows it has; only that of a call as a whole is repeated.
# A product of very many rows is done some at a time, so that Ctrl-C need not wait for all of it.

cdef enum:
    GEMV_ROWS = 8
    PIECE_FLOPS = 1 << 30  # some hundredths of a second


cdef inline Py_ssize_t rows_of_piece(Py_ssize_t N, Py_ssize_t K) noexcept nogil:
    return max(512, <Py_ssize_t>(PIECE_FLOPS / (2.0 * N * K)))


cdef inline void gemv(char *trans, int m, int n, const real *a, int lda, const real *x, real beta,
                      real *y) noexcept nogil:
    """y = a x + beta y, or with "T" a^T x + beta y, for a column-major a (m, n)."""
    cdef real alpha = 1
    cdef int one = 1
    if real is float:
        sgemv(trans, &m, &n, &alpha, <real *>a, &lda, <real *>x, &one, &beta, y, &one)
    else:
        dgemv(trans, &m, &n, &alpha, <real *>a, &lda, <real *>x, &one, &beta, y, &one)


cdef inline void gemm(char *trans_a, char *trans_b, int m, int n, int k, const real *a, int lda, const real *b,
                      int ldb, real beta, real *c, int ldc) noexcept nogil:
    """BLAS's own, column-major."""
    cdef real alpha = 1
    if real is float:
        sgemm(trans_a, trans_b, &m, &n, &k, &alpha, <real *>a, &lda, <real *>b, &ldb, &beta, c, &ldc)
    else:
        dgemm(trans_a, trans_b, &m, &n, &k, &alpha, <real *>a, &lda, <real *>b, &ldb, &beta, c, &ldc)


cdef inline int gemm_nt(const Poll *poll, Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *a, Py_ssize_t lda,
                        const real *b, Py_ssize_t ldb, real beta, real *c, Py_ssize_t ldc) except -1 nogil:
    """c (M, N) = a (M, K) b (N, K)^T + beta c"""
    cdef Py_ssize_t row, rows, most
    if M <= GEMV_ROWS:
        for row in range(M):
            gemv("T", <int>K, <int>N, b, <int>ldb, a + row * lda, beta, c + row * ldc)
        return 0
    row, most = 0, rows_of_piece(N, K)
    while row < M:
        rows = min(M - row, most)
        gemm("T", "N", <int>N, <int>rows, <int>K, b, <int>ldb, a + row * lda, <int>lda, beta, c + row * ldc,
             <int>ldc)
        row += rows
        if row < M:
            ask(poll)
    return 0


cdef inline int gemm_nn(const Poll *poll, Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *a, Py_ssize_t lda,
                        const real *b, Py_ssize_t ldb, real beta, real *c, Py_ssize_t ldc) except -1 nogil:
    """c (M, N) = a (M, K) b (K, N) + beta c"""
    cdef Py_ssize_t row, rows, most
    if M <= GEMV_ROWS:
        for row in range(M):
            gemv("N", <int>N, <int>K, b, <int>ldb, a + row * lda, beta, c + row * ldc)
        return 0
    row, most = 0, rows_of_piece(N, K)
    while row < M:
        rows = min(M - row, most)
        gemm("N", "N", <int>N, <int>rows, <int>K, b, <int>ldb, a + row * lda, <int>lda, beta, c + row * ldc,
             <int>ldc)
        row += rows
        if row < M:
            ask(poll)
    return 0


cdef inline int gemm_tn(const Poll *poll, Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *a, Py_ssize_t lda,
                        const real *b, Py_ssize_t ldb, real beta, real *c, Py_ssize_t ldc) except -1 nogil:
    """c (M, N) = a (K, M)^T b (K, N) + beta c"""
    cdef Py_ssize_t k = 0, rows, most = rows_of_piece(M, N)
    while k < K:
        rows = min(K - k, most)
        gemm("N", "T", <int>N, <int>M, <int>rows, b + k * ldb, <int>ldb, a + k * lda, <int>lda, beta, c, <int>ldc)
        beta = 1
        k += rows
        if k < K:
            ask(poll)
    return 0


# --- one layer, one direction, by BLAS ----------------------------------------------------------------

cdef inline const fastrnn_table *table_of(real *_) noexcept nogil:
    """The kernels of the real type at hand."""
    return fastrnn_current_isa().table[0 if real is float else 1]


cdef inline void combine_bias(real *bias, const fastrnn_layer *layer, const fastrnn_weights *w) noexcept nogil:
    """bias (AH,) = b_ih + b_hh, block by block, each for the accumulator that it feeds."""
    cdef fastrnn_cell_shape shape = layer.shape
    cdef Py_ssize_t H = layer.H, k
    cdef const real *b_ih = <const real *>w.bias_ih if layer.has_bias_ih else NULL
    cdef const real *b_hh = <const real *>w.bias_hh if layer.has_bias_hh else NULL
    memset(bias, 0, layer.AH * sizeof(real))
    if b_ih != NULL:
        memcpy(bias, b_ih, shape.input_blocks * H * sizeof(real))
        if shape.gates > shape.input_blocks:
            memcpy(bias + (shape.accumulators - 1) * H, b_ih + shape.input_blocks * H, H * sizeof(real))
    if b_hh != NULL:
        for k in range(layer.G):
            bias[k] += b_hh[k]


cdef const real *rows_of_x(real *_, const Run *a, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t *ld) noexcept nogil:
    """Packed rows of x, `ld` apart: where they lie, or gathered for the chunk at hand."""
    ld[0] = a.layer.I if a.x.scattered else a.x.row
    if not a.x.scattered:
        return <const real *>a.x.data + first * a.x.row
    fastrnn_gather(a, &a.x, a.layer.I, first, rows, False, a.x_chunk)
    return <const real *>a.x_chunk


cdef int project_input(const real *bias, const Run *a, Py_ssize_t first, Py_ssize_t rows, real *gates) except -1 nogil:
    """gates (rows, AH) = bias + x W_ih^T, each block to its accumulator."""
    cdef const fastrnn_layer *layer = a.layer
    cdef fastrnn_cell_shape shape = layer.shape
    cdef Py_ssize_t H = layer.H, I = layer.I, AH = layer.AH, direct = shape.input_blocks * H, row, ldx
    cdef const real *w = <const real *>a.weights.weight_ih
    cdef const real *x = rows_of_x(<real *>NULL, a, first, rows, &ldx)
    for row in range(rows):
        memcpy(gates + row * AH, bias, AH * sizeof(real))
        if row % 1024 == 1023:
            ask(&a.poll)
    gemm_nt(&a.poll, rows, direct, I, x, ldx, w, I, <real>1, gates, AH)
    if shape.gates > shape.input_blocks:
        gemm_nt(&a.poll, rows, H, I, x, ldx, w + direct * I, I, <real>1, gates + AH - H, AH)


cdef int forward_steps(real *tag, const ForwardRun *a, Py_ssize_t first_step, Py_ssize_t steps, real *sums,
                       real *history) except -1 nogil:
    """The steps of a chunk, from the projected inputs `sums` of its rows; h of each to `history` (rows, ldh).

        sums[t] += h[t-1] W_hh^T;  h[t] = cell(sums[t])
    """
    cdef const Run *run = &a.run
    cdef const fastrnn_layer *layer = run.layer
    cdef fastrnn_cell cell = table_of(tag).cell[layer.cell]
    cdef Py_ssize_t H = layer.H, P = layer.P, AH = layer.AH, direct = layer.shape.hidden_blocks * H
    cdef Py_ssize_t first = run.offsets[first_step], step, t, at, n, row
    cdef const real *w_hh = <const real *>run.weights.weight_hh
    cdef real *h = <real *>run.h
    cdef real *unit = <real *>a.unit
    cdef real *step_sums
    cdef fastrnn_cell_forward cells
    memset(&cells, 0, sizeof(cells))
    cells.H = cells.end = H
    cells.sums.row, cells.sums.block, cells.sums.unit = AH, H, 1
    cells.c, cells.rh = run.c, unit
    cells.h_prev, cells.ld_prev = h, P
    cells.h, cells.ldh = unit if layer.projected else h, H
    for step in range(steps):
        t = first_step + (steps - 1 - step if layer.reverse else step)
        at, n = run.offsets[t] - first, run.offsets[t + 1] - run.offsets[t]
        step_sums = sums + at * AH
        cells.n, cells.sums.at = n, step_sums
        cells.gates = NULL if run.gates == NULL else step_sums
        cells.c_kept = NULL if run.c_rows == NULL else <real *>run.c_rows + run.offsets[t] * H
        gemm_nt(&run.poll, n, direct, P, h, P, w_hh, P, <real>1, step_sums, AH)
        if layer.shape.has_reset:
            cell.reset_forward(&cells)
            gemm_nt(&run.poll, n, H, H, unit, H, w_hh + direct * H, H, <real>1, step_sums + direct, AH)
        cell.forward(&cells)
        if layer.projected:
            gemm_nt(&run.poll, n, P, H, unit, H, <const real *>run.weights.weight_hr, H, <real>0, h, P)
        for row in range(n):
            memcpy(history + (at + row) * run.ldh, h + row * P, P * sizeof(real))
        ask(&run.poll)


cdef int forward_run(real *tag, const ForwardRun *a) except -1 nogil:
    """y, h_n, c_n of one layer and direction; fills `gates` and `c_rows` if they are kept.

    What is kept as gates are sums until the cell has run, so they need no scratch.
    """
    cdef const Run *run = &a.run
    cdef const fastrnn_layer *layer = run.layer
    cdef Py_ssize_t done = 0, steps, t, first, rows
    cdef real *bias = <real *>a.bias
    cdef real *sums
    cdef real *history
    combine_bias(bias, layer, run.weights)
    while done < run.T:
        steps = fastrnn_next_chunk(run, done, layer.reverse)
        t = run.T - done - steps if layer.reverse else done
        first = run.offsets[t]
        rows = run.offsets[t + steps] - first
        sums = <real *>a.sums if run.gates == NULL else <real *>run.gates + first * layer.AH
        history = <real *>run.h_rows + (0 if run.ring else first * run.ldh)
        project_input(bias, run, first, rows, sums)
        forward_steps(tag, a, t, steps, sums, history)
        if a.y.data != NULL:
            fastrnn_scatter(run, &a.y, layer.P, first, rows, True, history, run.ldh)
        done += steps
    return 0


cdef void rows_before(real *out, const real *kept, Py_ssize_t ld, const real *initial, Py_ssize_t width,
                      const Run *a, Py_ssize_t t) noexcept nogil:
    """out (n, width): the rows of `kept` that step t started from; `initial` where t is a row's first."""
    cdef Py_ssize_t n = a.offsets[t + 1] - a.offsets[t], before = t + 1 if a.layer.reverse else t - 1, m = 0, row
    if 0 <= before < a.T:
        m = min(n, a.offsets[before + 1] - a.offsets[before])
        kept += a.offsets[before] * ld
        for row in range(m):
            memcpy(out + row * width, kept + row * ld, width * sizeof(real))
    memcpy(out + m * width, initial + m * width, (n - m) * width * sizeof(real))


cdef int backward_step(real *tag, const BackwardRun *a, Py_ssize_t t, Py_ssize_t at, const real *dy,
                       Py_ssize_t lddy) except -1 nogil:
    """dgates of step t, to row `at` of the chunk's scratch, and dh, dc of the step before it.

        dgates[t] = cell'(dh[t] + dy[t]);  dh[t-1] += dgates[t] W_hh
    """
    cdef const Run *run = &a.run
    cdef const fastrnn_layer *layer = run.layer
    cdef fastrnn_cell cell = table_of(tag).cell[layer.cell]
    cdef Py_ssize_t H = layer.H, P = layer.P, AH = layer.AH, direct = layer.shape.hidden_blocks * H
    cdef Py_ssize_t first = run.offsets[t], n = run.offsets[t + 1] - first, row, k
    cdef const real *w_hh = <const real *>run.weights.weight_hh
    cdef real *dgates = <real *>a.dgates + at * AH
    cdef real *h_prev = <real *>a.h_prev + at * P
    cdef real *units = <real *>a.units + at * H if a.units != NULL else NULL
    cdef real *dh = <real *>a.dh
    cdef fastrnn_cell_backward cells
    memset(&cells, 0, sizeof(cells))
    cells.n, cells.H, cells.end = n, H, H
    cells.gates = <const real *>run.gates + first * AH
    cells.h_prev, cells.ld_prev = h_prev, P
    cells.dgates, cells.dh, cells.dc = dgates, dh, a.dc
    cells.h = cells.drh = units
    rows_before(h_prev, <const real *>run.h_rows, run.ldh, <const real *>run.h, P, run, t)
    if layer.shape.has_c:
        cells.c, cells.c_prev = <const real *>run.c_rows + first * H, a.c_prev
        rows_before(<real *>a.c_prev, <const real *>run.c_rows, H, <const real *>run.c, H, run, t)
    if layer.projected:
        if dy != NULL:
            for row in range(n):
                for k in range(P):
                    dh[row * P + k] += dy[row * lddy + k]
        memcpy(<real *>a.dh_rows + at * P, dh, n * P * sizeof(real))
        cells.dh = a.dunit
        gemm_nn(&run.poll, n, H, P, dh, P, <const real *>run.weights.weight_hr, H, <real>0, <real *>a.dunit, H)
    else:
        cells.dy, cells.lddy = dy, lddy
    cell.backward(&cells)
    if layer.shape.has_reset:
        gemm_nn(&run.poll, n, H, H, dgates + direct, AH, w_hh + direct * H, H, <real>0, units, H)
        cell.reset_backward(&cells)
    gemm_nn(&run.poll, n, P, direct, dgates, AH, w_hh, P, <real>0 if layer.projected else <real>1, dh, P)


cdef int weight_gradients(real *tag, const BackwardRun *a, Py_ssize_t first, Py_ssize_t rows,
                          bint first_chunk) except -1 nogil:
    """dW_hh += dgates^T h_prev;  dW_ih += dgates^T x;  db += sum of dgates, over a chunk of `rows` packed rows."""
    cdef real before = <real>0 if first_chunk else <real>1
    cdef const Run *run = &a.run
    cdef const Poll *poll = &run.poll
    cdef const fastrnn_layer *layer = run.layer
    cdef fastrnn_cell_shape shape = layer.shape
    cdef Py_ssize_t H = layer.H, P = layer.P, I = layer.I, AH = layer.AH, ldx
    cdef Py_ssize_t direct_x = shape.input_blocks * H, direct_h = shape.hidden_blocks * H
    cdef const real *dgates = <const real *>a.dgates
    cdef const real *x
    cdef real *dw_ih = <real *>a.dweights.weight_ih
    cdef real *dw_hh = <real *>a.dweights.weight_hh
    cdef real *dw_hr = <real *>a.dweights.weight_hr
    if dw_hh != NULL:
        gemm_tn(poll, direct_h, P, rows, dgates, AH, <const real *>a.h_prev, P, before, dw_hh, P)
        if shape.has_reset:
            gemm_tn(poll, H, H, rows, dgates + direct_h, AH, <const real *>a.units, H, before, dw_hh + direct_h * H, H)
    if dw_ih != NULL:
        x = rows_of_x(tag, run, first, rows, &ldx)
        gemm_tn(poll, direct_x, I, rows, dgates, AH, x, ldx, before, dw_ih, I)
        if shape.gates > shape.input_blocks:
            gemm_tn(poll, H, I, rows, dgates + AH - H, AH, x, ldx, before, dw_ih + direct_x * I, I)
    if dw_hr != NULL:
        gemm_tn(poll, P, H, rows, <const real *>a.dh_rows, P, <const real *>a.units, H, before, dw_hr, H)
    table_of(tag).add_rows(rows, AH, 0, AH, dgates, a.dbias)


cdef int input_gradient(real *_, const BackwardRun *a, Py_ssize_t first, Py_ssize_t rows) except -1 nogil:
    """dx = dgates W_ih of a chunk, added to what is there where the other direction has been."""
    cdef const Run *run = &a.run
    cdef const fastrnn_layer *layer = run.layer
    cdef Py_ssize_t H = layer.H, I = layer.I, AH = layer.AH, direct = layer.shape.input_blocks * H
    cdef Py_ssize_t ld = I if a.dx.scattered else a.dx.row
    cdef const real *dgates = <const real *>a.dgates
    cdef const real *w_ih = <const real *>run.weights.weight_ih
    cdef real *dx = <real *>a.dx_chunk if a.dx.scattered else <real *>a.dx.data + first * ld
    if a.dx.scattered and a.add_to_dx:
        fastrnn_gather(run, &a.dx, I, first, rows, False, dx)
    gemm_nn(&run.poll, rows, I, direct, dgates, AH, w_ih, I, <real>1 if a.add_to_dx else <real>0, dx, ld)
    if layer.shape.gates > layer.shape.input_blocks:
        gemm_nn(&run.poll, rows, I, H, dgates + AH - H, AH, w_ih + direct * I, I, <real>1, dx, ld)
    if a.dx.scattered:
        fastrnn_scatter(run, &a.dx, I, first, rows, False, dx, ld)


cdef int backward_run(real *tag, const BackwardRun *a) except -1 nogil:
    """BPTT of one layer and direction: against the order of forward_run, chunk by chunk."""
    cdef const Run *run = &a.run
    cdef const fastrnn_layer *layer = run.layer
    cdef Py_ssize_t done = 0, steps, step, t, at, from_step, first, rows, lddy = layer.P if a.dy.scattered else a.dy.row
    cdef const real *dy = NULL
    while done < run.T:
        steps = fastrnn_next_chunk(run, done, not layer.reverse)
        from_step = done if layer.reverse else run.T - done - steps
        first = run.offsets[from_step]
        rows = run.offsets[from_step + steps] - first
        if a.dy.data != NULL:
            dy = <const real *>a.dy_chunk if a.dy.scattered else <const real *>a.dy.data + first * lddy
            if a.dy.scattered:
                fastrnn_gather(run, &a.dy, layer.P, first, rows, True, a.dy_chunk)
        for step in range(steps):
            t = from_step + (step if layer.reverse else steps - 1 - step)
            at = run.offsets[t] - first
            backward_step(tag, a, t, at, dy + at * lddy if dy != NULL else dy, lddy)
            ask(&run.poll)
        weight_gradients(tag, a, first, rows, done == 0)
        if a.dx.data != NULL:
            input_gradient(tag, a, first, rows)
        done += steps
    return 0


cdef int forward_by_blas(real *tag, const ForwardRun *a) except -1 nogil:
    """`fastrnn_backend.forward`"""
    cdef uint64_t mode = fastrnn_flush_denormals()
    try:
        return forward_run(tag, a)
    finally:
        fastrnn_restore_mode(mode)


cdef int backward_by_blas(real *tag, const BackwardRun *a) except -1 nogil:
    """`fastrnn_backend.backward`"""
    cdef uint64_t mode = fastrnn_flush_denormals()
    try:
        return backward_run(tag, a)
    finally:
        fastrnn_restore_mode(mode)


cdef int forward_f32(const ForwardRun *a) except -1 nogil:
    return forward_by_blas(<float *>NULL, a)


cdef int forward_f64(const ForwardRun *a) except -1 nogil:
    return forward_by_blas(<double *>NULL, a)


cdef int backward_f32(const BackwardRun *a) except -1 nogil:
    return backward_by_blas(<float *>NULL, a)


cdef int backward_f64(const BackwardRun *a) except -1 nogil:
    return backward_by_blas(<double *>NULL, a)


blas_backend.forward[0], blas_backend.forward[1] = forward_f32, forward_f64
blas_backend.backward[0], blas_backend.backward[1] = backward_f32, backward_f64
fastrnn_register_backend(&blas_backend)


# --- memory -----------------------------------------------------------------------------------------

cdef inline void *data(object array) noexcept:
    return NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray>array)


cdef class Memory:
    """Uninitialised memory that begins at a cache line; grows when more is wanted, never shrinks."""

    cdef Block block

    def __dealloc__(self):
        self.release()

    cdef void release(self):
        if self.block.start != NULL:
            PyTraceMalloc_Untrack(TRACE_DOMAIN, <uintptr_t>self.block.start)
        fastrnn_give_block(self.block)
        self.block.start, self.block.size = NULL, 0

    cdef void *reserve(self, size_t size) except NULL:
        if self.block.start == NULL or size > self.block.size:
            self.release()
            self.block = fastrnn_take_block(size if size else 1)
            if self.block.start == NULL:
                raise MemoryError(f"{size} bytes for the arrays of a layer")
            PyTraceMalloc_Track(TRACE_DOMAIN, <uintptr_t>self.block.start, self.block.size)
        return self.block.start


    cdef bytes content(self, size_t size):
        return PyBytes_FromStringAndSize(<char *>self.block.start, size)

    cdef int fill(self, bytes content) except -1:
        memcpy(self.reserve(len(content)), <char *>content, len(content))
        return 0


cdef object new_array(int ndim, cnp.npy_intp *shape, int typenum):
    """As numpy.empty, from the cache of freed blocks where the array is large."""
    cdef size_t size = 4 if typenum == cnp.NPY_FLOAT32 else 8
    cdef Memory memory
    cdef int k, j
    for k in range(ndim):
        if shape[k] and size > <size_t>(PY_SSIZE_T_MAX // shape[k]):
            raise MemoryError(f"an array of shape {tuple([shape[j] for j in range(ndim)])}")
        size *= shape[k]
    if size < FASTRNN_LARGE_BLOCK:
        return cnp.PyArray_EMPTY(ndim, shape, typenum, 0)
    memory = Memory()
    array = cnp.PyArray_SimpleNewFromData(ndim, shape, typenum, memory.reserve(size))
    cnp.set_array_base(array, memory)
    return array


def spare_memory():
    """Bytes of freed arrays that are kept for later ones, 64 MiB at most."""
    return fastrnn_spare_bytes()


def release_memory():
    """Give the memory of freed arrays back to the system; how many bytes that were."""
    return fastrnn_release_memory()


def empty(tuple shape, dtype):
    """As numpy.empty of float32 or float64, from the cache of freed blocks where the array is large."""
    cdef cnp.npy_intp sizes[3]
    cdef int k
    for k in range(len(shape)):
        sizes[k] = shape[k]
    return new_array(len(shape), sizes, cnp.NPY_FLOAT32 if dtype == np.float32 else cnp.NPY_FLOAT64)


# --- weights ------------------------------------------------------------------------------------------

# Steps of at most UNPACKED_ROWS rows that the weights are multiplied for as they are: fewer than comparing them with
# a copy, or packing them, would cost.
cdef enum:
    UNPACKED_ROWS = 4
    UNPACKED_STEPS = 2
    PACKING_STEPS = 4


cdef class Weights:
    """The parameters of a stack, and their panels.

    `arrays` has a tuple (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr) for each layer and direction; the last three
    may be None. Without `owner`, they are those of one call: packed when they are first used. With it, the dict of a
    layer that holds the same arrays, they live on, and are packed again when they may have changed. They can change only
    through a view. `lend` marks the panels as possibly stale; it is called when a view has been made, before it is given
    away (not earlier: a call meanwhile would find nobody to hold it). From then on, until the last view is gone, every
    use compares the matrices with a copy.
    """

    cdef readonly list arrays
    cdef readonly Py_ssize_t packings  # how often panels were made
    cdef object owner
    cdef bint lent, has_copy
    cdef bint has_panels[2]
    cdef const fastrnn_isa *packed_by
    cdef fastrnn_weights *pointers
    cdef PyObject **matrices  # borrowed: `arrays` holds them
    cdef Py_ssize_t matrix_count
    cdef Memory panels_forward, panels_backward, copy

    def __cinit__(self, list arrays, *, owner=None):
        cdef Py_ssize_t k
        if owner is None:  # what the caller does to the shape or dtype of an array shall not reach this object
            arrays = [tuple([None if array is None else array.view() for array in part]) for part in arrays]
        self.arrays, self.owner = arrays, owner
        self.panels_forward, self.panels_backward, self.copy = Memory(), Memory(), Memory()
        self.pointers = <fastrnn_weights *>PyMem_Calloc(len(arrays), sizeof(fastrnn_weights))
        self.matrices = <PyObject **>PyMem_Calloc(3 * len(arrays), sizeof(PyObject *))
        if self.pointers == NULL or self.matrices == NULL:
            raise MemoryError
        for k, (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr) in enumerate(arrays):
            self.pointers[k] = fastrnn_weights(
                sizeof(fastrnn_weights), data(weight_ih), data(weight_hh), data(bias_ih), data(bias_hh), data(weight_hr)
            )
            for matrix in (weight_ih, weight_hh, weight_hr):
                if matrix is not None:
                    self.matrices[self.matrix_count] = <PyObject *>matrix
                    self.matrix_count += 1

    def __dealloc__(self):
        PyMem_Free(self.pointers)
        PyMem_Free(self.matrices)

    def __reduce__(self):
        return _remake_weights, (self.arrays, self.owner)

    def lend(self):
        """To be called once there is a view that somebody will be given, or after a change."""
        self.lent = True

    cdef bint lent_still(self):
        """Whether anyone but this object and the owner refers to a matrix: every view refers to it."""
        cdef Py_ssize_t k
        for k in range(self.matrix_count):
            if Py_REFCNT(self.matrices[k]) > 2:
                return True
        return False

    cdef bint compare(self, bint write) except -1:
        """Whether the copy differs; with `write`, it is made instead."""
        cdef size_t offset = 0, size = 0
        cdef Py_ssize_t k
        cdef char *copy
        for k in range(self.matrix_count):
            size += cnp.PyArray_NBYTES(<cnp.ndarray>self.matrices[k])
        copy = <char *>self.copy.reserve(size)
        for k in range(self.matrix_count):
            size = cnp.PyArray_NBYTES(<cnp.ndarray>self.matrices[k])
            at = cnp.PyArray_DATA(<cnp.ndarray>self.matrices[k])
            if write:
                memcpy(copy + offset, at, size)
            elif memcmp(copy + offset, at, size):
                return True
            offset += size
        return False

    cdef int attach(self, const fastrnn_stack *stack, fastrnn_call *call, bint backward) except -1:
        """Point `call` to the arrays, and to fresh panels of them."""
        cdef bint stale, watched
        cdef Py_ssize_t steps = call.T * ((call.B + UNPACKED_ROWS - 1) // UNPACKED_ROWS)
        cdef Memory memory = self.panels_backward if backward else self.panels_forward
        cdef const fastrnn_isa *isa = fastrnn_current_isa()
        call.weights = self.pointers
        if not fastrnn_is_fused():
            return 0
        stale = self.packed_by != isa
        if not backward and steps <= (UNPACKED_STEPS if self.owner is not None and not stale else PACKING_STEPS):
            if self.owner is None or (self.lent and self.lent_still()):
                call.panels = NULL
                return 0
        if self.lent:
            watched = self.lent_still()
            stale = stale or not watched or not self.has_copy or self.compare(False)
            if stale and watched:
                self.compare(True)
            self.has_copy = watched
            self.lent = watched
        if stale:
            self.has_panels[0] = self.has_panels[1] = False
            self.packed_by = isa
        if not self.has_panels[backward]:
            passes = FASTRNN_BACKWARD if backward else FASTRNN_FORWARD
            memory.reserve(fastrnn_panels_size(stack, passes))
            fastrnn_pack(stack, self.pointers, passes, memory.block.start)
            self.has_panels[backward] = True
            self.packings += 1
        if backward:
            call.panels_backward = memory.block.start
        else:
            call.panels = memory.block.start
        return 0


def _remake_weights(arrays, owner):
    return Weights(arrays, owner=owner)


# --- batches ------------------------------------------------------------------------------------------

cdef class Map:
    """Which steps of a batch (T, B) are real, and where episodes begin, compiled for the engine.

    lengths (B,) of intp, mask and reset (T, B) of bool, or None. N steps are real, in S segments.
    """

    cdef Memory memory
    cdef readonly Py_ssize_t T, B, N, S

    def __init__(self, Py_ssize_t T, Py_ssize_t B, lengths=None, mask=None, reset=None, *, bint repeat=False):
        cdef fastrnn_batch batch
        cdef char error[256]
        cdef int64_t N, S
        memset(&batch, 0, sizeof(batch))
        batch.size, batch.T, batch.B, batch.repeat_masked = sizeof(batch), T, B, repeat
        batch.lengths = <const int64_t *>data(lengths)
        if mask is not None:
            batch.mask = <const uint8_t *>data(mask)
            batch.mask_step, batch.mask_row = mask.strides
        if reset is not None:
            batch.reset = <const uint8_t *>data(reset)
            batch.reset_step, batch.reset_row = reset.strides
        self.memory = Memory()
        self.memory.reserve(fastrnn_map_size(T, B))
        if fastrnn_map(&batch, self.memory.block.start, error):
            raise ValueError(error.decode())
        fastrnn_map_counts(self.memory.block.start, &N, &S)
        self.T, self.B, self.N, self.S = T, B, N, S

    def __reduce__(self):
        return _remake_map, (self.T, self.B, self.N, self.S, self.memory.content(fastrnn_map_size(self.T, self.B)))


def _remake_map(Py_ssize_t T, Py_ssize_t B, Py_ssize_t N, Py_ssize_t S, bytes content):
    cdef Map map = Map.__new__(Map)
    map.T, map.B, map.N, map.S, map.memory = T, B, N, S, Memory()
    map.memory.fill(content)
    return map


# --- stacks -------------------------------------------------------------------------------------------

cdef object owner_of(array):
    """The array whose memory `array` shows."""
    while isinstance(array.base, cnp.ndarray):
        array = array.base
    return array


cdef class Stack


cdef class Tape:
    """What backward needs of a call of forward.

    x and y are views of the memory that forward got and returned, of which nobody else holds the array object: what the
    caller does to the shape or dtype of an array does not reach them.
    """

    cdef readonly Stack stack
    cdef readonly object x, y
    cdef readonly Map map
    cdef object masks
    cdef double scale
    cdef list held
    cdef Memory memory
    cdef size_t size
    cdef public object owner   # the layer or function whose tape it is
    cdef public bint batched   # whether the caller's arrays have an axis for B

    cdef int hold(self) except -1:
        """Keep the memory of the caller's arrays where it is: NumPy resizes no array that has a weak reference,
        refcheck=False or not."""
        self.held = [weakref.ref(owner_of(self.x)), weakref.ref(owner_of(self.y))]
        if self.stack.weights.owner is None:
            for part in self.stack.weights.arrays:
                self.held += [weakref.ref(owner_of(array)) for array in part if array is not None]
        return 0

    @property
    def nbytes(self):
        """What the tape holds beside x and y."""
        return self.size

    def __reduce__(self):
        parts = (self.stack, self.x, self.y, self.map, self.masks, self.scale, self.owner, self.batched)
        return _remake_tape, (parts, self.memory.content(self.size))


def _remake_tape(tuple parts, bytes content):
    cdef Tape tape = Tape.__new__(Tape)
    tape.stack, tape.x, tape.y, tape.map, tape.masks, tape.scale, tape.owner, tape.batched = parts
    tape.memory, tape.size = Memory(), len(content)
    tape.memory.fill(content)
    return tape


cdef fastrnn_sequence as_sequence(array) noexcept:
    """An array (T, B, width) with a contiguous last axis, or None."""
    cdef fastrnn_sequence s = fastrnn_sequence(NULL, 0, 0)
    cdef Py_ssize_t item
    if array is not None:
        item = cnp.PyArray_ITEMSIZE(array)
        s.data = data(array)
        s.step, s.row = cnp.PyArray_STRIDE(array, 0) // item, cnp.PyArray_STRIDE(array, 1) // item
    return s


cdef class Stack:
    """A stack of layers: `weights` layer by layer, `directions` (1 or 2) of them in each; or of one layer, in reverse."""

    cdef fastrnn_stack *stack
    cdef readonly Weights weights
    cdef readonly int cell, directions, count
    cdef int typenum
    cdef bint has_c
    cdef readonly bint reverse
    cdef Py_ssize_t I, H, P, itemsize

    def __cinit__(self, int cell, Weights weights, int directions, bint reverse=False):
        cdef fastrnn_cell_shape shape = fastrnn_cell_shapes[cell]
        cdef int k, count = len(weights.arrays)
        cdef char error[256]
        cdef fastrnn_spec *specs = <fastrnn_spec *>PyMem_Calloc(count, sizeof(fastrnn_spec))
        if specs == NULL:
            raise MemoryError
        try:
            for k, (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr) in enumerate(weights.arrays):
                specs[k] = fastrnn_spec(
                    sizeof(fastrnn_spec), shape.name,
                    FASTRNN_F32 if cnp.PyArray_TYPE(weight_ih) == cnp.NPY_FLOAT32 else FASTRNN_F64,
                    weight_ih.shape[1], weight_ih.shape[0] // shape.gates, weight_hh.shape[1],
                    (FASTRNN_BIAS_IH if bias_ih is not None else 0) | (FASTRNN_BIAS_HH if bias_hh is not None else 0)
                    | (FASTRNN_PROJECTED if weight_hr is not None else 0) | (FASTRNN_REVERSE if reverse else 0),
                )
            self.I, self.H, self.P = specs[0].I, specs[0].H, specs[0].P
            if fastrnn_stack_new(specs, count // directions, directions, &self.stack, error):
                raise ValueError(error.decode())
        finally:
            PyMem_Free(specs)
        self.cell, self.weights, self.directions, self.count, self.reverse = cell, weights, directions, count, reverse
        self.typenum = cnp.PyArray_TYPE(weights.arrays[0][0])
        self.itemsize = 4 if self.typenum == cnp.NPY_FLOAT32 else 8
        self.has_c = shape.has_c

    def __dealloc__(self):
        fastrnn_stack_free(self.stack)

    @property
    def hidden_size(self):
        """H."""
        return self.H

    def __reduce__(self):
        return Stack, (self.cell, self.weights, self.directions, self.reverse)

    # -- the general form: arrays are what the engine takes

    def infer(self, x, h, c, y, Map map=None):
        """y of x, (T, B, D*P) of (T, B, I), any strides but the last; h and c, or None, go from initial to final."""
        self.forward(x, h, c, y, map, None, 0, False)

    def keep(self, x, h, c, y, Map map=None, masks=None, double scale=0):
        """As `infer`, and the `Tape`. masks (L-1, N, D*P): what dropout keeps of the inputs of the layers above the
        first, which are multiplied with `scale`."""
        return self.forward(x, h, c, y, map, masks, scale, True)

    def back(self, Tape tape, dy, dh, dc, dx):
        """BPTT. dy (T, B, D*P) may be None; dh and dc go from the gradients of the final to those of the initial states;
        dx (T, B, I) is written. Returns a list like `weights.arrays` with the gradients."""
        cdef fastrnn_call call
        cdef fastrnn_weights *pointers
        gradients = [tuple([None if array is None else new_like(array) for array in part])
                     for part in self.weights.arrays]
        holder = Weights(gradients, owner=gradients)
        pointers = (<Weights>holder).pointers
        self.open(&call, tape.x, tape.y, tape.map)
        call.keep = FASTRNN_KEEP_ALL
        call.x_masks, call.x_scale = <const uint8_t *>data(tape.masks), tape.scale
        call.tape, call.tape_size = tape.memory.block.start, tape.size
        call.dy, call.dx = as_sequence(dy), as_sequence(dx)
        call.dh_n, call.dc_n, call.dh_0, call.dc_0 = data(dh), data(dc), data(dh), data(dc)
        call.dweights = pointers
        self.weights.attach(self.stack, &call, True)
        self.run(&call, True)
        return gradients

    cdef int open(self, fastrnn_call *call, x, y, Map map) except -1:
        memset(call, 0, sizeof(fastrnn_call))
        call.size = sizeof(fastrnn_call)
        call.T, call.B = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1)
        call.x, call.y = as_sequence(x), as_sequence(y)
        if map is not None:
            call.map = map.memory.block.start
        return 0

    cdef Tape forward(self, x, h, c, y, Map map, masks, double scale, bint keep):
        cdef fastrnn_call call
        cdef Tape tape = None
        if keep:
            tape = Tape.__new__(Tape)
            tape.stack, tape.map, tape.masks, tape.scale, tape.memory = self, map, masks, scale, Memory()
            tape.x, tape.y = x.view(), y.view()
            tape.hold()
        self.open(&call, x, y, map)
        call.h_0, call.c_0, call.h_n, call.c_n = data(h), data(c), data(h), data(c)
        call.x_masks, call.x_scale = <const uint8_t *>data(masks), scale
        self.weights.attach(self.stack, &call, False)
        if keep:
            call.keep = FASTRNN_KEEP_ALL
            fastrnn_call_sizes(self.stack, &call, FASTRNN_FORWARD, &tape.size, &call.workspace_size)
            call.tape, call.tape_size = tape.memory.reserve(tape.size), tape.size
        self.run(&call, False)
        return tape

    cdef int run(self, fastrnn_call *call, bint backward) except -1:
        cdef Memory workspace = Memory()
        cdef Watch watch
        cdef fastrnn_status status
        fastrnn_call_sizes(self.stack, call, FASTRNN_BACKWARD if backward else FASTRNN_FORWARD, NULL,
                           &call.workspace_size)
        call.workspace = workspace.reserve(call.workspace_size)
        watch = Watch(0, fastrnn_current_mode())
        call.poll, call.poll_context = ask_for_signals, &watch
        with nogil:
            status = fastrnn_backward(self.stack, call) if backward else fastrnn_forward(self.stack, call)
        return raise_stopped() if status == FASTRNN_STOPPED else 0

    # -- the short way: arguments that are exactly right need no other check; None for all others

    def call_exact(self, x, state):
        """(y, state) of x (T, B, I) at inference."""
        states = self.begin(x, state)
        if states is None:
            return None
        h, c = states
        y = self.new_output(x)
        self.forward(x, h, c, y, None, None, 0, False)
        return y, (h if c is None else states)

    def keep_exact(self, x, state):
        """(y, state, tape) of x (T, B, I)."""
        states = self.begin(x, state)
        if states is None:
            return None
        h, c = states
        y = self.new_output(x)
        tape = self.forward(x, h, c, y, None, None, 0, True)
        tape.batched = True
        cnp.PyArray_CLEARFLAGS(y, cnp.NPY_ARRAY_WRITEABLE)  # the tape has a view of it
        return y, (h if c is None else states), tape

    def back_exact(self, Tape tape, dy, dstate):
        """(dx, dstate, gradients) for a tape of `keep_exact`."""
        x = tape.x
        if (type(dy) is not cnp.ndarray or cnp.PyArray_TYPE(dy) != self.typenum or cnp.PyArray_NDIM(dy) != 3
                or not cnp.PyArray_ISCARRAY_RO(dy) or cnp.PyArray_DIM(dy, 0) != cnp.PyArray_DIM(x, 0)
                or cnp.PyArray_DIM(dy, 1) != cnp.PyArray_DIM(x, 1)
                or cnp.PyArray_DIM(dy, 2) != self.directions * self.P or tape.map is not None):
            return None
        states = self.begin(x, dstate)
        if states is None:
            return None
        dh, dc = states
        dx = new_like(x)
        return dx, (dh if dc is None else states), self.back(tape, dy, dh, dc, dx)

    cdef tuple begin(self, x, state):
        """Copies of the states, (h, c or None), or None if x or state is not exactly what the engine takes."""
        cdef Py_ssize_t T, B
        if (type(x) is not cnp.ndarray or cnp.PyArray_TYPE(x) != self.typenum or cnp.PyArray_NDIM(x) != 3
                or cnp.PyArray_DIM(x, 2) != self.I or not cnp.PyArray_ISCARRAY_RO(x)):
            return None
        T, B = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1)
        if not T or not B or T * B > 0x7fffffff:
            return None
        if state is None:
            return (self.new_state(NULL, B, self.P), self.new_state(NULL, B, self.H) if self.has_c else None)
        if not self.has_c:
            return (self.new_state(data(state), B, self.P), None) if self.is_state(state, B, self.P) else None
        if type(state) is not tuple or len(<tuple>state) != 2:
            return None
        h, c = <tuple>state
        if not (self.is_state(h, B, self.P) and self.is_state(c, B, self.H)):
            return None
        return self.new_state(data(h), B, self.P), self.new_state(data(c), B, self.H)

    cdef object new_output(self, x):
        cdef cnp.npy_intp shape[3]
        shape[0], shape[1], shape[2] = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), self.directions * self.P
        return new_array(3, shape, self.typenum)

    cdef bint is_state(self, state, Py_ssize_t B, Py_ssize_t width):
        return (type(state) is cnp.ndarray and cnp.PyArray_TYPE(state) == self.typenum
                and cnp.PyArray_NDIM(state) == 3 and cnp.PyArray_DIM(state, 0) == self.count
                and cnp.PyArray_DIM(state, 1) == B and cnp.PyArray_DIM(state, 2) == width
                and cnp.PyArray_ISCARRAY_RO(state))

    cdef object new_state(self, const void *values, Py_ssize_t B, Py_ssize_t width):
        cdef cnp.npy_intp shape[3]
        shape[0], shape[1], shape[2] = self.count, B, width
        state = cnp.PyArray_EMPTY(3, shape, self.typenum, 0)
        if values == NULL:
            memset(data(state), 0, self.count * B * width * self.itemsize)
        else:
            memcpy(data(state), values, self.count * B * width * self.itemsize)
        return state


cdef object new_like(array):
    return new_array(cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array), cnp.PyArray_TYPE(array))


cdef class Turn:
    """Held by the one thread that may change an object at a time; a second one gets a RuntimeError and does not wait.

    Waiting would not help: an object such as a stream has one sequence of calls, and means nothing to two threads that
    take turns. A signal handler that comes back to the object is a second one, too. The class is compiled so that no
    signal handler can run between taking the turn and the body of the `with` statement.
    """

    cdef str what
    cdef bint taken

    def __init__(self, str what):
        self.what = what

    def __enter__(self):
        self.take()

    def __exit__(self, *_):
        self.taken = False

    cdef int take(self) except -1:
        if self.taken:
            raise RuntimeError(f"{self.what} is in use by another thread")
        self.taken = True
        return 0


cdef class Stepper:
    """A stack, one step at a time, bound once to its arrays: a step allocates nothing.

    `turn` is held by the thread that steps, or reads or writes the state.
    """

    cdef Stack stack
    cdef fastrnn_call call
    cdef int typenum
    cdef Py_ssize_t rows, I
    cdef readonly Turn turn
    cdef readonly Py_ssize_t steps  # that have been taken
    cdef readonly object h, c       # the state, and copies from before the last step
    cdef object h_before, c_before
    cdef size_t h_bytes, c_bytes
    cdef readonly object x
    cdef object y, lent, lent_row  # y is never given away, only views of it
    cdef Memory workspace

    def __cinit__(self, Stack stack, Py_ssize_t rows):
        cdef Py_ssize_t P = stack.P
        dtype = np.float32 if stack.typenum == cnp.NPY_FLOAT32 else np.float64
        self.stack, self.rows, self.I, self.typenum = stack, rows, stack.I, stack.typenum
        self.turn = Turn("the stream")
        self.h = np.zeros((stack.count, rows, P), dtype)
        self.c = np.zeros((stack.count, rows, stack.H), dtype) if stack.has_c else None
        self.h_before, self.c_before = self.h.copy(), None if self.c is None else self.c.copy()
        self.h_bytes, self.c_bytes = self.h.nbytes, 0 if self.c is None else self.c.nbytes
        self.x, self.y = np.zeros((rows, stack.I), dtype), np.zeros((rows, P), dtype)
        self.workspace = Memory()
        stack.open(&self.call, self.x[np.newaxis], self.y[np.newaxis], None)
        self.call.h_0 = self.call.h_n = data(self.h)
        self.call.c_0 = self.call.c_n = data(self.c)
        fastrnn_call_sizes(stack.stack, &self.call, FASTRNN_FORWARD, NULL, &self.call.workspace_size)
        self.call.workspace = self.workspace.reserve(self.call.workspace_size)

    def step(self, x_t):
        """One step of x_t (B, I), or (I,) where B is 1; the stream's own y of the same form.

        None, and nothing done, if x_t is not exactly what the engine takes.
        """
        cdef bint row = self.rows == 1 and cnp.PyArray_NDIM(x_t) == 1
        if (cnp.PyArray_TYPE(x_t) != self.typenum or not cnp.PyArray_ISCARRAY_RO(x_t)
                or not (row or (cnp.PyArray_NDIM(x_t) == 2 and cnp.PyArray_DIM(x_t, 0) == self.rows))
                or cnp.PyArray_DIM(x_t, 0 if row else 1) != self.I):
            return None
        self.turn.take()
        try:
            memcpy(data(self.x), data(x_t), cnp.PyArray_NBYTES(<cnp.ndarray>x_t))
            self.run()
        finally:
            self.turn.taken = False
        if row:
            self.lent_row = self.as_made(self.lent_row, True)
            return self.lent_row
        self.lent = self.as_made(self.lent, False)
        return self.lent

    cdef int run(self) except -1:
        """One step of what `x` holds; the state is as before if it is interrupted."""
        cdef Watch watch
        cdef fastrnn_status status
        self.stack.weights.attach(self.stack.stack, &self.call, False)
        memcpy(data(self.h_before), self.call.h_n, self.h_bytes)
        if self.c_bytes:
            memcpy(data(self.c_before), self.call.c_n, self.c_bytes)
        watch = Watch(0, fastrnn_current_mode())
        self.call.poll, self.call.poll_context = ask_for_signals, &watch
        with nogil:
            status = fastrnn_forward(self.stack.stack, &self.call)
        if status == FASTRNN_STOPPED:
            self.put_back()
            return raise_stopped()
        self.steps += 1
        return 0

    def undo(self):
        """Put the state back that was there before the last step. Only one step can be undone."""
        self.put_back()
        self.steps -= 1

    cdef void put_back(self):
        memcpy(self.call.h_n, data(self.h_before), self.h_bytes)
        if self.c_bytes:
            memcpy(self.call.c_n, data(self.c_before), self.c_bytes)

    cdef object as_made(self, view, bint row):
        """`view` of y, or of its only row, unless the caller, who may have it, has given it another form."""
        cdef int ndim = 1 if row else 2
        if (view is not None and cnp.PyArray_NDIM(view) == ndim and cnp.PyArray_TYPE(view) == self.typenum
                and data(view) == data(self.y) and cnp.PyArray_ISCARRAY(view)
                and cnp.PyArray_DIM(view, ndim - 1) == cnp.PyArray_DIM(self.y, 1)
                and (row or cnp.PyArray_DIM(view, 0) == self.rows)):
            return view
        return self.y[0] if row else self.y.view()


# --- products of other layers ---------------------------------------------------------------------------

cdef int product_by_blas(real *_, const Poll *poll, bint transpose_a, bint transpose_b, Py_ssize_t M, Py_ssize_t N,
                         Py_ssize_t K, void *a, void *b, void *c) except -1 nogil:
    if transpose_a:
        return gemm_tn(poll, M, N, K, <const real *>a, M, <const real *>b, N, <real>0, <real *>c, N)
    if transpose_b:
        return gemm_nt(poll, M, N, K, <const real *>a, K, <const real *>b, K, <real>0, <real *>c, N)
    return gemm_nn(poll, M, N, K, <const real *>a, K, <const real *>b, N, <real>0, <real *>c, N)


cdef int product_by_engine(real *tag, const Poll *poll, bint transpose_a, bint transpose_b, Py_ssize_t M, Py_ssize_t N,
                           Py_ssize_t K, void *a, void *b, void *c) except -1:
    cdef Memory panels = Memory()
    cdef const fastrnn_table *table
    cdef real *to
    cdef int stopped, threads = fastrnn_get_threads()
    table = table_of(tag)
    to = <real *>panels.reserve(table.packed_size(1, N, K) * sizeof(real))
    with nogil:
        if transpose_b:
            table.pack_rows(1, N, K, <const real *>b, to)
        else:
            table.pack_columns(N, K, <const real *>b, to)
        stopped = table.multiply(M, N, K, <const real *>a, 1 if transpose_a else K, M if transpose_a else 1, to,
                                 <real *>c, threads, poll)
    return raise_stopped() if stopped else 0


cdef int check_matrix(str name, matrix, int typenum) except -1:
    """Whether the kernels can take `matrix` as it is: caller's arrays can change between two calls."""
    if (not isinstance(matrix, cnp.ndarray) or cnp.PyArray_TYPE(matrix) != typenum or cnp.PyArray_NDIM(matrix) != 2
            or not cnp.PyArray_ISCARRAY_RO(matrix)):
        raise ValueError(f"product: {name} is not a contiguous matrix of the dtype of the others")
    return 0


def product(a, b, c, *, bint transpose_a=False, bint transpose_b=False):
    """c = a b, of contiguous matrices of one dtype, one of the two factors transposed or none.

    For the layers around the recurrent ones. It goes to the engine in use, not to NumPy's BLAS: two libraries whose
    threads spin on the same cores cost more than either gains.
    """
    cdef int typenum = cnp.NPY_FLOAT32 if c.dtype == np.float32 else cnp.NPY_FLOAT64
    cdef bint single = typenum == cnp.NPY_FLOAT32
    cdef Py_ssize_t M, N, K
    cdef void *pa = data(a)
    cdef void *pb = data(b)
    cdef void *pc = data(c)
    cdef Watch watch
    cdef Poll poll
    cdef bint fused = fastrnn_is_fused()
    check_matrix("a", a, typenum)
    check_matrix("b", b, typenum)
    check_matrix("c", c, typenum)
    M, N, K = c.shape[0], c.shape[1], a.shape[0] if transpose_a else a.shape[1]
    if a.shape[transpose_a] != M or b.shape[not transpose_b] != N or b.shape[transpose_b] != K:
        raise ValueError(f"product: shapes {a.shape}, {b.shape} and {c.shape} do not fit together")
    if not M or not N:
        return
    if max(M, N, K) > 0x7fffffff:
        raise ValueError(f"product: sizes {M}, {N}, {K} are more than BLAS takes")
    if not K:
        c[...] = 0
        return
    watch = Watch(0, fastrnn_flush_denormals())
    poll = Poll(ask_for_signals, &watch)
    try:
        if fused and single:
            product_by_engine(<float *>NULL, &poll, transpose_a, transpose_b, M, N, K, pa, pb, pc)
        elif fused:
            product_by_engine(<double *>NULL, &poll, transpose_a, transpose_b, M, N, K, pa, pb, pc)
        elif single:
            with nogil:
                product_by_blas(<float *>NULL, &poll, transpose_a, transpose_b, M, N, K, pa, pb, pc)
        else:
            with nogil:
                product_by_blas(<double *>NULL, &poll, transpose_a, transpose_b, M, N, K, pa, pb, pc)
    finally:
        fastrnn_restore_mode(watch.mode)


def activation(str name, x):
    """tanh or sigmoid of a contiguous float32 or float64 array, by the kernels in use."""
    y = np.empty_like(x)
    cdef Py_ssize_t n = x.size
    cdef bint sigmoid = name == "sigmoid"
    cdef uint64_t mode = fastrnn_flush_denormals()
    table = fastrnn_current_isa().table[0 if x.dtype == np.float32 else 1]
    (table.sigmoid if sigmoid else table.tanh)(n, data(x), data(y))
    fastrnn_restore_mode(mode)
    return y
