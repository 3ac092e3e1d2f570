"""The BLAS back end: one layer in one direction by BLAS products, step by step as in the textbook.

The engine uses it on a processor for which it has no fused kernels, and with FASTRNN_ISA=blas. Read this version of the
algorithm first. It is also an independent check of the fused one. Rows of the batch are rows of matrices:

    forward     a_t = b + x_t W_ih^T + h_{t-1} W_hh^T       sums of all gates
                h_t, c_t = cell(a_t, h_{t-1}, c_{t-1})      elementwise: src/kernels/cells/cells.h
    backward    da_t = cell'(dh_t + dy_t, dc_t)
                dh_{t-1} = da_t W_hh
                dx_t = da_t W_ih
                dW_ih = sum_t da_t^T x_t,  dW_hh = sum_t da_t^T h_{t-1},  db = sum_t (sum of the rows of da_t)

Products with x, and gradients of weights, do not wait for the step before: they take a chunk of steps at once. The
batch is sorted by length, so the rows of step t are its first n_t: packed rows offsets[t] to offsets[t+1]-1 of every
array. If x, y, dy or dx have another layout (`scattered`), their rows are gathered or scattered, a chunk at a time.

A row of sums or gates has A blocks of H, one for each accumulator; a weight matrix has a block of H rows for each gate.
Block b feeds accumulator b, with two exceptions for the last block. The GRU keeps W_in x apart from W_hn h: the first
`input_blocks` of W_ih feed the accumulators of their number, and the last one feeds the last accumulator. The GRU with
the reset before multiplies W_hn with r h_{t-1}: the first `hidden_blocks` of W_hh multiply h_{t-1}.
"""

from cython cimport floating as real
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset
from scipy.linalg.cython_blas cimport dgemm, dgemv, sgemm, sgemv

from fastrnn._kernels._engine cimport (
    BackwardRun, ForwardRun, Poll, Run, fastrnn_backend, fastrnn_cell, fastrnn_cell_backward, fastrnn_cell_forward,
    fastrnn_current_isa, fastrnn_flush_denormals, fastrnn_gather, fastrnn_layer, fastrnn_next_chunk,
    fastrnn_register_backend, fastrnn_restore_mode, fastrnn_scatter, fastrnn_table, fastrnn_weights,
)
from fastrnn._kernels.signals cimport ask


# --- products, row-major ------------------------------------------------------------------------------
# BLAS is column-major: it reads a row-major matrix as its transpose, so the operands swap places.
#
# A product of a few rows calls gemv for each row, because gemm would pack the whole weight matrix first. Measured with
# OpenBLAS 0.3.30, N = 4H, H = 128 to 512: gemv has 40 GFLOP/s; gemm has 5, 20, 34, 53, 72 with 1, 4, 8, 16, 32 rows.
# So the bits of a row depend on how many rows the product has.
#
# A product of many rows is computed in pieces, so that Ctrl-C need not wait for the whole.

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


cdef int rows_times(const Poll *poll, bint transpose_b, Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *a,
                    Py_ssize_t lda, const real *b, Py_ssize_t ldb, real beta, real *c,
                    Py_ssize_t ldc) except -1 nogil:
    """c (M, N) = a (M, K) b + beta c;  b is (K, N), or (N, K) and transposed."""
    cdef char *trans = b"T" if transpose_b else b"N"
    cdef Py_ssize_t row = 0, rows, most = rows_of_piece(N, K)
    if M <= GEMV_ROWS:
        for row in range(M):
            gemv(trans, <int>(K if transpose_b else N), <int>(N if transpose_b else K), b, <int>ldb, a + row * lda,
                 beta, c + row * ldc)
        return 0
    while row < M:
        rows = min(M - row, most)
        gemm(trans, "N", <int>N, <int>rows, <int>K, b, <int>ldb, a + row * lda, <int>lda, beta, c + row * ldc,
             <int>ldc)
        row += rows
        if row < M:
            ask(poll)
    return 0


