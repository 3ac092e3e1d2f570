/* Products of a few rows with weights as PyTorch has them, row-major (blocks*units, K).
 *
 * Packing reads and writes all of the weights, which is much more than one step of one row does. Here a square block of
 * them, LANES units by LANES steps of k, is loaded row by row and transposed in registers: then lane u of vector k is
 * what unit u multiplies a(r, k) with, just as in a panel. Each sum is the same chain in the order of k as in the tile
 * of product.h, so the bits are the same. */

#if VECTOR_BYTES == 64 && defined(REAL_F32)
#define FOR_LANES(F, s) F(0, s), F(1, s), F(2, s), F(3, s), F(4, s), F(5, s), F(6, s), F(7, s), F(8, s), F(9, s),  \
                        F(10, s), F(11, s), F(12, s), F(13, s), F(14, s), F(15, s)
#define LANE_STEPS(X) X(1) X(2) X(4) X(8)
#define LANE_COUNT 16
#elif (VECTOR_BYTES == 64 && defined(REAL_F64)) || (VECTOR_BYTES == 32 && defined(REAL_F32))
#define FOR_LANES(F, s) F(0, s), F(1, s), F(2, s), F(3, s), F(4, s), F(5, s), F(6, s), F(7, s)
#define LANE_STEPS(X) X(1) X(2) X(4)
#define LANE_COUNT 8
#elif (VECTOR_BYTES == 32 && defined(REAL_F64)) || (VECTOR_BYTES == 16 && defined(REAL_F32))
#define FOR_LANES(F, s) F(0, s), F(1, s), F(2, s), F(3, s)
#define LANE_STEPS(X) X(1) X(2)
#define LANE_COUNT 4
#else
#define FOR_LANES(F, s) F(0, s), F(1, s)
#define LANE_STEPS(X) X(1)
#define LANE_COUNT 2
#endif
#if defined(__clang__)
#define SHUFFLE(x, y, F, s) __builtin_shufflevector(x, y, FOR_LANES(F, s))
#else
#define SHUFFLE(x, y, F, s) __builtin_shuffle(x, y, (VI){FOR_LANES(F, s)})
#endif

/* Rows i and i+s exchange the quarters of their squares of 2s by 2s that lie off the diagonal. */
#define LOWER(i, s) ((i) & (s) ? (i) - (s) + LANE_COUNT : (i))
#define UPPER(i, s) ((i) & (s) ? (i) + LANE_COUNT : (i) + (s))
#define EXCHANGE(s)                                                                                          \
    UNROLL for (int i = 0; i < LANE_COUNT; i++) if (!(i & s))                                                \
    {                                                                                                        \
        const V x = block[i], y = block[i + s];                                                              \
        block[i] = SHUFFLE(x, y, LOWER, s);                                                                  \
        block[i + s] = SHUFFLE(x, y, UPPER, s);                                                              \
    }

/* block[i][j] becomes block[j][i]. */
INLINE void transpose(V block[LANE_COUNT]) { LANE_STEPS(EXCHANGE) }

/* The sums of R rows by Q vectors, from number `vector` on (as in product.h: the blocks of the first units, then those of
 * the next), of whose units `m` exist. One row has one chain for each vector: four of them hide the latency of the FMA. */
INLINE void strip(const int R, const int Q, const product_t *p, fastrnn_size row, fastrnn_size vector,
                         fastrnn_size m)
{
    const fastrnn_size K = p->K, ld = p->ld_matrix, whole = m == LANES ? K / LANES * LANES : 0;
    const fastrnn_size to_m = p->sums ? LANES : m;
    const real *a = p->a + row * p->a_row, *w[Q];
    fastrnn_size column[Q];
    V sum[R * Q], block[LANE_COUNT];
    UNROLL for (int q = 0; q < Q; q++) {
        const fastrnn_size v = (vector + q) / p->blocks, b = (vector + q) % p->blocks;
        w[q] = p->matrix + (b * p->units + v * LANES) * ld;
        column[q] = v * p->stride + p->column[b];
        UNROLL for (int r = 0; r < R; r++)
            sum[r * Q + q] = p->from ? v_load(p->from + (row + r) * p->ld_from + column[q], to_m) : v_set(0);
    }
    fastrnn_size k = 0;
    for (; k < whole; k += LANES)
        UNROLL for (int q = 0; q < Q; q++) {
            UNROLL for (int i = 0; i < LANE_COUNT; i++) block[i] = v_load(w[q] + i * ld + k, LANES);
            transpose(block);
            UNROLL for (int i = 0; i < LANE_COUNT; i++)
                UNROLL for (int r = 0; r < R; r++)
                    sum[r * Q + q] = v_fma(v_set(a[r * p->a_row + k + i]), block[i], sum[r * Q + q]);
        }
    for (; k < K; k += LANES) /* incomplete blocks */
        for (int q = 0; q < Q; q++) {
            const fastrnn_size depth = least(K - k, LANES);
            for (int i = 0; i < LANE_COUNT; i++)
                block[i] = i < m ? v_load(w[q] + i * ld + k, depth) : v_set(0);
            transpose(block);
            for (int i = 0; i < depth; i++)
                UNROLL for (int r = 0; r < R; r++)
                    sum[r * Q + q] = v_fma(v_set(a[r * p->a_row + k + i]), block[i], sum[r * Q + q]);
        }
    UNROLL for (int q = 0; q < Q; q++)
        UNROLL for (int r = 0; r < R; r++) v_store(p->to + (row + r) * p->ld_to + column[q], to_m, sum[r * Q + q]);
}

#define DEFINE_STRIP(R, Q)                                                                                   \
    static void strip_##R##_##Q(const product_t *p, fastrnn_size row, fastrnn_size vector,          \
                                         fastrnn_size m)                                                     \
    {                                                                                                        \
        strip(R, Q, p, row, vector, m);                                                               \
    }
DEFINE_STRIP(1, 1)
DEFINE_STRIP(1, 2)
DEFINE_STRIP(1, 4)
DEFINE_STRIP(4, 1)

/* As run_product, of a product whose weights are p->matrix. */
static void run_unpacked(const product_t *p, fastrnn_size row, fastrnn_size row_end, fastrnn_size first,
                                fastrnn_size last, epilogue_t epilogue, const void *context)
{
    const fastrnn_size n = row_end - row, end = last * p->blocks;
    const fastrnn_size full = least(p->units / LANES, last) * p->blocks; /* vectors of which all units exist */
    if (fastrnn_stopping(p->me, 2 * n * (end - first * p->blocks) * LANES * p->K))
        return;
    for (fastrnn_size v = first * p->blocks, count; v < end; v += count) {
        const fastrnn_size m = v < full ? LANES : p->units % LANES;
        fastrnn_size r = row;
        count = v + 4 <= full ? 4 : v + 2 <= full ? 2 : 1;
        for (; r + 4 <= row_end; r += 4)
            for (fastrnn_size q = 0; q < count; q++)
                strip_4_1(p, r, v + q, m);
        for (; r < row_end; r++)
            if (count == 4)
                strip_1_4(p, r, v, m);
            else if (count == 2)
                strip_1_2(p, r, v, m);
            else
                strip_1_1(p, r, v, m);
    }
    if (epilogue)
        epilogue(context, row, n, first * LANES, least(last * LANES, p->units), p->to, p->ld_to);
}
