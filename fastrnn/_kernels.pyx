"""One layer, one direction, forward and back, over packed rows: what Python calls.

There are two ways to run one. The fused engine (src/kernels/sequence.h) does all of it, where the processor
has an instruction set for it. The portable path stands here: loops over time whose products are BLAS calls
and whose elementwise steps are a cell of src/kernels, chosen by number. Both know a cell only by its
`fastrnn_cell_shape`: how many accumulators it has and which products feed them.

`fastrnn_run` (src/kernels/kernels.h) names every array and its shape. Nothing here validates:
fastrnn/sequence.py hands over arrays that it has made or checked itself.
"""

cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cpython.ref cimport PyObject
from cython cimport floating as real
from libc.stdint cimport uint64_t, uintptr_t
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

cdef extern from "threads.h" nogil:
    enum:
        FASTRNN_MOST_THREADS
        FASTRNN_FORKED
    ctypedef struct Poll "fastrnn_poll":
        int (*ask)(void *) except -1 nogil
        void *context
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
    enum: FASTRNN_MOST_ISAS
    ctypedef struct fastrnn_cell_shape:
        const char *name
        int gates, accumulators, input_blocks, hidden_blocks, has_c, has_reset, stages
    ctypedef struct Run "fastrnn_run":
        int cell, reverse, projected, accumulate_dx
        Py_ssize_t T, B, I, H, P, chunk, ldy, lddy
        const Py_ssize_t *offsets
        const void *x
        const void *weight_ih
        const void *weight_hh
        const void *weight_hr
        const void *bias_ih
        const void *bias_hh
        void *h
        void *c
        void *y
        void *sums
        void *gates
        void *c_kept
        void *bias
        void *unit
        const void *dy
        void *dh
        void *dc
        void *dgates
        void *units
        void *dh_kept
        void *dunit
        void *dx
        void *dweight_ih
        void *dweight_hh
        void *dweight_hr
        void *h_prev
        void *c_prev
        const void *packed_ih
        const void *packed_hh
        const void *packed_hr
        const void *columns_ih
        const void *columns_hh
        const void *columns_hr
        void *panels_dgates
        void *panels_h
        void *panels_x
        void *panels_units
        int threads
        Poll poll
    ctypedef struct fastrnn_sums_f32:
        float *at
        Py_ssize_t row, block, unit
    ctypedef struct fastrnn_cell_f32:
        void (*forward)(Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const fastrnn_sums_f32 *, float *,
                        const float *, Py_ssize_t, float *, Py_ssize_t, float *, float *) noexcept nogil
        void (*backward)(Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const float *, const float *, Py_ssize_t,
                         const float *, const float *, const float *, Py_ssize_t, float *, float *, float *,
                         float *) noexcept nogil
        void (*reset_forward)(Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const fastrnn_sums_f32 *,
                              const float *, Py_ssize_t, float *) noexcept nogil
        void (*reset_backward)(Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const float *, const float *,
                               Py_ssize_t, float *, float *, float *) noexcept nogil
    ctypedef struct fastrnn_sums_f64:
        double *at
        Py_ssize_t row, block, unit
    ctypedef struct fastrnn_cell_f64:
        void (*forward)(Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const fastrnn_sums_f64 *, double *,
                        const double *, Py_ssize_t, double *, Py_ssize_t, double *, double *) noexcept nogil
        void (*backward)(Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *, const double *,
                         Py_ssize_t, const double *, const double *, const double *, Py_ssize_t, double *,
                         double *, double *, double *) noexcept nogil
        void (*reset_forward)(Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const fastrnn_sums_f64 *,
                              const double *, Py_ssize_t, double *) noexcept nogil
        void (*reset_backward)(Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *, const double *,
                               Py_ssize_t, double *, double *, double *) noexcept nogil
    ctypedef struct fastrnn_table_f32:
        const fastrnn_cell_f32 *cell
        void (*add_rows)(Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const float *, float *) noexcept nogil
        void (*tanh)(Py_ssize_t, const float *, float *) noexcept nogil
        void (*sigmoid)(Py_ssize_t, const float *, float *) noexcept nogil
        Py_ssize_t (*packed_size)(int, Py_ssize_t, Py_ssize_t) noexcept nogil
        void (*pack_rows)(int, Py_ssize_t, Py_ssize_t, const float *, float *) noexcept nogil
        void (*pack_columns)(Py_ssize_t, Py_ssize_t, const float *, float *) noexcept nogil
        int (*multiply)(Py_ssize_t, Py_ssize_t, Py_ssize_t, const float *, Py_ssize_t, Py_ssize_t,
                        const float *, float *, int, const Poll *) except -1 nogil
        Py_ssize_t (*sums_size)(int, Py_ssize_t, Py_ssize_t) noexcept nogil
        int (*run_forward)(Run *) except -1 nogil
        int (*run_backward)(Run *) except -1 nogil
    ctypedef struct fastrnn_table_f64:
        const fastrnn_cell_f64 *cell
        void (*add_rows)(Py_ssize_t, Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *, double *) noexcept nogil
        void (*tanh)(Py_ssize_t, const double *, double *) noexcept nogil
        void (*sigmoid)(Py_ssize_t, const double *, double *) noexcept nogil
        Py_ssize_t (*packed_size)(int, Py_ssize_t, Py_ssize_t) noexcept nogil
        void (*pack_rows)(int, Py_ssize_t, Py_ssize_t, const double *, double *) noexcept nogil
        void (*pack_columns)(Py_ssize_t, Py_ssize_t, const double *, double *) noexcept nogil
        int (*multiply)(Py_ssize_t, Py_ssize_t, Py_ssize_t, const double *, Py_ssize_t, Py_ssize_t,
                        const double *, double *, int, const Poll *) except -1 nogil
        Py_ssize_t (*sums_size)(int, Py_ssize_t, Py_ssize_t) noexcept nogil
        int (*run_forward)(Run *) except -1 nogil
        int (*run_backward)(Run *) except -1 nogil
    ctypedef struct fastrnn_isa:
        const char *name
        int lanes_f32
        const fastrnn_table_f32 *f32
        const fastrnn_table_f64 *f64
    const fastrnn_cell_shape fastrnn_cell_shapes[]
    int fastrnn_available_isas(const fastrnn_isa **)
    double fastrnn_seconds()


# --- the engine in use --------------------------------------------------------------------------------

cdef const fastrnn_isa *available_isas[FASTRNN_MOST_ISAS]
cdef int isa_count = fastrnn_available_isas(available_isas)
cdef const fastrnn_isa *isa = available_isas[isa_count - 1]  # of the elementwise kernels, and of the engine
cdef bint fused = isa.f32.run_forward != NULL  # products by the engine, not by BLAS
cdef int most_threads = 1
MOST_THREADS = FASTRNN_MOST_THREADS  # of one call


