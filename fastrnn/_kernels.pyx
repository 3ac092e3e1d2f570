# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The sequence loops: one layer, one direction, forward and back, over packed rows.

Products are BLAS calls; everything between them is a cell of src/kernels, chosen by number. The loops
know a cell only by its `fastrnn_cell_shape`: how many accumulators it has and which products feed them.

Shapes, all row-major and contiguous unless a leading dimension is named:

    T steps, B rows, N packed rows (the sum of all lengths), I inputs, H hidden units,
    P width of the hidden state (H, or the projection size), G = gates*H, AH = accumulators*H

    offsets (T+1,)   rows of step t are offsets[t] .. offsets[t+1]-1, longest sequences first, so the
                     rows of any step are a prefix of the batch
    h (B, P), c (B, H)   the live state: initial when a call begins, final when it ends. A row that has
                     ended (or, in reverse, not begun) is simply not touched, which is all that
                     `lengths` needs

Nothing here validates: fastrnn/sequence.py hands over arrays that it has made or checked itself.
"""

cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_Calloc, PyMem_Free
from cython cimport floating as real
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport dgemm, dgemv, sgemm, sgemv

import numpy as np

cnp.import_array()


cdef extern from *:
    """
    #undef I  /* <complex.h>, by way of NumPy's headers; here I is the input size */
    """

cdef extern from "kernels.h" nogil:
    enum: FASTRNN_CELLS
    enum: FASTRNN_MOST_ISAS
    ctypedef struct fastrnn_cell_shape:
        int gates, accumulators, input_blocks, hidden_blocks, has_c, has_reset
    ctypedef struct fastrnn_cell_f32:
        void (*forward)(Py_ssize_t, Py_ssize_t, float *, int, float *, float *, float *, Py_ssize_t,
                        float *) noexcept nogil
        void (*backward)(Py_ssize_t, Py_ssize_t, const float *, const float *, const float *, const float *,
                         float *, float *, float *, float *) noexcept nogil
        void (*reset_forward)(Py_ssize_t, Py_ssize_t, float *, const float *, float *) noexcept nogil
        void (*reset_backward)(Py_ssize_t, Py_ssize_t, const float *, const float *, float *, float *,
                               float *) noexcept nogil
    ctypedef struct fastrnn_cell_f64:
        void (*forward)(Py_ssize_t, Py_ssize_t, double *, int, double *, double *, double *, Py_ssize_t,
                        double *) noexcept nogil
        void (*backward)(Py_ssize_t, Py_ssize_t, const double *, const double *, const double *,
                         const double *, double *, double *, double *, double *) noexcept nogil
        void (*reset_forward)(Py_ssize_t, Py_ssize_t, double *, const double *, double *) noexcept nogil
        void (*reset_backward)(Py_ssize_t, Py_ssize_t, const double *, const double *, double *, double *,
                               double *) noexcept nogil
    ctypedef struct fastrnn_table_f32:
        fastrnn_cell_f32 *cell
        void (*add_rows)(Py_ssize_t, Py_ssize_t, const float *, float *) noexcept nogil
        void (*tanh)(Py_ssize_t, const float *, float *) noexcept nogil
        void (*sigmoid)(Py_ssize_t, const float *, float *) noexcept nogil
    ctypedef struct fastrnn_table_f64:
        fastrnn_cell_f64 *cell
        void (*add_rows)(Py_ssize_t, Py_ssize_t, const double *, double *) noexcept nogil
        void (*tanh)(Py_ssize_t, const double *, double *) noexcept nogil
        void (*sigmoid)(Py_ssize_t, const double *, double *) noexcept nogil
    ctypedef struct fastrnn_isa:
        const char *name
        int lanes_f32
        const fastrnn_table_f32 *f32
        const fastrnn_table_f64 *f64
    const fastrnn_cell_shape fastrnn_cell_shapes[]
    int fastrnn_available_isas(const fastrnn_isa **)
    uint64_t fastrnn_flush_denormals()
    void fastrnn_restore_mode(uint64_t)
    double fastrnn_seconds()


# --- the instruction set in use -----------------------------------------------------------------------

cdef const fastrnn_isa *available_isas[FASTRNN_MOST_ISAS]
cdef int isa_count = fastrnn_available_isas(available_isas)
cdef const fastrnn_isa *isa = available_isas[isa_count - 1]


def isas():
    """Names of the instruction sets that this machine has, widest last."""
    return [available_isas[k].name.decode() for k in range(isa_count)]


def use_isa(str name):
    """Make the elementwise kernels those of `name`, one of isas(). Returns the name used before."""
    global isa
    before = isa.name.decode()
    isa = available_isas[isas().index(name)]
    return before


def cell_shape(int cell):
    """The `fastrnn_cell_shape` of a cell as a dict."""
    return fastrnn_cell_shapes[cell]


# --- BLAS, row-major ----------------------------------------------------------------------------------
# BLAS is column-major: a row-major matrix is its own transpose there, so operands swap places.
# A few rows go to gemv one by one: gemm packs the whole weight matrix first. Measured with OpenBLAS 0.3.30,
# N = 4H, H = 128 to 512: gemv keeps to 40 GFLOP/s; gemm has 5, 20, 34, 53, 72 at 1, 4, 8, 16, 32 rows.
# So the bits of a product depend on how many rows it has; only that of a call as a whole is repeated.

cdef enum:
    GEMV_ROWS = 8


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


cdef inline void gemm_nt(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *a, Py_ssize_t lda,
                         const real *b, Py_ssize_t ldb, real beta, real *c, Py_ssize_t ldc) noexcept nogil:
    """c (M, N) = a (M, K) b (N, K)^T + beta c"""
    cdef Py_ssize_t row
    if M <= GEMV_ROWS:
        for row in range(M):
            gemv("T", <int>K, <int>N, b, <int>ldb, a + row * lda, beta, c + row * ldc)
    else:
        gemm("T", "N", <int>N, <int>M, <int>K, b, <int>ldb, a, <int>lda, beta, c, <int>ldc)


cdef inline void gemm_nn(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *a, Py_ssize_t lda,
                         const real *b, Py_ssize_t ldb, real beta, real *c, Py_ssize_t ldc) noexcept nogil:
    """c (M, N) = a (M, K) b (K, N) + beta c"""
    cdef Py_ssize_t row
    if M <= GEMV_ROWS:
        for row in range(M):
            gemv("N", <int>N, <int>K, b, <int>ldb, a + row * lda, beta, c + row * ldc)
    else:
        gemm("N", "N", <int>N, <int>M, <int>K, b, <int>ldb, a, <int>lda, beta, c, <int>ldc)


cdef inline void gemm_tn(Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *a, Py_ssize_t lda,
                         const real *b, Py_ssize_t ldb, real beta, real *c, Py_ssize_t ldc) noexcept nogil:
    """c (M, N) = a (K, M)^T b (K, N) + beta c"""
    gemm("N", "T", <int>N, <int>M, <int>K, b, <int>ldb, a, <int>lda, beta, c, <int>ldc)


# --- one layer, one direction -------------------------------------------------------------------------

cdef struct Run:
    int cell
    bint reverse, keep, projected, accumulate_dx
    Py_ssize_t T, B, I, H, P, chunk, ldy, lddy
    const Py_ssize_t *offsets   # (T+1,)
    const void *x               # (N, I)
    const void *weight_ih       # (G, I)
    const void *weight_hh       # (G, P)
    const void *weight_hr       # (P, H)          projected
    const void *bias_ih         # (G,)            or NULL
    const void *bias_hh         # (G,)            or NULL
    void *h                     # (B, P)          live; in backward: the initial state, only read
    void *c                     # (B, H)          live; in backward: the initial state, only read
    void *y                     # (N, ldy)        forward: out; backward: as forward left it
    void *gates                 # (N, AH)         kept for backward, or scratch (chunk, AH) at inference
    void *c_kept                # (N, H)          kept for backward, or NULL
    void *bias                  # (AH,)           scratch: biases, by accumulator; in backward their gradient
    void *unit                  # (B, H)          scratch: o tanh(c) before projection, or r*h_prev
    # backward only
    const void *dy              # (N, lddy)       or NULL
    void *dh                    # (B, P)          live: gradient of the final state, then of the initial
    void *dc                    # (B, H)          live, the same
    void *dgates                # (chunk, AH)     scratch
    void *h_prev                # (chunk, P)      scratch: the state each row started its step from
    void *c_prev                # (B, H)          scratch
    void *units                 # (chunk, H)      scratch: o tanh(c), or r*h_prev
    void *dh_kept               # (chunk, P)      scratch: gradient of the projected state
    void *dunit                 # (B, H)          scratch: gradient of o tanh(c)
    void *chunk_sum             # (AH,)           scratch
    void *dx                    # (N, I)          or NULL
    void *dweight_ih            # (G, I)          added to, as all gradients of parameters
    void *dweight_hh            # (G, P)
    void *dweight_hr            # (P, H)


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


cdef inline int look_for_signals(double *last, uint64_t mode) except -1 nogil:
    """Ten times a second a long call takes the GIL to see whether Ctrl-C waits; it raises then."""
    cdef double now = fastrnn_seconds()
    if now - last[0] < 0.1:
        return 0
    last[0] = now
    with gil:
        fastrnn_restore_mode(mode)
        PyErr_CheckSignals()
        fastrnn_flush_denormals()
    return 0


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


cdef void project_input(real *_, const Run *a, Py_ssize_t rows, const real *x, real *gates) noexcept nogil:
    """gates (rows, AH) = bias + x W_ih^T, each block to its accumulator."""
    cdef fastrnn_cell_shape shape = fastrnn_cell_shapes[a.cell]
    cdef Py_ssize_t H = a.H, AH = shape.accumulators * H, direct = shape.input_blocks * H, row
    cdef const real *w = <const real *>a.weight_ih
    for row in range(rows):
        memcpy(gates + row * AH, a.bias, AH * sizeof(real))
    gemm_nt(rows, direct, a.I, x, a.I, w, a.I, <real>1, gates, AH)
    if shape.gates > shape.input_blocks:
        gemm_nt(rows, H, a.I, x, a.I, w + direct * a.I, a.I, <real>1, gates + AH - H, AH)


cdef int forward_run(real *tag, const Run *a, uint64_t mode) except -1 nogil:
    """y, h_n, c_n of one layer and direction; fills `gates` and `c_kept` if they are kept."""
    cdef double last = fastrnn_seconds()
    cdef fastrnn_cell_shape shape = fastrnn_cell_shapes[a.cell]
    cdef Py_ssize_t H = a.H, P = a.P, AH = shape.accumulators * H, direct = shape.hidden_blocks * H
    cdef Py_ssize_t done = 0, steps, step, t, first, n, row
    cdef const real *w_hh = <const real *>a.weight_hh
    cdef real *h = <real *>a.h
    cdef real *unit = <real *>a.unit
    cdef real *gates
    cdef real *at
    cdef real *y
    cdef real *kept
    if real is float:
        cell = isa.f32.cell[a.cell]
    else:
        cell = isa.f64.cell[a.cell]
    combine_bias(tag, a)
    while done < a.T:
        steps = next_chunk(a, done, a.reverse)
        t = a.T - done - steps if a.reverse else done
        first = a.offsets[t]
        gates = <real *>a.gates + (first * AH if a.keep else 0)
        project_input(tag, a, a.offsets[t + steps] - first, <const real *>a.x + first * a.I, gates)
        for step in range(steps):
            t = a.T - done - step - 1 if a.reverse else done + step
            n = a.offsets[t + 1] - a.offsets[t]
            at = gates + (a.offsets[t] - first) * AH
            y = <real *>a.y + a.offsets[t] * a.ldy
            kept = <real *>a.c_kept + a.offsets[t] * H if a.c_kept != NULL else NULL
            gemm_nt(n, direct, P, h, P, w_hh, P, <real>1, at, AH)
            if shape.has_reset:
                cell.reset_forward(n, H, at, h, unit)
                gemm_nt(n, H, H, unit, H, w_hh + direct * H, H, <real>1, at + direct, AH)
            if a.projected:
                cell.forward(n, H, at, a.keep, unit, <real *>a.c, NULL, 0, kept)
                gemm_nt(n, P, H, unit, H, <const real *>a.weight_hr, H, <real>0, h, P)
                for row in range(n):
                    memcpy(y + row * a.ldy, h + row * P, P * sizeof(real))
            else:
                cell.forward(n, H, at, a.keep, h, <real *>a.c, y, a.ldy, kept)
            look_for_signals(&last, mode)
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


cdef void backward_step(real *tag, const Run *a, Py_ssize_t t, Py_ssize_t at) noexcept nogil:
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
    cdef const real *dy
    if real is float:
        cell = isa.f32.cell[a.cell]
    else:
        cell = isa.f64.cell[a.cell]
    if a.dy != NULL:
        for row in range(n):
            dy = <const real *>a.dy + (first + row) * a.lddy
            for k in range(P):
                dh[row * P + k] += dy[k]
    rows_before(h_prev, <const real *>a.y, a.ldy, <const real *>a.h, P, a, t)
    if shape.has_c:
        c = <const real *>a.c_kept + first * H
        rows_before(<real *>a.c_prev, <const real *>a.c_kept, H, <const real *>a.c, H, a, t)
    if a.projected:
        memcpy(<real *>a.dh_kept + at * P, dh, n * P * sizeof(real))
        dh_cell = <real *>a.dunit
        gemm_nn(n, H, P, dh, P, <const real *>a.weight_hr, H, <real>0, dh_cell, H)
    cell.backward(n, H, gates, h_prev, c, <const real *>a.c_prev, dgates, dh_cell, <real *>a.dc, units)
    if shape.has_reset:
        gemm_nn(n, H, H, dgates + direct, AH, w_hh + direct * H, H, <real>0, units, H)
        cell.reset_backward(n, H, gates, h_prev, units, dgates, dh)
    gemm_nn(n, P, direct, dgates, AH, w_hh, P, <real>0 if a.projected else <real>1, dh, P)


cdef void backward_products(real *tag, const Run *a, Py_ssize_t first, Py_ssize_t rows) noexcept nogil:
    """What a chunk of `rows` packed rows adds to the gradients of the parameters, and its dx."""
    cdef fastrnn_cell_shape shape = fastrnn_cell_shapes[a.cell]
    cdef Py_ssize_t H = a.H, P = a.P, I = a.I, AH = shape.accumulators * H, k
    cdef Py_ssize_t direct_x = shape.input_blocks * H, direct_h = shape.hidden_blocks * H
    cdef const real *dgates = <const real *>a.dgates
    cdef const real *x = <const real *>a.x + first * I
    cdef const real *w_ih = <const real *>a.weight_ih
    cdef real *dw_ih = <real *>a.dweight_ih
    cdef real *dw_hh = <real *>a.dweight_hh
    cdef real *dbias = <real *>a.bias
    cdef real *chunk_sum = <real *>a.chunk_sum
    cdef real *dx
    gemm_tn(direct_h, P, rows, dgates, AH, <const real *>a.h_prev, P, <real>1, dw_hh, P)
    gemm_tn(direct_x, I, rows, dgates, AH, x, I, <real>1, dw_ih, I)
    if shape.gates > shape.input_blocks:
        gemm_tn(H, I, rows, dgates + AH - H, AH, x, I, <real>1, dw_ih + direct_x * I, I)
    if shape.has_reset:
        gemm_tn(H, H, rows, dgates + direct_h, AH, <const real *>a.units, H, <real>1, dw_hh + direct_h * H, H)
    if a.projected:
        gemm_tn(P, H, rows, <const real *>a.dh_kept, P, <const real *>a.units, H, <real>1, <real *>a.dweight_hr, H)
    # A sum per chunk, then the sum of those: shorter chains, smaller error.
    memset(chunk_sum, 0, AH * sizeof(real))
    if real is float:
        isa.f32.add_rows(rows, AH, dgates, chunk_sum)
    else:
        isa.f64.add_rows(rows, AH, dgates, chunk_sum)
    for k in range(AH):
        dbias[k] += chunk_sum[k]
    if a.dx != NULL:
        dx = <real *>a.dx + first * I
        gemm_nn(rows, I, direct_x, dgates, AH, w_ih, I, <real>1 if a.accumulate_dx else <real>0, dx, I)
        if shape.gates > shape.input_blocks:
            gemm_nn(rows, I, H, dgates + AH - H, AH, w_ih + direct_x * I, I, <real>1, dx, I)


cdef int backward_run(real *tag, const Run *a, uint64_t mode) except -1 nogil:
    """BPTT of one layer and direction: against the order of forward_run, chunk by chunk."""
    cdef double last = fastrnn_seconds()
    cdef Py_ssize_t done = 0, steps, step, t, first
    while done < a.T:
        steps = next_chunk(a, done, not a.reverse)
        first = a.offsets[done if a.reverse else a.T - done - steps]
        for step in range(steps):
            t = done + step if a.reverse else a.T - done - step - 1
            backward_step(tag, a, t, a.offsets[t] - first)
            look_for_signals(&last, mode)
        t = done if a.reverse else a.T - done - steps
        backward_products(tag, a, first, a.offsets[t + steps] - first)
        done += steps
    return 0


# --- from Python --------------------------------------------------------------------------------------

cdef inline void *data(object array):
    return NULL if array is None else cnp.PyArray_DATA(<cnp.ndarray>array)


cdef void fill(Run *a, int cell, bint reverse, offsets, x, weights, state, y, gates, c_kept, bias,
               unit) except *:
    h, c = state
    weight_ih, weight_hh, bias_ih, bias_hh, weight_hr = weights
    a.cell, a.reverse, a.projected = cell, reverse, weight_hr is not None
    a.T, a.B, a.I = offsets.shape[0] - 1, h.shape[0], x.shape[1]
    a.P, a.H = h.shape[1], weight_ih.shape[0] // fastrnn_cell_shapes[cell].gates
    a.ldy = y.strides[0] // y.itemsize
    a.offsets = <const Py_ssize_t *>data(offsets)
    a.x, a.h, a.c, a.y = data(x), data(h), data(c), data(y)
    a.weight_ih, a.weight_hh, a.weight_hr = data(weight_ih), data(weight_hh), data(weight_hr)
    a.bias_ih, a.bias_hh, a.bias = data(bias_ih), data(bias_hh), data(bias)
    a.gates, a.c_kept, a.unit = data(gates), data(c_kept), data(unit)


def forward(int cell, bint reverse, offsets, x, weights, state, y, gates, c_kept, bias, unit,
            Py_ssize_t chunk, bint keep):
    """Run one layer and direction; see `Run` for the arrays. `state` = (h, c or None) is updated."""
    cdef Run a
    cdef uint64_t mode
    cdef bint single = x.dtype == np.float32
    memset(&a, 0, sizeof(Run))
    fill(&a, cell, reverse, offsets, x, weights, state, y, gates, c_kept, bias, unit)
    a.chunk, a.keep = chunk, keep
    mode = fastrnn_flush_denormals()
    try:
        with nogil:
            if single:
                forward_run(<float *>NULL, &a, mode)
            else:
                forward_run(<double *>NULL, &a, mode)
    finally:
        fastrnn_restore_mode(mode)


def backward(int cell, bint reverse, offsets, x, weights, state, y, gates, c_kept, dy, dstate, dx,
             bint accumulate_dx, dweights, dbias, scratch, Py_ssize_t chunk):
    """BPTT of one layer and direction.

    `dstate` = (dh, dc or None) is updated from the final to the initial state's gradient; `dweights` =
    (dweight_ih, dweight_hh, dweight_hr or None) and `dbias` (AH,) are added to; `scratch` holds the
    arrays dgates, h_prev, c_prev, units, dh_kept, dunit, chunk_sum (None where a cell has no use for it).
    """
    cdef Run a
    cdef uint64_t mode
    cdef bint single = x.dtype == np.float32
    memset(&a, 0, sizeof(Run))
    fill(&a, cell, reverse, offsets, x, weights, state, y, gates, c_kept, dbias, None)
    a.chunk, a.accumulate_dx = chunk, accumulate_dx
    a.lddy = 0 if dy is None else dy.strides[0] // dy.itemsize
    a.dy, a.dh, a.dc, a.dx = data(dy), data(dstate[0]), data(dstate[1]), data(dx)
    a.dweight_ih, a.dweight_hh, a.dweight_hr = data(dweights[0]), data(dweights[1]), data(dweights[2])
    a.dgates, a.h_prev, a.c_prev = data(scratch[0]), data(scratch[1]), data(scratch[2])
    a.units, a.dh_kept, a.dunit = data(scratch[3]), data(scratch[4]), data(scratch[5])
    a.chunk_sum = data(scratch[6])
    mode = fastrnn_flush_denormals()
    try:
        with nogil:
            if single:
                backward_run(<float *>NULL, &a, mode)
            else:
                backward_run(<double *>NULL, &a, mode)
    finally:
        fastrnn_restore_mode(mode)


cdef class Stepper:
    """A stack of forward runs of one step each, bound once to their arrays: a step allocates nothing."""

    cdef Run *runs
    cdef int count
    cdef bint single
    cdef object alive  # everything that `runs` points into

    def __cinit__(self, list calls):
        """`calls`: per layer (cell, offsets, x, weights, state, y, gates, bias, unit)."""
        self.count = len(calls)
        self.runs = <Run *>PyMem_Calloc(len(calls), sizeof(Run))
        if self.runs == NULL:
            raise MemoryError
        self.alive = calls
        for k, (cell, offsets, x, weights, state, y, gates, bias, unit) in enumerate(calls):
            fill(&self.runs[k], cell, False, offsets, x, weights, state, y, gates, None, bias, unit)
            self.runs[k].chunk = x.shape[0]
            self.single = x.dtype == np.float32

    def __dealloc__(self):
        PyMem_Free(self.runs)

    def step(self):
        cdef uint64_t mode = fastrnn_flush_denormals()
        cdef int k
        try:
            with nogil:
                for k in range(self.count):
                    if self.single:
                        forward_run(<float *>NULL, &self.runs[k], mode)
                    else:
                        forward_run(<double *>NULL, &self.runs[k], mode)
        finally:
            fastrnn_restore_mode(mode)


cdef void product_run(real *_, bint transpose_a, bint transpose_b, Py_ssize_t M, Py_ssize_t N, Py_ssize_t K,
                      void *a, void *b, void *c) noexcept nogil:
    if transpose_a:
        gemm_tn(M, N, K, <const real *>a, M, <const real *>b, N, <real>0, <real *>c, N)
    elif transpose_b:
        gemm_nt(M, N, K, <const real *>a, K, <const real *>b, K, <real>0, <real *>c, N)
    else:
        gemm_nn(M, N, K, <const real *>a, K, <const real *>b, N, <real>0, <real *>c, N)


def product(a, b, c, *, bint transpose_a=False, bint transpose_b=False):
    """c = a b, of contiguous matrices of one dtype, one of the two factors transposed or none.

    For the layers around the recurrent ones: theirs go through the same BLAS, because two libraries that
    keep their threads spinning on the same cores cost more than either gains.
    """
    cdef Py_ssize_t M = c.shape[0], N = c.shape[1], K = a.shape[0] if transpose_a else a.shape[1]
    cdef void *pa = data(a)
    cdef void *pb = data(b)
    cdef void *pc = data(c)
    if not M or not N:
        return
    if max(M, N, K) > 0x7fffffff:
        raise ValueError(f"product: sizes {M}, {N}, {K} are more than BLAS takes")
    if not K:
        c[...] = 0
        return
    if c.dtype == np.float32:
        with nogil:
            product_run(<float *>NULL, transpose_a, transpose_b, M, N, K, pa, pb, pc)
    else:
        with nogil:
            product_run(<double *>NULL, transpose_a, transpose_b, M, N, K, pa, pb, pc)


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
