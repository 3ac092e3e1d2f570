/* Products of a few rows with weights as PyTorch has them, row-major (blocks*units, K).
 *
 * Packing reads and writes all of the weights, which is much more than one step of one row does. Here the weights of LANES
 * units are read where they lie, PIECE steps of k at a time, and transposed in registers: then lane u of vector k is what
 * unit u multiplies a(r, k) with, just as in a panel. Each sum is the same chain in the order of k as in the tile of
 * product.h, so the bits are the same.
 *
 * Shuffles are what this costs. With vectors of 64 bytes a piece is a cache line of every row, so that each is read once.
 * With smaller ones a piece is 128 bits: vectors are filled with pieces of rows that lie QUARTER apart, which takes loads,
 * and shuffles only exchange numbers within 128 bits. */
#define QUARTER ((int)(16 / sizeof(real))) /* numbers in 128 bits */
#if VECTOR_BYTES == 64
#define PIECE LANES
#else
#define PIECE ((fastrnn_size)QUARTER)
#endif
#define MOST_STRIPS 4
#define MOST_STRIP_ROWS 4
#define LINE ((fastrnn_size)(64 / sizeof(real)))

/* Numbers of x and of y, in each 128 bits: those of the first half of either in turn, or of the second; or the first halves
 * of both, or the second. */
#if VECTOR_BYTES == 64 && defined(REAL_F32)
#define ALL_LANES(F) \
    F(0), F(1), F(2), F(3), F(4), F(5), F(6), F(7), F(8), F(9), F(10), F(11), F(12), F(13), F(14), F(15)
#define LANE_COUNT 16
#elif (VECTOR_BYTES == 64 && defined(REAL_F64)) || (VECTOR_BYTES == 32 && defined(REAL_F32))
#define ALL_LANES(F) F(0), F(1), F(2), F(3), F(4), F(5), F(6), F(7)
#define LANE_COUNT 8
#elif (VECTOR_BYTES == 32 && defined(REAL_F64)) || (VECTOR_BYTES == 16 && defined(REAL_F32))
#define ALL_LANES(F) F(0), F(1), F(2), F(3)
#define LANE_COUNT 4
#else
#define ALL_LANES(F) F(0), F(1)
#define LANE_COUNT 2
#endif
#if defined(__clang__)
#define SHUFFLE(x, y, F) __builtin_shufflevector(x, y, ALL_LANES(F))
#else
#define SHUFFLE(x, y, F) __builtin_shuffle(x, y, (VI){ALL_LANES(F)})
#endif
#if defined(REAL_F32)
#define TURNS_LOW(i) ((i) / 4 * 4 + (i) % 4 / 2 + (i) % 2 * LANE_COUNT)
#define TURNS_HIGH(i) (TURNS_LOW(i) + 2)
#define HALVES_LOW(i) ((i) % 4 < 2 ? (i) : (i)-2 + LANE_COUNT)
#define HALVES_HIGH(i) (HALVES_LOW(i) + 2)
#else
#define TURNS_LOW(i) ((i) / 2 * 2 + (i) % 2 * LANE_COUNT)
#define TURNS_HIGH(i) (TURNS_LOW(i) + 1)
#endif
/* Of vectors of four times 128 bits: the first halves of x and y, the second halves, every other 128 bits, the others. */
#define FRONT(i) ((i) < 2 * QUARTER ? (i) : (i)-2 * QUARTER + LANE_COUNT)
#define BACK(i) (FRONT(i) + 2 * QUARTER)
#define EVEN(i) ((i) / QUARTER % 2 * 2 * QUARTER + (i) % QUARTER + (i) / QUARTER / 2 * LANE_COUNT)
#define ODD(i) (EVEN(i) + QUARTER)
/* gcc makes two or three instructions of what is one. */
#if defined(FASTRNN_X86_V4) && defined(REAL_F32)
#define SHUFFLE_QUARTERS(x, y, control, F) ((V)_mm512_shuffle_f32x4((__m512)(x), (__m512)(y), control))
#elif defined(FASTRNN_X86_V4)
#define SHUFFLE_QUARTERS(x, y, control, F) ((V)_mm512_shuffle_f64x2((__m512d)(x), (__m512d)(y), control))
#else
#define SHUFFLE_QUARTERS(x, y, control, F) SHUFFLE(x, y, F)
#endif

