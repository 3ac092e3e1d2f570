/* Products: the register tile, the packing of its weights, and the loop that covers a matrix with tiles.
 *
 * Everything the engine multiplies goes through here: the input's projection, the recurrent product, and
 * all products of BPTT. A product has rows (of the batch), `units` columns in each of `blocks` blocks (the
 * gates of a cell), and depth K:
 *
 *     to[r, column[b] + u] = from[r, column[b] + u] + sum over k = 0 .. K-1 of a(r, k) w(k, b, u)
 *
 * w is packed in panels, each the K rows of one vector of columns, panel[k][lane]; the panels of all blocks
 * of one vector of units follow each other. A tile is R rows by Q panels, held in registers. Each number
 * of `to` is one chain of fused multiply-adds in the order of k, whatever R, Q and LANES are: that is why a
 * row has the same bits alone or in a batch, on any number of threads, and on any instruction set that has
 * the instruction.
 */

/* Accumulators of a tile: registers, less those for a column of one operand and an element of the other. */
#if defined(FASTRNN_X86_V4) || defined(FASTRNN_NEON) || defined(FASTRNN_WIDE)
#define TILE_VECTORS 24
#else
#define TILE_VECTORS 12
#endif

#define product_t NAME(product_)
#define tile_t NAME(tile_function_)
#define epilogue_t NAME(epilogue_)
#define panel_size NAME(panel_size_)
#define panel_count NAME(panel_count_)
#define panels_of_rows NAME(panels_of_rows_)
#define panels_of_columns NAME(panels_of_columns_)
#define run_product NAME(run_product_)

typedef struct product_t {
    const struct product_t *before; /* of the same units, done first wherever this one is done; or NULL */
    int continues;                  /* to the same sums as `before`: they stay in registers between the two */
    fastrnn_size K, units;
    int blocks;
    const real *panels; /* packed weights, already at the first k that is wanted */
    fastrnn_size panel_size;
    const real *a; /* a(r, k) = a[r*a_row + k*a_k], unless a_panel */
    fastrnn_size a_row, a_k;
    fastrnn_size a_panel; /* 0, or: rows of a are columns of panels of this size, from column a_first on */
    fastrnn_size a_first;
    const real *from;     /* NULL: zeros; ld_from = 0: the same for every row */
    fastrnn_size ld_from;
    real *to;
    fastrnn_size ld_to;
    fastrnn_size column[4];
} product_t;

/* R rows by Q panels, from a row and a panel on; the first panel is of block `block`, vector `vector`. */
typedef void (*tile_t)(const product_t *p, fastrnn_size row, fastrnn_size vector, int block);
/* What is done with rows [row, row+n) and units [unit, end) as soon as their sums stand. */
typedef void (*epilogue_t)(const void *context, fastrnn_size row, fastrnn_size n, fastrnn_size unit,
                           fastrnn_size end);

/* The register tile. R and Q are constants, so every loop but that over k unrolls. */
INLINE void NAME(tile_)(const int R, const int Q, const product_t *p, fastrnn_size row, fastrnn_size vector,
                        int block)
{
    const product_t *part = p->continues ? p->before : p;
    const fastrnn_size panel = vector * p->blocks + block;
    fastrnn_size at[Q], m[Q];
    for (int j = 0; j < Q; j++) {
        const fastrnn_size left = p->units - vector * LANES;
        at[j] = p->column[block] + vector * LANES;
        m[j] = left < LANES ? left : LANES;
        if (++block == p->blocks)
            block = 0, vector++;
    }
    const int full = m[Q - 1] == LANES;
    const fastrnn_size ld_from = part->ld_from;
    const real *from = part->from ? part->from + row * ld_from : 0;
    V sum[TILE_VECTORS];
    if (!from) {
        UNROLL for (int j = 0; j < R * Q; j++) sum[j] = v_set(0);
    } else if (full) {
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int j = 0; j < Q; j++) sum[r * Q + j] = v_load(from + r * ld_from + at[j], LANES);
    } else {
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int j = 0; j < Q; j++) sum[r * Q + j] = v_load(from + r * ld_from + at[j], m[j]);
    }
    for (;; part = p) {
        const fastrnn_size a_row = part->a_row, a_k = part->a_k, next = part->panel_size, from_a = row + part->a_first;
        const real *a = part->a + (part->a_panel ? from_a / LANES * part->a_panel + from_a % LANES : row * a_row);
        const real *w = part->panels + panel * next;
        /* The shorter side of the outer product stays in registers while the longer one passes through one. */
        for (fastrnn_size k = part->K; k > 0; k--) {
            V side[4];
            if (R <= 4 && R < Q) {
                UNROLL for (int r = 0; r < R; r++) side[r] = v_set(a[r * a_row]);
                UNROLL for (int j = 0; j < Q; j++) {
                    const V w_j = *(const V *)(w + j * next);
                    UNROLL for (int r = 0; r < R; r++) sum[r * Q + j] = v_fma(side[r], w_j, sum[r * Q + j]);
                }
            } else {
                UNROLL for (int j = 0; j < Q; j++) side[j] = *(const V *)(w + j * next);
                UNROLL for (int r = 0; r < R; r++) {
                    const V a_r = v_set(a[r * a_row]);
                    UNROLL for (int j = 0; j < Q; j++) sum[r * Q + j] = v_fma(a_r, side[j], sum[r * Q + j]);
                }
            }
            a += a_k;
            w += LANES;
        }
        if (part == p)
            break;
    }
    real *to = p->to + row * p->ld_to;
    if (full) {
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int j = 0; j < Q; j++) v_store(to + r * p->ld_to + at[j], LANES, sum[r * Q + j]);
    } else {
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int j = 0; j < Q; j++) v_store(to + r * p->ld_to + at[j], m[j], sum[r * Q + j]);
    }
}