def engines():
    """Names of the engines that this machine has, the default last.

    Each instruction set is one; `blas` is SciPy's products with the elementwise kernels of the widest.
    `baseline`, which every processor has, has no fused kernels, so its products are SciPy's as well.
    """
    names = [available_isas[k].name.decode() for k in range(isa_count)]
    return [*names, "blas"] if isa_count == 1 else ["blas", *names]


def use_engine(str name):
    """Run everything from now on by the engine `name`, one of engines(). Returns the one used before."""
    global isa, fused
    before = engine()
    names = [available_isas[k].name.decode() for k in range(isa_count)]
    isa = available_isas[isa_count - 1 if name == "blas" else names.index(name)]
    fused = name != "blas" and isa.f32.run_forward != NULL
    return before


def engine():
    """The name of the engine in use."""
    blas = not fused and (isa_count == 1 or isa.f32.run_forward != NULL)
    return "blas" if blas else isa.name.decode()


def is_fused():
    """Whether products are the engine's own, not BLAS's."""
    return fused


def use_threads(int n):
    """Let the engine use up to `n` threads. Returns the number before."""
    global most_threads
    before, most_threads = most_threads, n
    return before


def threads():
    """The most threads that the engine uses."""
    return most_threads


def cell_shapes():
    """The `fastrnn_cell_shape` of every cell as a dict, by the cell's number."""
    return [dict(fastrnn_cell_shapes[k], name=fastrnn_cell_shapes[k].name.decode()) for k in range(FASTRNN_CELLS)]


# --- Ctrl-C -------------------------------------------------------------------------------------------

cdef struct Watch:
    double last      # when signals were looked for
    uint64_t mode    # the caller's floating-point mode


cdef inline int look_for_signals(Watch *watch) except -1 nogil:
    """Ten times a second a long call takes the GIL to see whether Ctrl-C waits; it raises then."""
    cdef double now = fastrnn_seconds()
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


cdef int check_end(int end) except -1 nogil:
    """What a call of the engine returned, if it is not an exception: 0, or that the process forked meanwhile."""
    if end:
        with gil:
            raise RuntimeError("the process forked in the middle of a call of fastrnn: the child cannot finish it")
    return 0


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