/* clang-format off */
/* Transpose QUARTER rows within each 128 bits: out[j] has number j of every row there. */
INLINE void transpose_quarters(const V x[], V out[])
{
#if defined(REAL_F32)
    const V a = SHUFFLE(x[0], x[1], TURNS_LOW), b = SHUFFLE(x[0], x[1], TURNS_HIGH);
    const V c = SHUFFLE(x[2], x[3], TURNS_LOW), d = SHUFFLE(x[2], x[3], TURNS_HIGH);
    out[0] = SHUFFLE(a, c, HALVES_LOW), out[1] = SHUFFLE(a, c, HALVES_HIGH);
    out[2] = SHUFFLE(b, d, HALVES_LOW), out[3] = SHUFFLE(b, d, HALVES_HIGH);
#else
    out[0] = SHUFFLE(x[0], x[1], TURNS_LOW), out[1] = SHUFFLE(x[0], x[1], TURNS_HIGH);
#endif
}

/* Weights of LANES rows for k, k+1, ... k+PIECE-1: out[j] has those of k+j in the order of rows. Only `m` rows and `depth`
 * columns exist; the others are zeros. */
#if VECTOR_BYTES == 64
INLINE void load_transposed(const real *w, fastrnn_size ld, fastrnn_size m, fastrnn_size depth, V out[PIECE])
{
    V quarters[4][QUARTER];
    const real *rows = w;
    UNROLL for (int g = 0; g < 4; g++, rows += QUARTER * ld) {
        V x[QUARTER];
        __asm__("" : "+r"(rows)); /* else gcc keeps sixteen addresses, most of them in memory */
        UNROLL for (int i = 0; i < QUARTER; i++)
            x[i] = g * QUARTER + i < m ? v_load(rows + i * ld, depth) : v_set(0);
        transpose_quarters(x, quarters[g]);
    }
    UNROLL for (int j = 0; j < QUARTER; j++) {
        const V a = SHUFFLE_QUARTERS(quarters[0][j], quarters[1][j], 0x44, FRONT);
        const V b = SHUFFLE_QUARTERS(quarters[0][j], quarters[1][j], 0xee, BACK);
        const V c = SHUFFLE_QUARTERS(quarters[2][j], quarters[3][j], 0x44, FRONT);
        const V d = SHUFFLE_QUARTERS(quarters[2][j], quarters[3][j], 0xee, BACK);
        out[j] = SHUFFLE_QUARTERS(a, c, 0x88, EVEN), out[QUARTER + j] = SHUFFLE_QUARTERS(a, c, 0xdd, ODD);
        out[2 * QUARTER + j] = SHUFFLE_QUARTERS(b, d, 0x88, EVEN);
        out[3 * QUARTER + j] = SHUFFLE_QUARTERS(b, d, 0xdd, ODD);
    }
}
#else
INLINE void load_transposed(const real *w, fastrnn_size ld, fastrnn_size m, fastrnn_size depth, V out[PIECE])
{
    real copy[LANE_COUNT * QUARTER] = {0};
    V x[QUARTER];
    if (m < LANES || depth < PIECE) {
        for (fastrnn_size i = 0; i < m; i++)
            for (fastrnn_size j = 0; j < depth; j++)
                copy[i * PIECE + j] = w[i * ld + j];
        w = copy, ld = PIECE;
    }
    UNROLL for (int i = 0; i < QUARTER; i++) {
        const real *from = w + i * ld; /* 128 bits of row i, of row i + QUARTER, ... */
#if defined(FASTRNN_X86_V3) && defined(REAL_F32)
        x[i] = (V)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)), _mm_loadu_ps(from + 4 * ld), 1);