#define DEFINE_TILE(R, Q)                                                                                    \
    static void NAME(tile_##R##_##Q##_)(const product_t *p, fastrnn_size row, fastrnn_size vector, int block)\
    {                                                                                                        \
        NAME(tile_)(R, Q, p, row, vector, block);                                                            \
    }

/* Every tile that is used, R*Q <= TILE_VECTORS; the most panels for a number of rows, MOST_ROWS at most;
 * and the rows of a tile when there are enough of them, by the number of blocks. One row wants some ten
 * chains at once to hide the latency of the multiply-add; many rows want an outer product near a square. */
#if TILE_VECTORS == 24
#define MOST_ROWS 8
#define MOST_PANELS 12
#define TILES(X)                                                                                             \
    X(1, 1) X(1, 2) X(1, 3) X(1, 4) X(1, 5) X(1, 6) X(1, 7) X(1, 8) X(1, 9) X(1, 10) X(1, 11) X(1, 12)       \
    X(2, 1) X(2, 2) X(2, 3) X(2, 4) X(2, 5) X(2, 6) X(2, 7) X(2, 8) X(2, 9) X(2, 10) X(2, 11) X(2, 12)       \
    X(3, 1) X(3, 2) X(3, 3) X(3, 4) X(3, 5) X(3, 6) X(3, 7) X(3, 8) X(4, 1) X(4, 2) X(4, 3) X(4, 4) X(4, 5)  \
    X(4, 6) X(5, 1) X(5, 2) X(5, 3) X(5, 4) X(6, 1) X(6, 2) X(6, 3) X(6, 4) X(7, 1) X(7, 2) X(7, 3)          \
    X(8, 1) X(8, 2) X(8, 3)
static const unsigned char NAME(widest_)[MOST_ROWS + 1] = {0, 12, 12, 8, 6, 4, 4, 3, 3};
static const unsigned char NAME(tallest_)[5] = {0, 6, 6, 8, 6};
#define COLUMN_ROWS (LANES < 8 ? LANES : 8) /* of a tile whose rows are columns of panels: none crosses two */
#else
#define MOST_ROWS 6
#define MOST_PANELS 12
#define TILES(X)                                                                                             \
    X(1, 1) X(1, 2) X(1, 3) X(1, 4) X(1, 5) X(1, 6) X(1, 7) X(1, 8) X(1, 9) X(1, 10) X(1, 11) X(1, 12)       \
    X(2, 1) X(2, 2) X(2, 3) X(2, 4) X(2, 5) X(2, 6) X(3, 1) X(3, 2) X(3, 3) X(3, 4) X(4, 1) X(4, 2) X(4, 3)  \
    X(5, 1) X(5, 2) X(6, 1) X(6, 2)
static const unsigned char NAME(widest_)[MOST_ROWS + 1] = {0, 12, 6, 4, 3, 2, 2};
static const unsigned char NAME(tallest_)[5] = {0, 6, 6, 4, 6};
#define COLUMN_ROWS (LANES < 4 ? LANES : 4)
#endif

TILES(DEFINE_TILE)
#define TILE_ENTRY(R, Q) [R - 1][Q - 1] = NAME(tile_##R##_##Q##_),
static const tile_t NAME(tiles_)[MOST_ROWS][MOST_PANELS] = {TILES(TILE_ENTRY)};

/* Panels for a matrix with that many units (per block), and the numbers in each: K vectors, and a cache
 * line so that panels that are read side by side do not fall into the same sets of the cache. */
INLINE fastrnn_size panel_count(fastrnn_size units) { return (units + LANES - 1) / LANES; }
INLINE fastrnn_size panel_size(fastrnn_size K) { return K * LANES + 64 / (fastrnn_size)sizeof(real); }

/* Rows that share a pass over the panels: their part of `a` stays in the second-level cache meanwhile. */
#define PASS_BYTES (256 * 1024)

/* All tiles of rows [row, row_end) by vectors of units [first, last), `wide` panels or less in each. */
INLINE void NAME(cover_)(const product_t *p, fastrnn_size row, fastrnn_size row_end, fastrnn_size tiles,
                         fastrnn_size first, fastrnn_size last, fastrnn_size wide)
{
    const fastrnn_size panels = (last - first) * p->blocks;
    const fastrnn_size high = tiles == 1 ? row_end - row : (row_end - row) / tiles;
    fastrnn_size higher = row_end - row - high * tiles; /* tiles with a row more */
    for (fastrnn_size next; row < row_end; row = next, higher--) {
        next = row + high + (higher > 0);
        if (p->a_panel) /* no tile crosses a panel of `a` */
            next = least(((row + p->a_first) / COLUMN_ROWS + 1) * COLUMN_ROWS - p->a_first, row_end);
        for (fastrnn_size j = 0; j < panels; j += wide)
            NAME(tiles_)[next - row - 1][least(panels - j, wide) - 1](p, row, first + (j ? j / p->blocks : 0),
                                                                      (int)(j ? j % p->blocks : 0));
    }
}

/* Rows [row, row_end) by vectors of units [vector, vector_end). */
static void run_product(const product_t *p, fastrnn_size row, fastrnn_size row_end, fastrnn_size vector,
                        fastrnn_size vector_end, epilogue_t epilogue, const void *context)
{
    if (row >= row_end || vector >= vector_end)
        return;
    const fastrnn_size rows = row_end - row, vectors = vector_end - vector;
    const fastrnn_size tall = p->a_panel ? COLUMN_ROWS : NAME(tallest_)[p->blocks];
    /* What is one needs no division: a step of a small layer is over in a few hundred cycles. */
    const fastrnn_size bytes = p->a_panel ? 0 : rows * p->K * (fastrnn_size)sizeof(real);
    const fastrnn_size passes = bytes <= PASS_BYTES ? 1 : least(bytes / PASS_BYTES + 1, rows / (4 * tall) + 1);
    for (fastrnn_size pass = 0; pass < passes; pass++) {
        const fastrnn_size top = passes == 1 ? row : row + rows * pass / passes;
        const fastrnn_size bottom = passes == 1 ? row_end : row + rows * (pass + 1) / passes;
        const fastrnn_size n = bottom - top, tiles = n <= tall ? 1 : (n + tall - 1) / tall;
        const fastrnn_size wide = NAME(widest_)[tiles == 1 ? n : p->a_panel ? tall : (n + tiles - 1) / tiles];
        /* A group is what a tile takes, but whole units: the epilogue needs all of their blocks. */
        const fastrnn_size most = p->blocks == 1 ? wide : greatest(wide / p->blocks, 1);
        const fastrnn_size groups = vectors <= most ? 1 : (vectors + most - 1) / most;
        for (fastrnn_size group = 0; group < groups; group++) {
            const fastrnn_size first = groups == 1 ? vector : vector + vectors * group / groups;
            const fastrnn_size last = groups == 1 ? vector_end : vector + vectors * (group + 1) / groups;
            if (p->before && !p->continues)
                NAME(cover_)(p->before, top, bottom, tiles, first, last, wide);
            NAME(cover_)(p, top, bottom, tiles, first, last, wide);
            if (epilogue)
                epilogue(context, top, n, first * LANES, least(last * LANES, p->units));
        }
    }
}

/* Panels of weights as PyTorch has them, w (blocks*units, K), for a product with their transpose. */
static void panels_of_rows(int blocks, fastrnn_size units, fastrnn_size K, const real *w, fastrnn_size ld,
                      real *panels)
{
    for (fastrnn_size unit = 0; unit < units; unit += LANES) {
        const fastrnn_size m = units - unit < LANES ? units - unit : LANES;
        for (int b = 0; b < blocks; b++, panels += panel_size(K)) {
            const real *rows = w + (b * units + unit) * ld;
            for (fastrnn_size k = 0; k < K; k++)
                for (fastrnn_size lane = 0; lane < LANES; lane++)
                    panels[k * LANES + lane] = lane < m ? rows[lane * ld + k] : 0;
        }
    }
}

/* Panels of n rows of a matrix as it stands, w (n, units), as its rows k = first .. first+n-1 of the K in
 * each panel; vectors [vector, vector_end). */
static void panels_of_columns(fastrnn_size units, fastrnn_size K, fastrnn_size first, fastrnn_size n, const real *w,
                         fastrnn_size ld, real *panels, fastrnn_size vector, fastrnn_size vector_end)
{
    for (; vector < vector_end; vector++) {
        const fastrnn_size left = units - vector * LANES, m = left < LANES ? left : LANES;
        const real *from = w + vector * LANES;
        real *to = panels + vector * panel_size(K) + first * LANES;
        for (fastrnn_size k = 0; k < n; k++)
            *(V *)(to + k * LANES) = v_load(from + k * ld, m);
    }
}