cdef inline int gemm_nt(Watch *watch, Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *a, Py_ssize_t lda,
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
            look_for_signals(watch)
    return 0


cdef inline int gemm_nn(Watch *watch, Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *a, Py_ssize_t lda,
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
            look_for_signals(watch)
    return 0


cdef inline int gemm_tn(Watch *watch, Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *a, Py_ssize_t lda,
                        const real *b, Py_ssize_t ldb, real beta, real *c, Py_ssize_t ldc) except -1 nogil:
    """c (M, N) = a (K, M)^T b (K, N) + beta c"""
    cdef Py_ssize_t k = 0, rows, most = rows_of_piece(M, N)
    while k < K:
        rows = min(K - k, most)
        gemm("N", "T", <int>N, <int>M, <int>rows, b + k * ldb, <int>ldb, a + k * lda, <int>lda, beta, c, <int>ldc)
        beta = 1
        k += rows
        if k < K:
            look_for_signals(watch)
    return 0


# --- one layer, one direction, by BLAS ----------------------------------------------------------------

cdef inline Py_ssize_t next_chunk(const Run *a, Py_ssize_t done, bint from_end) noexcept nogil:
    """How many steps the chunk after the first `done` takes: as many as fit `chunk` rows, at least one."""
    cdef Py_ssize_t steps = 1
    cdef const Py_ssize_t *offsets = a.offsets
    cdef Py_ssize_t edge = a.T - done
    if from_end:
        while steps < edge and offsets[edge] - offsets[edge - steps - 1] <= a.chunk:
            steps += 1
    else:
        while done + steps < a.T and offsets[done + steps + 1] - offsets[done] <= a.chunk:
            steps += 1
    return steps


cdef inline void combine_bias(real *_, const Run *a) noexcept nogil:
    """bias (AH,): b_ih and b_hh, by the accumulator that each feeds."""
    cdef fastrnn_cell_shape shape = fastrnn_cell_shapes[a.cell]
    cdef Py_ssize_t H = a.H, k
    cdef real *bias = <real *>a.bias
    cdef const real *b_ih = <const real *>a.bias_ih
    cdef const real *b_hh = <const real *>a.bias_hh
    memset(bias, 0, shape.accumulators * H * sizeof(real))
    if b_ih != NULL:
        memcpy(bias, b_ih, shape.input_blocks * H * sizeof(real))
        if shape.gates > shape.input_blocks:
            memcpy(bias + (shape.accumulators - 1) * H, b_ih + shape.input_blocks * H, H * sizeof(real))
    if b_hh != NULL:
        for k in range(shape.gates * H):
            bias[k] += b_hh[k]


cdef int project_input(real *_, const Run *a, Watch *watch, Py_ssize_t rows, const real *x,
                       real *gates) except -1 nogil:
    """gates (rows, AH) = bias + x W_ih^T, each block to its accumulator."""
    cdef fastrnn_cell_shape shape = fastrnn_cell_shapes[a.cell]
    cdef Py_ssize_t H = a.H, AH = shape.accumulators * H, direct = shape.input_blocks * H, row
    cdef const real *w = <const real *>a.weight_ih
    for row in range(rows):
        memcpy(gates + row * AH, a.bias, AH * sizeof(real))
        if row % 1024 == 1023:
            look_for_signals(watch)
    gemm_nt(watch, rows, direct, a.I, x, a.I, w, a.I, <real>1, gates, AH)
    if shape.gates > shape.input_blocks:
        gemm_nt(watch, rows, H, a.I, x, a.I, w + direct * a.I, a.I, <real>1, gates + AH - H, AH)


cdef int forward_run(real *tag, const Run *a, Watch *watch) except -1 nogil:
    """y, h_n, c_n of one layer and direction; fills `gates` and `c_kept` if they are kept.

    What is kept as gates are sums until the cell has run, so they need no scratch.
    """
    cdef fastrnn_cell_shape shape = fastrnn_cell_shapes[a.cell]
    cdef Py_ssize_t H = a.H, P = a.P, AH = shape.accumulators * H, direct = shape.hidden_blocks * H
    cdef Py_ssize_t done = 0, steps, step, t, first, n, row
    cdef const real *w_hh = <const real *>a.weight_hh
    cdef real *h = <real *>a.h
    cdef real *unit = <real *>a.unit
    cdef real *sums
    cdef real *gates
    cdef real *y
    cdef real *kept
    if real is float:
        cell = isa.f32.cell[a.cell]
        step_sums = fastrnn_sums_f32(NULL, AH, H, 1)
    else:
        cell = isa.f64.cell[a.cell]
        step_sums = fastrnn_sums_f64(NULL, AH, H, 1)
    while done < a.T:
        steps = next_chunk(a, done, a.reverse)
        t = a.T - done - steps if a.reverse else done
        first = a.offsets[t]
        sums = <real *>a.sums if a.gates == NULL else <real *>a.gates + first * AH
        project_input(tag, a, watch, a.offsets[t + steps] - first, <const real *>a.x + first * a.I, sums)
        for step in range(steps):
            t = a.T - done - step - 1 if a.reverse else done + step
            n = a.offsets[t + 1] - a.offsets[t]
            step_sums.at = sums + (a.offsets[t] - first) * AH
            gates = NULL if a.gates == NULL else step_sums.at
            y = <real *>a.y + a.offsets[t] * a.ldy
            kept = <real *>a.c_kept + a.offsets[t] * H if a.c_kept != NULL else NULL
            gemm_nt(watch, n, direct, P, h, P, w_hh, P, <real>1, step_sums.at, AH)
            if shape.has_reset:
                cell.reset_forward(n, H, 0, H, &step_sums, h, H, unit)
                gemm_nt(watch, n, H, H, unit, H, w_hh + direct * H, H, <real>1, step_sums.at + direct, AH)
            if a.projected:
                cell.forward(n, H, 0, H, &step_sums, gates, NULL, 0, unit, H, <real *>a.c, kept)
                gemm_nt(watch, n, P, H, unit, H, <const real *>a.weight_hr, H, <real>0, h, P)
            else:
                cell.forward(n, H, 0, H, &step_sums, gates, h, H, h, H, <real *>a.c, kept)
            for row in range(n):
                memcpy(y + row * a.ldy, h + row * P, P * sizeof(real))
            look_for_signals(watch)
        done += steps
    return 0


cdef void rows_before(real *out, const real *kept, Py_ssize_t ld, const real *initial, Py_ssize_t width,
                      const Run *a, Py_ssize_t t) noexcept nogil:
    """out (n, width): the rows of `kept` that step t started from; `initial` where t is a row's first."""
    cdef Py_ssize_t n = a.offsets[t + 1] - a.offsets[t], before = t + 1 if a.reverse else t - 1, m = 0, row
    if 0 <= before < a.T:
        m = min(n, a.offsets[before + 1] - a.offsets[before])
        kept += a.offsets[before] * ld
        for row in range(m):
            memcpy(out + row * width, kept + row * ld, width * sizeof(real))
    memcpy(out + m * width, initial + m * width, (n - m) * width * sizeof(real))


cdef int backward_step(real *tag, const Run *a, Watch *watch, Py_ssize_t t, Py_ssize_t at) except -1 nogil:
    """dgates of step t, to row `at` of the chunk's scratch, and dh, dc of the step before it."""
    cdef fastrnn_cell_shape shape = fastrnn_cell_shapes[a.cell]
    cdef Py_ssize_t H = a.H, P = a.P, AH = shape.accumulators * H, direct = shape.hidden_blocks * H
    cdef Py_ssize_t first = a.offsets[t], n = a.offsets[t + 1] - first, row, k
    cdef const real *w_hh = <const real *>a.weight_hh
    cdef const real *gates = <const real *>a.gates + first * AH
    cdef real *dgates = <real *>a.dgates + at * AH
    cdef real *h_prev = <real *>a.h_prev + at * P
    cdef real *units = <real *>a.units + at * H if a.units != NULL else NULL
    cdef real *dh = <real *>a.dh
    cdef real *dh_cell = dh
    cdef const real *c = NULL
    cdef const real *dy = <const real *>a.dy + first * a.lddy if a.dy != NULL else NULL
    if real is float:
        cell = isa.f32.cell[a.cell]
    else:
        cell = isa.f64.cell[a.cell]
    rows_before(h_prev, <const real *>a.y, a.ldy, <const real *>a.h, P, a, t)
    if shape.has_c:
        c = <const real *>a.c_kept + first * H
        rows_before(<real *>a.c_prev, <const real *>a.c_kept, H, <const real *>a.c, H, a, t)
    if a.projected:
        if dy != NULL:
            for row in range(n):
                for k in range(P):
                    dh[row * P + k] += dy[row * a.lddy + k]
            dy = NULL
        memcpy(<real *>a.dh_kept + at * P, dh, n * P * sizeof(real))
        dh_cell = <real *>a.dunit
        gemm_nn(watch, n, H, P, dh, P, <const real *>a.weight_hr, H, <real>0, dh_cell, H)
    cell.backward(n, H, 0, H, gates, h_prev, P, c, <const real *>a.c_prev, dy, a.lddy, dgates, dh_cell,
                  <real *>a.dc, units)
    if shape.has_reset:
        gemm_nn(watch, n, H, H, dgates + direct, AH, w_hh + direct * H, H, <real>0, units, H)
        cell.reset_backward(n, H, 0, H, gates, h_prev, H, units, dgates, dh)
    gemm_nn(watch, n, P, direct, dgates, AH, w_hh, P, <real>0 if a.projected else <real>1, dh, P)


cdef int backward_products(real *tag, const Run *a, Watch *watch, Py_ssize_t first, Py_ssize_t rows,
                           bint first_chunk) except -1 nogil:
    """What a chunk of `rows` packed rows adds to the gradients of the parameters, and its dx."""
    cdef real before = <real>0 if first_chunk else <real>1
    cdef fastrnn_cell_shape shape = fastrnn_cell_shapes[a.cell]
    cdef Py_ssize_t H = a.H, P = a.P, I = a.I, AH = shape.accumulators * H
    cdef Py_ssize_t direct_x = shape.input_blocks * H, direct_h = shape.hidden_blocks * H
    cdef const real *dgates = <const real *>a.dgates
    cdef const real *x = <const real *>a.x + first * I
    cdef const real *w_ih = <const real *>a.weight_ih
    cdef real *dw_ih = <real *>a.dweight_ih
    cdef real *dw_hh = <real *>a.dweight_hh
    cdef real *dx
    gemm_tn(watch, direct_h, P, rows, dgates, AH, <const real *>a.h_prev, P, before, dw_hh, P)
    gemm_tn(watch, direct_x, I, rows, dgates, AH, x, I, before, dw_ih, I)
    if shape.gates > shape.input_blocks:
        gemm_tn(watch, H, I, rows, dgates + AH - H, AH, x, I, before, dw_ih + direct_x * I, I)
    if shape.has_reset:
        gemm_tn(watch, H, H, rows, dgates + direct_h, AH, <const real *>a.units, H, before, dw_hh + direct_h * H, H)
    if a.projected:
        gemm_tn(watch, P, H, rows, <const real *>a.dh_kept, P, <const real *>a.units, H, before, <real *>a.dweight_hr, H)
    if real is float:
        isa.f32.add_rows(rows, AH, 0, AH, dgates, <real *>a.bias)
    else:
        isa.f64.add_rows(rows, AH, 0, AH, dgates, <real *>a.bias)
    if a.dx != NULL:
        dx = <real *>a.dx + first * I
        gemm_nn(watch, rows, I, direct_x, dgates, AH, w_ih, I, <real>1 if a.accumulate_dx else <real>0, dx, I)
        if shape.gates > shape.input_blocks:
            gemm_nn(watch, rows, I, H, dgates + AH - H, AH, w_ih + direct_x * I, I, <real>1, dx, I)


cdef int backward_run(real *tag, const Run *a, Watch *watch) except -1 nogil:
    """BPTT of one layer and direction: against the order of forward_run, chunk by chunk."""
    cdef Py_ssize_t done = 0, steps, step, t, first
    while done < a.T:
        steps = next_chunk(a, done, not a.reverse)
        first = a.offsets[done if a.reverse else a.T - done - steps]
        for step in range(steps):
            t = done + step if a.reverse else a.T - done - step - 1
            backward_step(tag, a, watch, t, a.offsets[t] - first)
            look_for_signals(watch)
        t = done if a.reverse else a.T - done - steps
        backward_products(tag, a, watch, first, a.offsets[t + steps] - first, done == 0)
        done += steps
    return 0


# --- either way ---------------------------------------------------------------------------------------

cdef int run_forward(Run *a, bint single) except -1 nogil:
    cdef Watch watch = Watch(fastrnn_seconds(), fastrnn_flush_denormals())
    a.poll.ask, a.poll.context = ask_for_signals, &watch
    try:
        if fused:
            check_end(isa.f32.run_forward(a) if single else isa.f64.run_forward(a))
        elif single:
            combine_bias(<float *>NULL, a)
            forward_run(<float *>NULL, a, &watch)
        else:
            combine_bias(<double *>NULL, a)
            forward_run(<double *>NULL, a, &watch)
    finally:
        fastrnn_restore_mode(watch.mode)
    return 0


cdef int run_backward(Run *a, bint single) except -1 nogil:
    cdef Watch watch = Watch(fastrnn_seconds(), fastrnn_flush_denormals())
    a.poll.ask, a.poll.context = ask_for_signals, &watch
    try:
        if fused:
            check_end(isa.f32.run_backward(a) if single else isa.f64.run_backward(a))
        elif single:
            backward_run(<float *>NULL, a, &watch)
        else:
            backward_run(<double *>NULL, a, &watch)
    finally:
        fastrnn_restore_mode(watch.mode)
    return 0


# --- memory and weights -------------------------------------------------------------------------------

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


cdef class Weights:
    """The weights of one layer and direction, and the engine's packed copies of them.

    weight_ih (G, I), weight_hh (G, P), bias_ih, bias_hh (G,), weight_hr (P, H); the last three may be None.

    Without `owner`, they are those of one call: packed when they are first used. With it, the dict of a
    layer that holds the same arrays, they live on, and what is packed is packed again when they may have
    changed. Nobody can change them who does not hold a view, and `lend` is called when one is made,
    before it is given away (not earlier: a call meanwhile would find nobody to hold it); from then on, until
    the last one is gone, contents are compared with a copy at every use.
    """

    cdef readonly int cell
    cdef readonly Py_ssize_t packings  # how often panels were made
    cdef readonly object weight_ih, weight_hh, bias_ih, bias_hh, weight_hr
    cdef object owner
    cdef bint lent
    cdef const fastrnn_isa *packed_by
    cdef bint has_rows, has_columns, has_copy
    cdef Memory rows, columns, copy

    def __init__(self, int cell, weight_ih, weight_hh, bias_ih=None, bias_hh=None, weight_hr=None, *, owner=None):
        arrays = (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr)
        if owner is None:  # what the caller does to the shape or dtype of an array shall not reach this object
            arrays = tuple([None if array is None else array.view() for array in arrays])
        self.cell, self.owner = cell, owner
        self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, self.weight_hr = arrays
        self.rows, self.columns, self.copy = Memory(), Memory(), Memory()

    @property
    def named(self):
        """Name -> array, of those that there are."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def __reduce__(self):
        arrays = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, self.weight_hr)
        return _remake_weights, (self.cell, arrays, self.owner)

    def lend(self):
        """To be called once there is a view that somebody will be given, or after a change."""
        self.lent = True

    cdef bint lent_still(self):
        """Whether anyone but this object and the owner refers to a matrix: every view refers to it."""
        return (Py_REFCNT(<PyObject *>self.weight_ih) > 2 or Py_REFCNT(<PyObject *>self.weight_hh) > 2
                or (self.weight_hr is not None and Py_REFCNT(<PyObject *>self.weight_hr) > 2))

    cdef bint compare(self, bint write) except -1:
        """Whether the copy differs; with `write`, it is made instead."""
        cdef size_t offset = 0, size = 0
        cdef bint differs = False
        cdef char *copy
        cdef void *at
        for array in (self.weight_ih, self.weight_hh, self.weight_hr):
            size += 0 if array is None else array.nbytes
        copy = <char *>self.copy.reserve(size)
        for array in (self.weight_ih, self.weight_hh, self.weight_hr):
            if array is not None:
                size, at = array.nbytes, data(array)
                if write:
                    memcpy(copy + offset, at, size)
                elif memcmp(copy + offset, at, size):
                    return True
                offset += size
        return differs

    cdef int attach(self, Run *a, bint backward) except -1:
        """Point `a` to the matrices, and to fresh panels of them."""
        cdef bint stale, watched
        a.weight_ih, a.weight_hh, a.weight_hr = data(self.weight_ih), data(self.weight_hh), data(self.weight_hr)
        a.bias_ih, a.bias_hh = data(self.bias_ih), data(self.bias_hh)
        if not fused:
            return 0
        stale = self.packed_by != isa
        if self.lent:
            watched = self.lent_still()
            stale = stale or not watched or not self.has_copy or self.compare(False)
            if stale and watched:
                self.compare(True)
            self.has_copy = watched
            self.lent = watched
        if stale:
            self.has_rows = self.has_columns = False
            self.packed_by = isa
        if cnp.PyArray_TYPE(self.weight_ih) == cnp.NPY_FLOAT32:
            self.pack(<float *>NULL, a, backward)
        else:
            self.pack(<double *>NULL, a, backward)
        return 0

    cdef int pack(self, real *_, Run *a, bint backward) except -1:
        cdef fastrnn_cell_shape shape = fastrnn_cell_shapes[a.cell]
        cdef Py_ssize_t H = a.H, P = a.P, I = a.I, G = shape.gates * H, direct = shape.hidden_blocks * H
        cdef Py_ssize_t ih, hh, rest = 0, hr = 0
        cdef const real *w_ih = <const real *>a.weight_ih
        cdef const real *w_hh = <const real *>a.weight_hh
        cdef const real *w_hr = <const real *>a.weight_hr
        cdef real *to
        if real is float:
            table = isa.f32
        else:
            table = isa.f64
        if not backward:
            ih, hh = table.packed_size(shape.gates, H, I), table.packed_size(shape.hidden_blocks, H, P)
            if shape.has_reset:
                rest = table.packed_size(1, H, H)
            if w_hr != NULL:
                hr = table.packed_size(1, P, H)
            to = <real *>self.rows.reserve((ih + hh + rest + hr) * sizeof(real))
            a.packed_ih, a.packed_hh, a.packed_hr = to, to + ih, to + ih + hh + rest
            if not self.has_rows:
                table.pack_rows(shape.gates, H, I, w_ih, to)
                table.pack_rows(shape.hidden_blocks, H, P, w_hh, to + ih)
                if shape.has_reset:
                    table.pack_rows(1, H, H, w_hh + direct * H, to + ih + hh)
                if w_hr != NULL:
                    table.pack_rows(1, P, H, w_hr, to + ih + hh + rest)
                self.has_rows = True
                self.packings += 1
        else:
            ih, hh = table.packed_size(1, I, G), table.packed_size(1, P, G)
            if w_hr != NULL:
                hr = table.packed_size(1, H, P)
            to = <real *>self.columns.reserve((ih + hh + hr) * sizeof(real))
            a.columns_ih, a.columns_hh, a.columns_hr = to, to + ih, to + ih + hh
            if not self.has_columns:
                table.pack_columns(I, G, w_ih, to)
                table.pack_columns(P, G, w_hh, to + ih)
                if w_hr != NULL:
                    table.pack_columns(H, P, w_hr, to + ih + hh)
                self.has_columns = True
                self.packings += 1
        return 0


def _remake_weights(int cell, arrays, owner):
    return Weights(cell, *arrays, owner=owner)


# --- from Python --------------------------------------------------------------------------------------

cdef inline Py_ssize_t row_stride(array):
    """Numbers from a row of (N, K) or (T, B, K) to the next."""
    return cnp.PyArray_STRIDE(array, cnp.PyArray_NDIM(array) - 2) // cnp.PyArray_ITEMSIZE(array)


cdef int fill(Run *a, Weights weights, bint reverse, offsets, x, h, c, y) except -1:
    memset(a, 0, sizeof(Run))
    a.cell, a.reverse, a.projected = weights.cell, reverse, weights.weight_hr is not None
    a.T, a.B = cnp.PyArray_DIM(offsets, 0) - 1, cnp.PyArray_DIM(h, 0)
    a.I = cnp.PyArray_DIM(x, cnp.PyArray_NDIM(x) - 1)
    a.P = cnp.PyArray_DIM(h, 1)
    a.H = cnp.PyArray_DIM(weights.weight_ih, 0) // fastrnn_cell_shapes[weights.cell].gates
    a.ldy = row_stride(y)
    a.offsets = <const Py_ssize_t *>data(offsets)
    a.x, a.h, a.c, a.y = data(x), data(h), data(c), data(y)
    a.threads = most_threads
    return 0


# Bytes of projected sums that forward has at once, and rows of them at least: enough for a product at its full
# rate, few enough that the recurrence finds them in cache.
cdef enum:
    FORWARD_BYTES = 1 << 18
    FORWARD_ROWS = 128


cdef int bind_scratch(Run *a, Memory memory, bint single) except -1:
    """Give `a`, of which all else is known, the scratch of forward, in `memory`."""
    cdef fastrnn_cell_shape shape = fastrnn_cell_shapes[a.cell]
    cdef Py_ssize_t item = 4 if single else 8, AH = shape.accumulators * a.H, rows
    cdef size_t sums = 0, bias = 0 if fused else AH * item
    cdef size_t unit = a.B * a.H * item if a.projected or shape.has_reset else 0
    cdef char *start
    a.chunk = max(a.B, FORWARD_ROWS, FORWARD_BYTES // (AH * item))
    rows = min(a.chunk, a.offsets[a.T])
    if fused:
        sums = item * (isa.f32.sums_size(a.cell, a.H, rows) if single else isa.f64.sums_size(a.cell, a.H, rows))
    elif a.gates == NULL:
        sums = item * rows * AH
    sums, bias = whole_lines(sums), whole_lines(bias)
    start = <char *>memory.reserve(sums + bias + unit)
    a.sums, a.bias, a.unit = start, start + sums, start + sums + bias
    return 0


cdef inline size_t whole_lines(size_t size) noexcept:
    return (size + 63) & ~<size_t>63


def forward(Weights weights, bint reverse, offsets, x, h, c, y):
    """Run one layer and direction: x (N, I) to y (N, P); h (B, P) and c (B, H) or None go from initial to final."""
    run_direction(weights, reverse, offsets, x, h, c, y, None, None)


cdef int run_direction(Weights weights, bint reverse, offsets, x, h, c, y, gates, c_kept) except -1:
    cdef Run a
    cdef bint single = cnp.PyArray_TYPE(x) == cnp.NPY_FLOAT32
    cdef Memory memory = Memory()
    fill(&a, weights, reverse, offsets, x, h, c, y)
    if not a.offsets[a.T]:
        return 0
    weights.attach(&a, False)
    a.gates, a.c_kept = data(gates), data(c_kept)
    bind_scratch(&a, memory, single)
    with nogil:
        run_forward(&a, single)
    return 0


cdef object owner_of(array):
    """The array whose memory `array` shows."""
    while isinstance(array.base, cnp.ndarray):
        array = array.base
    return array


cdef class Kept:
    """What BPTT needs of one layer and direction. Its own arrays are h, c, gates and c_kept.

    x and y are views of the caller's memory, of which nobody else holds the array object: what the caller does to the
    shape or dtype of an array does not reach them.
    offsets (T+1,), x (N, I), h (B, P) and c (B, H) or None: the initial state; y (N, P) may be columns of a
    wider array; gates (N, A*H), or y where that is all that the cell keeps; c_kept (N, H) or None. N rows may
    have an axis for each of T and B.
    """

    cdef readonly Weights weights
    cdef readonly bint reverse
    cdef readonly object offsets, x, h, c, y, gates, c_kept
    cdef list held

    def __init__(self, Weights weights, bint reverse, offsets, x, h, c, y):
        cdef fastrnn_cell_shape shape = fastrnn_cell_shapes[weights.cell]
        cdef cnp.npy_intp sizes[2]
        cdef int typenum = cnp.PyArray_TYPE(x)
        cdef Py_ssize_t H = cnp.PyArray_DIM(weights.weight_ih, 0) // shape.gates
        self.weights, self.reverse, self.offsets = weights, reverse, offsets
        self.x, self.y = x.view(), y.view()
        # NumPy resizes no array that has a weak reference, refcheck=False or not: its memory stays where it is.
        self.held = [weakref.ref(owner_of(array)) for array in (x, y, *weights.named.values())]
        self.h, self.c = h.copy(), None if c is None else c.copy()
        sizes[0] = (<Py_ssize_t *>data(offsets))[cnp.PyArray_DIM(offsets, 0) - 1]
        if shape.accumulators == 1 and cnp.PyArray_IS_C_CONTIGUOUS(y):
            self.gates = self.y
        else:
            sizes[1] = shape.accumulators * H
            self.gates = new_array(2, sizes, typenum)
        if shape.has_c:
            sizes[1] = H
            self.c_kept = new_array(2, sizes, typenum)


def keep(Weights weights, bint reverse, offsets, x, h, c, y):
    """As forward, and what `back` needs: a `Kept`."""
    kept = Kept(weights, reverse, offsets, x, h, c, y)
    run_direction(weights, reverse, offsets, x, h, c, y, kept.gates, kept.c_kept)
    return kept


# Rows of one chunk of BPTT: the depth of the products that make the gradients of the weights.
cdef enum:
    BACKWARD_ROWS = 512


def back(Kept kept, dy, dh, dc, dx, *, bint accumulate_dx=False):
    """BPTT of one layer and direction: the gradients of weight_ih, weight_hh, bias_ih, bias_hh, weight_hr.

    None for those that the layer does not have. dh and dc go from the gradient of the final to that of the initial
    state; dx is written, or added to. dy (N, P) may be columns of a wider array, or None.
    """
    cdef Run a
    cdef Weights weights = kept.weights
    cdef int typenum = cnp.PyArray_TYPE(kept.x), k
    cdef bint single = typenum == cnp.NPY_FLOAT32
    cdef fastrnn_cell_shape shape = fastrnn_cell_shapes[weights.cell]
    cdef Memory memory = Memory()
    cdef size_t sizes[9]  # numbers in each scratch array
    cdef char *at[9]
    cdef size_t item = cnp.PyArray_ITEMSIZE(kept.x), total = 0
    cdef Py_ssize_t AH, H, N, chunk
    cdef bint has_units
    fill(&a, weights, kept.reverse, kept.offsets, kept.x, kept.h, kept.c, kept.y)
    dweight_ih, dweight_hh = new_like(weights.weight_ih), new_like(weights.weight_hh)
    dweight_hr = None if weights.weight_hr is None else new_like(weights.weight_hr)
    a.gates, a.c_kept = data(kept.gates), data(kept.c_kept)
    a.accumulate_dx = accumulate_dx
    a.lddy = 0 if dy is None else row_stride(dy)
    a.dy, a.dh, a.dc, a.dx = data(dy), data(dh), data(dc), data(dx)
    a.dweight_ih, a.dweight_hh, a.dweight_hr = data(dweight_ih), data(dweight_hh), data(dweight_hr)
    N, H, AH, has_units = a.offsets[a.T], a.H, shape.accumulators * a.H, a.projected or shape.has_reset
    chunk = a.chunk = min(N, max(a.B, BACKWARD_ROWS))
    sizes[0] = chunk * AH
    sizes[1] = chunk * H if has_units else 0
    sizes[2] = chunk * a.P if a.projected else 0
    sizes[3] = a.B * H if a.projected else 0
    if fused:
        sizes[4], sizes[5] = packed_size(single, AH, chunk), packed_size(single, a.P, chunk)
        sizes[6], sizes[7] = packed_size(single, a.I, chunk), packed_size(single, H, chunk) if has_units else 0
    else:
        sizes[4], sizes[5], sizes[6], sizes[7] = chunk * a.P, a.B * H, 0, 0
    sizes[8] = AH
    for k in range(9):
        sizes[k] = whole_lines(sizes[k] * item)
        total += sizes[k]
    memory.reserve(total)
    total = 0
    for k in range(9):
        at[k] = <char *>memory.block.start + total if sizes[k] else NULL
        total += sizes[k]
    a.dgates, a.units, a.dh_kept, a.dunit, a.bias = at[0], at[1], at[2], at[3], at[8]
    if fused:
        a.panels_dgates, a.panels_h, a.panels_x, a.panels_units = at[4], at[5], at[6], at[7]
    else:
        a.h_prev, a.c_prev = at[4], at[5]
    memset(a.bias, 0, AH * item)
    if N:
        weights.attach(&a, True)
        with nogil:
            run_backward(&a, single)
    else:
        for dweight in (dweight_ih, dweight_hh, dweight_hr):
            if dweight is not None:
                memset(data(dweight), 0, cnp.PyArray_NBYTES(dweight))
    dbias_ih = dbias_hh = None
    if weights.bias_hh is not None:
        dbias_hh = new_like(weights.bias_hh)
        memcpy(data(dbias_hh), a.bias, shape.gates * H * item)
    if weights.bias_ih is not None:
        # A cell with one accumulator too many has the input's part of its last gate there.
        dbias_ih = new_like(weights.bias_ih)
        memcpy(data(dbias_ih), a.bias, shape.input_blocks * H * item)
        if shape.gates > shape.input_blocks:
            memcpy(<char *>data(dbias_ih) + shape.input_blocks * H * item, <char *>a.bias + (AH - H) * item, H * item)
    return dweight_ih, dweight_hh, dbias_ih, dbias_hh, dweight_hr


cdef object new_like(array):
    return new_array(cnp.PyArray_NDIM(array), cnp.PyArray_DIMS(array), cnp.PyArray_TYPE(array))


cdef inline size_t packed_size(bint single, Py_ssize_t columns, Py_ssize_t rows) noexcept:
    return isa.f32.packed_size(1, columns, rows) if single else isa.f64.packed_size(1, columns, rows)


cdef class Stack:
    """Layers on top of each other, at inference: one call runs them all and keeps nothing.

    `weights` are layer-major, `directions` (1 or 2) of them in each layer.
    """

    cdef list weights
    cdef int directions, count, typenum
    cdef bint single, has_c
    cdef Py_ssize_t I, H, P, itemsize

    def __init__(self, list weights, int directions):
        cdef Weights first = weights[0]
        cdef fastrnn_cell_shape shape = fastrnn_cell_shapes[first.cell]
        self.weights, self.directions, self.count = weights, directions, len(weights)
        self.typenum = cnp.PyArray_TYPE(first.weight_ih)
        self.single = self.typenum == cnp.NPY_FLOAT32
        self.itemsize = 4 if self.single else 8
        self.has_c = shape.has_c
        self.I, self.H = first.weight_ih.shape[1], first.weight_ih.shape[0] // shape.gates
        self.P = first.weight_hh.shape[1]

    def __reduce__(self):
        return Stack, (self.weights, self.directions)

    def infer(self, x, offsets, h, c):
        """y (N, D*P) of x (N, I); h (L*D, B, P) and c (L*D, B, H) or None go from initial to final states."""
        cdef cnp.npy_intp shape[2]
        shape[0], shape[1] = cnp.PyArray_DIM(x, 0), self.directions * self.P
        y = new_array(2, shape, self.typenum)
        if shape[0]:
            self.run(x, cnp.PyArray_DIM(offsets, 0) - 1, cnp.PyArray_DIM(h, 1), <Py_ssize_t *>data(offsets), h, c, y)
        return y

    cdef int run(self, x, Py_ssize_t T, Py_ssize_t B, const Py_ssize_t *offsets, h, c, y) except -1:
        """All layers, the top one into y. `offsets` of a full batch may be NULL."""
        cdef Py_ssize_t N = T * B if offsets == NULL else offsets[T], k, t, width = self.directions * self.P
        cdef Py_ssize_t layers = self.count // self.directions
        cdef size_t item = self.itemsize, between = N * width * item if layers > 1 else 0
        cdef Memory memory = Memory(), scratch = Memory()
        cdef Py_ssize_t *steps = <Py_ssize_t *>memory.reserve(between + (T + 1) * sizeof(Py_ssize_t))
        cdef char *inner = <char *>(steps + T + 1)
        cdef char *x_data = <char *>data(x)
        cdef char *y_data = <char *>data(y)
        cdef char *h_data = <char *>data(h)
        cdef char *c_data = <char *>data(c)
        cdef char *below
        cdef char *above
        cdef Py_ssize_t layer
        cdef Run a
        cdef Weights weights
        for t in range(T + 1):
            steps[t] = t * B if offsets == NULL else offsets[t]
        memset(&a, 0, sizeof(Run))
        a.T, a.B, a.H, a.P, a.ldy = T, B, self.H, self.P, width
        a.offsets, a.threads = steps, most_threads
        for k in range(self.count):
            weights = self.weights[k]
            layer = k // self.directions
            a.reverse = k - layer * self.directions
            a.cell, a.projected = weights.cell, weights.weight_hr is not None
            a.I = width if layer else self.I
            if not k:
                bind_scratch(&a, scratch, self.single)
            # y and one more array take turns, so that the top layer writes y
            above = inner if (layers - layer) % 2 == 0 else y_data
            below = y_data if above == inner else inner
            a.x = below if layer else x_data
            a.y = above + a.reverse * self.P * item
            a.h = h_data + k * B * self.P * item
            a.c = NULL if c_data == NULL else c_data + k * B * self.H * item
            weights.attach(&a, False)
            with nogil:
                run_forward(&a, self.single)
        return 0

    def call(self, x, state):
        """(y, state) of x (T, B, I), or None if x or state is not exactly what the kernels take.

        The short way through a layer's call: what needs a cast, a copy or an error goes the long one.
        """
        states = self.begin(x, state)
        if states is None:
            return None
        h, c = states
        y = self.new_output(x, self.directions * self.P)
        self.run(x, cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), NULL, h, c, y)
        return y, (h if c is None else states)

    def keep(self, x, state):
        """(y, state, the `Kept` of every layer and direction), or None: as `call`, of a layer's `forward`."""
        cdef Py_ssize_t T, B, t, P = self.P
        cdef int k, direction
        cdef cnp.npy_intp size
        states = self.begin(x, state)
        if states is None:
            return None
        h, c = states
        T, B = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1)
        size = T + 1
        offsets = cnp.PyArray_EMPTY(1, &size, cnp.NPY_INTP, 0)
        for t in range(T + 1):
            (<Py_ssize_t *>data(offsets))[t] = t * B
        kept = []
        for k in range(0, self.count, self.directions):
            y = self.new_output(x, self.directions * P)
            for direction in range(self.directions):
                kept.append(keep(
                    self.weights[k + direction], direction, offsets, x, h[k + direction],
                    None if c is None else c[k + direction],
                    y if self.directions == 1 else y[:, :, direction * P:(direction + 1) * P],
                ))
            cnp.PyArray_CLEARFLAGS(y, cnp.NPY_ARRAY_WRITEABLE)  # it has been kept
            x = y
        return y, (h if c is None else states), kept

    def back(self, list kept, dy, dstate):
        """(dx, dstate, gradients as `back` gives them, of every layer and direction), or None: for what `keep` kept."""
        cdef int k, direction
        cdef Py_ssize_t P = self.P
        x = (<Kept>kept[0]).x
        if (type(dy) is not cnp.ndarray or cnp.PyArray_TYPE(dy) != self.typenum or cnp.PyArray_NDIM(dy) != 3
                or not cnp.PyArray_ISCARRAY_RO(dy) or cnp.PyArray_DIM(dy, 0) != cnp.PyArray_DIM(x, 0)
                or cnp.PyArray_DIM(dy, 1) != cnp.PyArray_DIM(x, 1)
                or cnp.PyArray_DIM(dy, 2) != self.directions * P):
            return None
        states = self.begin(x, dstate)
        if states is None:
            return None
        dh, dc = states
        gradients = [None] * self.count
        for k in range(self.count - self.directions, -1, -self.directions):
            dx = new_like((<Kept>kept[k]).x)
            for direction in range(self.directions):
                gradients[k + direction] = back(
                    kept[k + direction],
                    dy if self.directions == 1 else dy[:, :, direction * P:(direction + 1) * P],
                    dh[k + direction], None if dc is None else dc[k + direction], dx, accumulate_dx=direction,
                )
            dy = dx
        return dx, (dh if dc is None else states), gradients

    cdef tuple begin(self, x, state):
        """Copies of the states, (h, c or None), or None if x or state is not exactly what the kernels take."""
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

    cdef object new_output(self, x, Py_ssize_t width):
        cdef cnp.npy_intp shape[3]
        shape[0], shape[1], shape[2] = cnp.PyArray_DIM(x, 0), cnp.PyArray_DIM(x, 1), width
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
    """A stack of forward runs of one step each, bound once to their arrays: a step allocates nothing.

    `turn` is held by the thread that steps, or reads or writes the state.
    """

    cdef Run *runs
    cdef int count, typenum
    cdef bint single
    cdef readonly Turn turn
    cdef Py_ssize_t rows
    cdef void *x
    cdef list weights, scratch
    cdef const fastrnn_isa *bound_to  # the engine that `scratch` was made for
    cdef bint bound_fused
    cdef object alive  # everything that `runs` points into
    cdef object y, lent, lent_row  # y is never given away, only views of it
    cdef list states, before  # h and c, and a copy of each from before the step
    cdef readonly Py_ssize_t steps  # that have been taken

    def __cinit__(self, list calls, list states):
        """`calls`: per layer (weights, offsets, x, state, y); `states`: the arrays that their states are parts of."""
        x, y = calls[0][2], calls[-1][4]
        self.x, self.rows, self.typenum = data(x), x.shape[0], cnp.PyArray_TYPE(x)
        self.y = y
        self.turn = Turn("the stream")
        self.states, self.before = states, [state.copy() for state in states]
        self.count = len(calls)
        self.runs = <Run *>PyMem_Calloc(len(calls), sizeof(Run))
        if self.runs == NULL:
            raise MemoryError
        self.alive = calls
        self.weights = [call[0] for call in calls]
        self.scratch = [Memory() for _ in calls]
        self.single = self.typenum == cnp.NPY_FLOAT32
        for k, (weights, offsets, x, state, y) in enumerate(calls):
            fill(&self.runs[k], weights, False, offsets, x, state[0], state[1], y)

    def __dealloc__(self):
        PyMem_Free(self.runs)

    def step(self, x_t):
        """One step of x_t (B, I), or (I,) where B is 1; the stream's own y of the same form.

        None, and nothing done, if x_t is not exactly what the kernels take: copy it to `x` then.
        """
        cdef bint row = self.rows == 1 and cnp.PyArray_NDIM(x_t) == 1
        if (cnp.PyArray_TYPE(x_t) != self.typenum or not cnp.PyArray_ISCARRAY_RO(x_t)
                or not (row or (cnp.PyArray_NDIM(x_t) == 2 and cnp.PyArray_DIM(x_t, 0) == self.rows))
                or cnp.PyArray_DIM(x_t, 0 if row else 1) != self.runs[0].I):
            return None
        self.turn.take()
        try:
            memcpy(self.x, data(x_t), self.rows * self.runs[0].I * (4 if self.single else 8))
            self.run()
        finally:
            self.turn.taken = False
        if row:
            self.lent_row = self.as_made(self.lent_row, self.y, True)
            return self.lent_row
        self.lent = self.as_made(self.lent, self.y, False)
        return self.lent

    def undo(self):
        """Put the state back that was there before the last step. Only one step can be undone."""
        self.copy_states(self.before, self.states)
        self.steps -= 1

    cdef object as_made(self, view, y, bint row):
        """`view` of y, or of its only row, unless the caller, who may have it, has given it another form."""
        cdef int ndim = 1 if row else 2
        if (view is not None and cnp.PyArray_NDIM(view) == ndim and cnp.PyArray_TYPE(view) == self.typenum
                and data(view) == data(y) and cnp.PyArray_ISCARRAY(view)
                and cnp.PyArray_DIM(view, ndim - 1) == cnp.PyArray_DIM(y, 1)
                and (row or cnp.PyArray_DIM(view, 0) == self.rows)):
            return view
        return y[0] if row else y.view()

    cdef int run(self) except -1:
        """One step of what `x` holds; the state is as before if it is interrupted."""
        cdef int k
        if self.bound_to != isa or self.bound_fused != fused:
            for k in range(self.count):
                bind_scratch(&self.runs[k], <Memory>self.scratch[k], self.single)
            self.bound_to, self.bound_fused = isa, fused
        for k in range(self.count):
            self.runs[k].threads = most_threads
            (<Weights>self.weights[k]).attach(&self.runs[k], False)
        self.copy_states(self.states, self.before)
        try:
            with nogil:
                for k in range(self.count):
                    run_forward(&self.runs[k], self.single)
        except BaseException:
            self.copy_states(self.before, self.states)
            raise
        self.steps += 1
        return 0

    cdef void copy_states(self, list source, list target):
        cdef Py_ssize_t k
        for k in range(len(source)):
            memcpy(data(target[k]), data(source[k]), cnp.PyArray_NBYTES(<cnp.ndarray>source[k]))


cdef int product_by_blas(real *_, Watch *watch, bint transpose_a, bint transpose_b, Py_ssize_t M, Py_ssize_t N,
                         Py_ssize_t K, void *a, void *b, void *c) except -1 nogil:
    if transpose_a:
        return gemm_tn(watch, M, N, K, <const real *>a, M, <const real *>b, N, <real>0, <real *>c, N)
    if transpose_b:
        return gemm_nt(watch, M, N, K, <const real *>a, K, <const real *>b, K, <real>0, <real *>c, N)
    return gemm_nn(watch, M, N, K, <const real *>a, K, <const real *>b, N, <real>0, <real *>c, N)


cdef int product_by_engine(real *_, Watch *watch, bint transpose_a, bint transpose_b, Py_ssize_t M, Py_ssize_t N,
                           Py_ssize_t K, void *a, void *b, void *c) except -1:
    cdef Memory panels = Memory()
    cdef Poll poll = Poll(ask_for_signals, watch)
    cdef real *to
    cdef int threads = most_threads
    if real is float:
        table = isa.f32
    else:
        table = isa.f64
    to = <real *>panels.reserve(table.packed_size(1, N, K) * sizeof(real))
    with nogil:
        if transpose_b:
            table.pack_rows(1, N, K, <const real *>b, to)
        else:
            table.pack_columns(N, K, <const real *>b, to)
        check_end(table.multiply(M, N, K, <const real *>a, 1 if transpose_a else K, M if transpose_a else 1, to,
                                 <real *>c, threads, &poll))
    return 0


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
    watch = Watch(fastrnn_seconds(), fastrnn_flush_denormals())
    try:
        if fused and single:
            product_by_engine(<float *>NULL, &watch, transpose_a, transpose_b, M, N, K, pa, pb, pc)
        elif fused:
            product_by_engine(<double *>NULL, &watch, transpose_a, transpose_b, M, N, K, pa, pb, pc)
        elif single:
            with nogil:
                product_by_blas(<float *>NULL, &watch, transpose_a, transpose_b, M, N, K, pa, pb, pc)
        else:
            with nogil:
                product_by_blas(<double *>NULL, &watch, transpose_a, transpose_b, M, N, K, pa, pb, pc)
    finally:
        fastrnn_restore_mode(watch.mode)


def activation(str name, x):
    """tanh or sigmoid of a contiguous float32 or float64 array, by the kernels in use."""
    y = np.empty_like(x)
    cdef Py_ssize_t n = x.size
    cdef bint sigmoid = name == "sigmoid"
    cdef uint64_t mode = fastrnn_flush_denormals()
    if x.dtype == np.float32:
        (isa.f32.sigmoid if sigmoid else isa.f32.tanh)(n, <const float *>data(x), <float *>data(y))
    else:
        (isa.f64.sigmoid if sigmoid else isa.f64.tanh)(n, <const double *>data(x), <double *>data(y))
    fastrnn_restore_mode(mode)
    return y