#elif defined(FASTRNN_X86_V3)
        x[i] = (V)_mm256_insertf128_pd(_mm256_castpd128_pd256(_mm_loadu_pd(from)), _mm_loadu_pd(from + 2 * ld), 1);
#else
        UNROLL for (int g = 0; g < LANES / QUARTER; g++)
            memcpy((real *)&x[i] + g * QUARTER, from + g * QUARTER * ld, 16);
#endif
    }
    transpose_quarters(x, out);
}
#endif

/* sum[r] += a(r, k) w(k) for the first `depth` of PIECE steps from k on. */
INLINE void add_piece(const int R, fastrnn_size m, fastrnn_size depth, const real *w, fastrnn_size ld, const real *a,
                      fastrnn_size a_row, V sum[])
{
    V column[PIECE];
    load_transposed(w, ld, m, depth, column);
    UNROLL for (int j = 0; j < depth; j++)
        UNROLL for (int r = 0; r < R; r++) sum[r] = v_fma(v_set(a[r * a_row + j]), column[j], sum[r]);
}

/* The sums of R rows by Q vectors, from number `vector` on (as in product.h: the blocks of the first units, then those of
 * the next), of whose units `m` exist. One row has one chain for each vector. `by_line`: a cache line of every row is used
 * up before the next strip. */
INLINE void strip(const int R, const int Q, const int by_line, const product_t *p, fastrnn_size row,
                  fastrnn_size vector, fastrnn_size m)
{
    const fastrnn_size K = p->K, ld = p->ld_matrix, a_row = p->a_row, to_m = p->columns->whole ? LANES : m;
    const fastrnn_size bytes = ld * (fastrnn_size)sizeof(real), full = m == LANES ? K : 0;
    const int far = p->units * p->columns->blocks * K * (fastrnn_size)sizeof(real) > FAR_WEIGHTS;
    const real *a = p->a + row * a_row, *w[MOST_STRIPS];
    fastrnn_size column[MOST_STRIPS];
    V sum[MOST_STRIPS][MOST_STRIP_ROWS]; /* of constant size, or they would not be registers */
    UNROLL for (int q = 0; q < Q; q++) {
        const fastrnn_size v = quotient(vector + q, p->columns->blocks), b = vector + q - v * p->columns->blocks;
        w[q] = p->matrix + (b * p->units + v * LANES) * ld;
        column[q] = v * p->columns->stride + p->columns->column[b];
        UNROLL for (int r = 0; r < R; r++)
            sum[q][r] = p->from ? v_load(p->from + (row + r) * p->ld_from + column[q], to_m) : v_set(0);
    }
    fastrnn_size k = 0, head = 0; /* up to the first line: from there on, a piece lies in one line of each row */
    if (full >= 2 * LINE && bytes % 64 == 0)
        head = (fastrnn_size)(-(uintptr_t)w[0] % 64 / sizeof(real));
    for (fastrnn_size n; k < head; k += n) {
        n = least(head - k, PIECE);
        UNROLL for (int q = 0; q < Q; q++) add_piece(R, LANES, n, w[q] + k, ld, a + k, a_row, sum[q]);
    }
    for (; k + LINE <= full; k += LINE) {
        if (far) /* the same part of the weights of the next units, in the order of memory */
            UNROLL for (int q = 0; q < Q; q++)
                UNROLL for (int i = 0; i < LANES; i++)
                    __builtin_prefetch(w[q] + LANES * ld + k * LANES + i * LINE, 0, 2);
        if (by_line)
            UNROLL for (int q = 0; q < Q; q++)
                UNROLL for (fastrnn_size j = 0; j < LINE; j += PIECE)
                    add_piece(R, LANES, PIECE, w[q] + k + j, ld, a + k + j, a_row, sum[q]);
        else
            UNROLL for (fastrnn_size j = 0; j < LINE; j += PIECE)
                UNROLL for (int q = 0; q < Q; q++)
                    add_piece(R, LANES, PIECE, w[q] + k + j, ld, a + k + j, a_row, sum[q]);
    }
    for (; k + PIECE <= full; k += PIECE)
        UNROLL for (int q = 0; q < Q; q++) add_piece(R, LANES, PIECE, w[q] + k, ld, a + k, a_row, sum[q]);
    for (; k < K; k += PIECE)
        UNROLL for (int q = 0; q < Q; q++)
            add_piece(R, m, least(K - k, PIECE), w[q] + k, ld, a + k, a_row, sum[q]);
    UNROLL for (int q = 0; q < Q; q++)
        UNROLL for (int r = 0; r < R; r++) v_store(p->to + (row + r) * p->ld_to + column[q], to_m, sum[q][r]);
}