cdef inline int gemm_nt(const Poll *poll, Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *a, Py_ssize_t lda,
                        const real *b, Py_ssize_t ldb, real beta, real *c, Py_ssize_t ldc) except -1 nogil:
    """c (M, N) = a (M, K) b (N, K)^T + beta c"""
    return rows_times(poll, True, M, N, K, a, lda, b, ldb, beta, c, ldc)


cdef inline int gemm_nn(const Poll *poll, Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *a, Py_ssize_t lda,
                        const real *b, Py_ssize_t ldb, real beta, real *c, Py_ssize_t ldc) except -1 nogil:
    """c (M, N) = a (M, K) b (K, N) + beta c"""
    return rows_times(poll, False, M, N, K, a, lda, b, ldb, beta, c, ldc)


cdef int gemm_tn(const Poll *poll, Py_ssize_t M, Py_ssize_t N, Py_ssize_t K, const real *a, Py_ssize_t lda,
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


cdef int product_of(real *_, const Product *p, const Poll *poll) except -1 nogil:
    cdef const real *a = <const real *>p.a
    cdef const real *b = <const real *>p.b
    cdef real *c = <real *>p.c
    if p.transpose_a:
        return gemm_tn(poll, p.M, p.N, p.K, a, p.M, b, p.N, <real>0, c, p.N)
    return rows_times(poll, p.transpose_b, p.M, p.N, p.K, a, p.K, b, p.K if p.transpose_b else p.N, <real>0, c, p.N)


cdef int product_by_blas(const Product *p, const Poll *poll) except -1 nogil:
    return product_of(<float *>NULL, p, poll) if p.is_float else product_of(<double *>NULL, p, poll)


# --- what forward and backward share ------------------------------------------------------------------

cdef inline const fastrnn_table *table_of(real *_) noexcept nogil:
    """The kernels of one precision."""
    return fastrnn_current_isa().table[0 if real is float else 1]


cdef const real *rows_of_x(real *_, const Run *run, Py_ssize_t first, Py_ssize_t rows, Py_ssize_t *ld) noexcept nogil:
    """Packed rows of x with leading dimension `ld`. If x is scattered, they are gathered first."""
    ld[0] = run.layer.I if run.x.scattered else run.x.row
    if not run.x.scattered:
        return <const real *>run.x.data + first * run.x.row
    fastrnn_gather(run, &run.x, run.layer.I, first, rows, False, run.x_chunk)
    return <const real *>run.x_chunk


# --- forward ------------------------------------------------------------------------------------------

cdef void combine_bias(real *bias, const fastrnn_layer *layer, const fastrnn_weights *w) noexcept nogil:
    """b (A*H,) = b_ih + b_hh, each block in the accumulator that it feeds."""
    cdef Py_ssize_t H = layer.H, direct = layer.shape.input_blocks * H, k
    cdef const real *b_ih = <const real *>w.bias_ih
    cdef const real *b_hh = <const real *>w.bias_hh
    memset(bias, 0, layer.AH * sizeof(real))
    if layer.has_bias_ih:
        memcpy(bias, b_ih, direct * sizeof(real))
        if layer.G > direct:
            memcpy(bias + layer.AH - H, b_ih + direct, H * sizeof(real))
    if layer.has_bias_hh:
        for k in range(layer.G):
            bias[k] += b_hh[k]


cdef int project_input(const real *bias, const Run *run, Py_ssize_t first, Py_ssize_t rows,
                       real *sums) except -1 nogil:
    """a = b + x W_ih^T of a chunk of packed rows."""
    cdef const fastrnn_layer *layer = run.layer
    cdef Py_ssize_t H = layer.H, I = layer.I, AH = layer.AH, direct = layer.shape.input_blocks * H, row, ldx
    cdef const real *w_ih = <const real *>run.weights.weight_ih
    cdef const real *x = rows_of_x(<real *>NULL, run, first, rows, &ldx)
    # a = b
    for row in range(rows):
        memcpy(sums + row * AH, bias, AH * sizeof(real))
        if row % 1024 == 1023:
            ask(&run.poll)
    # a += x W_ih^T
    gemm_nt(&run.poll, rows, direct, I, x, ldx, w_ih, I, <real>1, sums, AH)
    if layer.G > direct:  # GRU: the last accumulator is W_in x
        gemm_nt(&run.poll, rows, H, I, x, ldx, w_ih + direct * I, I, <real>1, sums + AH - H, AH)
    return 0


cdef int forward_steps(real *tag, const ForwardRun *a, Py_ssize_t first_step, Py_ssize_t steps, real *sums,
                       real *history) except -1 nogil:
    """The steps of a chunk, from the projected inputs `sums` of its rows; h of each goes to `history` (rows, ldh)."""
    cdef const Run *run = &a.run
    cdef const fastrnn_layer *layer = run.layer
    cdef fastrnn_cell cell = table_of(tag).cell[layer.cell]
    cdef Py_ssize_t H = layer.H, P = layer.P, AH = layer.AH, direct = layer.shape.hidden_blocks * H
    cdef Py_ssize_t first = run.offsets[first_step], step, t, at, n, row, part
    cdef const real *w_hh = <const real *>run.weights.weight_hh
    cdef const real *w_hr = <const real *>run.weights.weight_hr
    cdef real *h = <real *>run.h
    cdef real *unit = <real *>a.unit
    cdef real *a_t
    cdef fastrnn_cell_forward operands
    memset(&operands, 0, sizeof(operands))
    operands.H = operands.end = H
    operands.sums.row, operands.sums.block, operands.sums.unit = AH, H, 1
    operands.rh = unit
    for part in range(layer.shape.inner):
        operands.inner[part] = run.inner[part]
    for part in range(layer.shape.vectors):
        operands.vector[part] = run.weights.vector[part]
    operands.h_prev, operands.ld_prev = h, P
    operands.h, operands.ldh = unit if layer.projected else h, H
    for step in range(steps):
        t = first_step + (steps - 1 - step if layer.reverse else step)
        at, n = run.offsets[t] - first, run.offsets[t + 1] - run.offsets[t]
        a_t = sums + at * AH
        operands.n, operands.sums.at = n, a_t
        operands.kept = NULL if run.kept == NULL else <real *>run.kept + run.offsets[t] * layer.KH
        for part in range(layer.shape.inner):
            operands.inner_kept[part] = (
                NULL if run.inner_rows[part] == NULL else <real *>run.inner_rows[part] + run.offsets[t] * H)
        if direct:
            # a_t += h_{t-1} W_hh^T
            gemm_nt(&run.poll, n, direct, P, h, P, w_hh, P, <real>1, a_t, AH)
        if layer.shape.has_reset:
            # r_t, z_t = sigmoid(a_t);  a_t of n += (r_t h_{t-1}) W_hn^T
            cell.reset_forward(&operands)
            gemm_nt(&run.poll, n, H, H, unit, H, w_hh + direct * H, H, <real>1, a_t + direct, AH)
        # h_t, c_t = cell(a_t, h_{t-1}, c_{t-1})
        cell.forward(&operands)
        if layer.projected:
            # h_t = (o_t tanh(c_t)) W_hr^T
            gemm_nt(&run.poll, n, P, H, unit, H, w_hr, H, <real>0, h, P)
        for row in range(n):
            memcpy(history + (at + row) * run.ldh, h + row * P, P * sizeof(real))
        ask(&run.poll)
    return 0


cdef int forward_run(real *tag, const ForwardRun *a) except -1 nogil:
    """y, the final state, and the history of h; with a tape also what the cell keeps, and the history of `inner`."""
    cdef const Run *run = &a.run
    cdef const fastrnn_layer *layer = run.layer
    cdef Py_ssize_t done = 0, steps, first_step, first, rows
    cdef real *bias = <real *>a.bias
    cdef real *sums
    cdef real *history
    combine_bias(bias, layer, run.weights)
    while done < run.T:
        steps = fastrnn_next_chunk(run, done, layer.reverse)
        first_step = run.T - done - steps if layer.reverse else done
        first = run.offsets[first_step]
        rows = run.offsets[first_step + steps] - first
        sums = <real *>a.sums
        history = <real *>run.h_rows + (0 if run.ring else first * run.ldh)
        project_input(bias, run, first, rows, sums)
        forward_steps(tag, a, first_step, steps, sums, history)
        if a.y.data != NULL:
            fastrnn_scatter(run, &a.y, layer.P, first, rows, True, history, run.ldh)
        done += steps
    return 0


# --- backward -----------------------------------------------------------------------------------------

cdef void rows_before(real *out, const real *history, Py_ssize_t ld, const real *initial, Py_ssize_t width,
                      const Run *run, Py_ssize_t t) noexcept nogil:
    """out (n, width): the state of each row before step t, which is `initial` if t is the row's first step."""
    cdef Py_ssize_t n = run.offsets[t + 1] - run.offsets[t], before = t + 1 if run.layer.reverse else t - 1, m = 0, row
    if 0 <= before < run.T:
        m = min(n, run.offsets[before + 1] - run.offsets[before])
        history += run.offsets[before] * ld
        for row in range(m):
            memcpy(out + row * width, history + row * ld, width * sizeof(real))
    memcpy(out + m * width, initial + m * width, (n - m) * width * sizeof(real))


cdef int backward_step(real *tag, const BackwardRun *a, Py_ssize_t t, Py_ssize_t at, const real *dy,
                       Py_ssize_t lddy) except -1 nogil:
    """Write da_t from row `at` of the chunk's scratch on. dh and dc of step t become those of the step before it."""
    cdef const Run *run = &a.run
    cdef const fastrnn_layer *layer = run.layer
    cdef fastrnn_cell cell = table_of(tag).cell[layer.cell]
    cdef Py_ssize_t H = layer.H, P = layer.P, DH = layer.DH, direct = layer.shape.hidden_blocks * H
    cdef Py_ssize_t first = run.offsets[t], n = run.offsets[t + 1] - first, part
    cdef const real *w_hh = <const real *>run.weights.weight_hh
    cdef real *da_t = <real *>a.dgates + at * DH
    cdef real *h_prev = <real *>a.h_prev + at * P
    cdef real *units = <real *>a.units + at * H if a.units != NULL else NULL
    cdef real *dh = <real *>a.dh
    cdef fastrnn_cell_backward operands
    memset(&operands, 0, sizeof(operands))
    operands.n, operands.H, operands.end = n, H, H
    operands.kept = <const real *>run.kept + first * layer.KH
    operands.h, operands.ldh = <const real *>run.h_rows + first * run.ldh, run.ldh
    operands.h_prev, operands.ld_prev = h_prev, P
    operands.dgates, operands.dh = da_t, dh
    operands.dy, operands.lddy = dy, lddy
    operands.unprojected = operands.drh = units
    rows_before(h_prev, <const real *>run.h_rows, run.ldh, <const real *>run.h, P, run, t)
    for part in range(layer.shape.inner):
        operands.inner[part], operands.inner_prev[part] = <const real *>run.inner_rows[part] + first * H, a.inner_prev[part]
        operands.dinner[part] = a.dinner[part]
        rows_before(<real *>a.inner_prev[part], <const real *>run.inner_rows[part], H, <const real *>run.inner[part], H,
                    run, t)
    for part in range(layer.shape.vectors):
        operands.vector[part] = run.weights.vector[part]
    if layer.projected:
        unproject(a, n, at, dy, lddy)
        operands.dy, operands.dh = NULL, a.dunit
    # da_t = cell'(dh_t + dy_t, dc_t);  dh_{t-1} begins with what no product carries
    cell.backward(&operands)
    if layer.shape.has_reset:
        # d(r_t h_{t-1}) = da_t of n W_hn
        gemm_nn(&run.poll, n, H, H, da_t + direct, DH, w_hh + direct * H, H, <real>0, units, H)
        cell.reset_backward(&operands)
    if direct:
        # dh_{t-1} += da_t W_hh
        gemm_nn(&run.poll, n, P, direct, da_t, DH, w_hh, P, <real>0 if layer.projected else <real>1, dh, P)
    return 0


cdef int unproject(const BackwardRun *a, Py_ssize_t n, Py_ssize_t at, const real *dy, Py_ssize_t lddy) except -1 nogil:
    """The gradient of o_t tanh(c_t), from that of its projection h_t. The latter is copied to `dh_rows`, from row `at`
    on, for dW_hr."""
    cdef Py_ssize_t H = a.run.layer.H, P = a.run.layer.P, row, k
    cdef const real *w_hr = <const real *>a.run.weights.weight_hr
    cdef real *dh = <real *>a.dh
    # dh_t += dy_t
    if dy != NULL:
        for row in range(n):
            for k in range(P):
                dh[row * P + k] += dy[row * lddy + k]
    memcpy(<real *>a.dh_rows + at * P, dh, n * P * sizeof(real))
    # d(o_t tanh(c_t)) = dh_t W_hr
    gemm_nn(&a.run.poll, n, H, P, dh, P, w_hr, H, <real>0, <real *>a.dunit, H)
    return 0


cdef int weight_gradients(real *tag, const BackwardRun *a, Py_ssize_t first, Py_ssize_t rows,
                          bint first_chunk) except -1 nogil:
    """dW and db: add the sum over the rows of a chunk to the sum over the chunks before it."""
    cdef real before = <real>0 if first_chunk else <real>1
    cdef const Run *run = &a.run
    cdef const Poll *poll = &run.poll
    cdef const fastrnn_layer *layer = run.layer
    cdef Py_ssize_t H = layer.H, P = layer.P, I = layer.I, AH = layer.AH, DH = layer.DH, ldx
    cdef Py_ssize_t direct_x = layer.shape.input_blocks * H, direct_h = layer.shape.hidden_blocks * H
    cdef const real *da = <const real *>a.dgates
    cdef const real *units = <const real *>a.units
    cdef const real *x
    cdef real *dw_ih = <real *>a.dweights.weight_ih
    cdef real *dw_hh = <real *>a.dweights.weight_hh
    cdef real *dw_hr = <real *>a.dweights.weight_hr
    if dw_hh != NULL and direct_h:
        # dW_hh += da^T h_prev;  of the GRU with the reset before, dW_hn += da_n^T (r h_prev)
        gemm_tn(poll, direct_h, P, rows, da, DH, <const real *>a.h_prev, P, before, dw_hh, P)
        if layer.shape.has_reset:
            gemm_tn(poll, H, H, rows, da + direct_h, DH, units, H, before, dw_hh + direct_h * H, H)
    if dw_ih != NULL:
        # dW_ih += da^T x
        x = rows_of_x(tag, run, first, rows, &ldx)
        gemm_tn(poll, direct_x, I, rows, da, DH, x, ldx, before, dw_ih, I)
        if layer.G > direct_x:
            gemm_tn(poll, H, I, rows, da + AH - H, DH, x, ldx, before, dw_ih + direct_x * I, I)
    if dw_hr != NULL:
        # dW_hr += dh^T (o tanh(c))
        gemm_tn(poll, P, H, rows, <const real *>a.dh_rows, P, units, H, before, dw_hr, H)
    # db += sum of the rows of da
    table_of(tag).add_rows(rows, DH, 0, DH, da, a.dbias)
    return 0


cdef int input_gradient(real *_, const BackwardRun *a, Py_ssize_t first, Py_ssize_t rows) except -1 nogil:
    """dx of a chunk. The second direction adds its dx to that of the first."""
    cdef const Run *run = &a.run
    cdef const fastrnn_layer *layer = run.layer
    cdef Py_ssize_t H = layer.H, I = layer.I, AH = layer.AH, DH = layer.DH, direct = layer.shape.input_blocks * H
    cdef Py_ssize_t ld = I if a.dx.scattered else a.dx.row
    cdef const real *da = <const real *>a.dgates
    cdef const real *w_ih = <const real *>run.weights.weight_ih
    cdef real *dx = <real *>a.dx_chunk if a.dx.scattered else <real *>a.dx.data + first * ld
    if a.dx.scattered and a.add_to_dx:
        fastrnn_gather(run, &a.dx, I, first, rows, False, dx)
    # dx = da W_ih
    gemm_nn(&run.poll, rows, I, direct, da, DH, w_ih, I, <real>1 if a.add_to_dx else <real>0, dx, ld)
    if layer.G > direct:
        gemm_nn(&run.poll, rows, I, H, da + AH - H, DH, w_ih + direct * I, I, <real>1, dx, ld)
    if a.dx.scattered:
        fastrnn_scatter(run, &a.dx, I, first, rows, False, dx, ld)
    return 0


cdef int backward_run(real *tag, const BackwardRun *a) except -1 nogil:
    """BPTT: chunks and steps in the reverse order of forward_run."""
    cdef const Run *run = &a.run
    cdef const fastrnn_layer *layer = run.layer
    cdef Py_ssize_t done = 0, steps, step, t, at, first_step, first, rows
    cdef Py_ssize_t lddy = layer.P if a.dy.scattered else a.dy.row
    cdef const real *dy = NULL
    while done < run.T:
        steps = fastrnn_next_chunk(run, done, not layer.reverse)
        first_step = done if layer.reverse else run.T - done - steps
        first = run.offsets[first_step]
        rows = run.offsets[first_step + steps] - first
        if a.dy.data != NULL:
            dy = <const real *>a.dy_chunk if a.dy.scattered else <const real *>a.dy.data + first * lddy
            if a.dy.scattered:
                fastrnn_gather(run, &a.dy, layer.P, first, rows, True, a.dy_chunk)
        for step in range(steps):
            t = first_step + (step if layer.reverse else steps - 1 - step)
            at = run.offsets[t] - first
            backward_step(tag, a, t, at, dy + at * lddy if dy != NULL else dy, lddy)
            ask(&run.poll)
        weight_gradients(tag, a, first, rows, done == 0)
        if a.dx.data != NULL:
            input_gradient(tag, a, first, rows)
        done += steps
    return 0


# --- the back end -------------------------------------------------------------------------------------

cdef int forward(real *tag, const ForwardRun *a) except -1 nogil:
    cdef uint64_t mode = fastrnn_flush_denormals()
    try:
        return forward_run(tag, a)
    finally:
        fastrnn_restore_mode(mode)


cdef int backward(real *tag, const BackwardRun *a) except -1 nogil:
    cdef uint64_t mode = fastrnn_flush_denormals()
    try:
        return backward_run(tag, a)
    finally:
        fastrnn_restore_mode(mode)


cdef int forward_f32(const ForwardRun *a) except -1 nogil:
    return forward(<float *>NULL, a)


cdef int forward_f64(const ForwardRun *a) except -1 nogil:
    return forward(<double *>NULL, a)


cdef int backward_f32(const BackwardRun *a) except -1 nogil:
    return backward(<float *>NULL, a)


cdef int backward_f64(const BackwardRun *a) except -1 nogil:
    return backward(<double *>NULL, a)


cdef fastrnn_backend backend
backend.forward[0], backend.forward[1] = forward_f32, forward_f64
backend.backward[0], backend.backward[1] = backward_f32, backward_f64
fastrnn_register_backend(&backend)