/* clang-format on */

/* Strips of one row at a time, at most: two or four chains overlap, and take turns with every piece. Where rows lie a power
 * of two apart, and the lines of the strips do not fit into their sets of L1, half as many are faster, and each line is
 * used up before the next strip (Zen 4, H = 512: 160 us instead of 198 with AVX-512, 200 instead of 257 with AVX2). */
#define CONFLICT_BYTES (VECTOR_BYTES == 64 ? 16384 : 32768)
#define DEFINE_STRIP(NAME, Q, BY_LINE)                                                          \
    static void NAME(const product_t *p, fastrnn_size row, fastrnn_size vector, fastrnn_size m) \
    {                                                                                           \
        strip(1, Q, BY_LINE, p, row, vector, m);                                                \
    }
typedef void (*strip_t)(const product_t *, fastrnn_size, fastrnn_size, fastrnn_size);
DEFINE_STRIP(strip_1_1, 1, 0)
DEFINE_STRIP(strip_1_2, 2, 0)
#if VECTOR_BYTES == 64
enum { STRIPS = 2, STRIPS_BY_LINE = 1 };
static const strip_t strips[2][3] = {{strip_1_1, strip_1_2}, {strip_1_1}};
#else
DEFINE_STRIP(strip_1_4, 4, 0)
DEFINE_STRIP(strip_1_1_by_line, 1, 1)
DEFINE_STRIP(strip_1_2_by_line, 2, 1)
enum { STRIPS = 4, STRIPS_BY_LINE = 2 };
static const strip_t strips[2][3] = {{strip_1_1, strip_1_2, strip_1_4}, {strip_1_1_by_line, strip_1_2_by_line}};
#endif
static void strip_4_1(const product_t *p, fastrnn_size row, fastrnn_size vector, fastrnn_size m)
{
    strip(4, 1, 1, p, row, vector, m);
}

/* As run_product, of a product whose weights are p->matrix. */
static void run_unpacked(const product_t *p, fastrnn_size row, fastrnn_size row_end, fastrnn_size first,
                         fastrnn_size last, epilogue_t epilogue, const void *context)
{
    const fastrnn_size blocks = p->columns->blocks, end = last * blocks;
    const fastrnn_size stride = p->ld_matrix * (fastrnn_size)sizeof(real);
    const fastrnn_size full = least(p->units / LANES, last) * blocks; /* vectors of which all units exist */
    const int by_line = LANES * STRIPS * (stride & -stride) > CONFLICT_BYTES;
    const fastrnn_size most = by_line ? STRIPS_BY_LINE : STRIPS;
    for (fastrnn_size v = first * blocks, count; v < end; v += count) {
        const fastrnn_size m = v < full ? LANES : p->units % LANES;
        fastrnn_size r = row;
        count = v + most <= full ? most : v + 2 <= full ? least(most, 2) : 1;
        for (; r + 4 <= row_end; r += 4)
            for (fastrnn_size q = 0; q < count; q++)
                strip_4_1(p, r, v + q, m);
        for (; r < row_end; r++)
            strips[by_line][count / 2](p, r, v, m);
    }
    if (epilogue)
        epilogue(context, row, row_end - row, first * LANES, least(last * LANES, p->units), p->to, p->ld_to);
}
