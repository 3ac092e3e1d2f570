/* Products: the register tile, the packing of its weights, and the loop that covers a matrix with tiles.
 *
 * Everything the engine multiplies goes through here: the projection of the inputs, the recurrent product, and all
 * products of BPTT. A product has rows (of the batch), `units` columns in each of `blocks` blocks (the gates of a cell),
 * and depth K:
 *
 *     to[r, b, u] = from[r, b, u] + sum over k = 0 .. K-1 of a(r, k) w(k, b, u)
 *
 * Columns are taken in vectors of LANES: those of all blocks of the first LANES units, then those of the next. w is
 * packed in panels of two to four such vectors, panel[k][vector][lane], so a tile reads memory as few streams, however
 * many vectors it has. A tile is R rows by Q vectors, held in registers. Each number of `to` is one chain of fused
 * multiply-adds in the order of k, whatever R, Q and LANES are. So a row has the same bits alone or in a batch, on any
 * number of threads, and on any instruction set that has the instruction.
 */

/* Accumulators of a tile: registers, less those for a column of one operand and an element of the other. */
#if defined(FASTRNN_X86_V4) || defined(FASTRNN_NEON) || defined(FASTRNN_WIDE)
#define TILE_VECTORS 24
#else
#define TILE_VECTORS 12
#endif

/* Vectors of a tile, and those before it of the same units: a tile that begins with the last of 8 blocks has 11 more. */
#define MOST_COLUMNS 20

/* The columns of a product. Vector v, counted from block 0 of the first units, is at column[v] in `to` and `from`; the
 * same block of the units of vector u is u*stride further on. */
typedef struct {
    int blocks, width; /* vectors of a panel, 2 to 4 */
    int whole;         /* rows of `to` have room for whole vectors, whatever `units` is; else there is one block */
    fastrnn_size stride, column[MOST_COLUMNS];
} columns_t;

/* Vectors of a panel of weights, as the tile of many rows has them. Columns of a matrix that are multiplied with those of
 * another are in panels of three. */
#define WEIGHT_WIDTH(BLOCKS) ((BLOCKS) == 3 ? 3 : TILE_VECTORS / 6)
#define COLUMN_WIDTH 3

/* clang-format off */
/* `columns_t` of B blocks. Block b is number b of the A vectors of a unit, but the last block is number LAST. */
#define COLUMN(v, B, A, LAST) (((v) / (B) * (A) + ((v) % (B) + 1 < (B) ? (v) % (B) : (LAST))) * LANES)
#define FOUR_COLUMNS(v, B, A, LAST)                                                                          \
    COLUMN(v, B, A, LAST), COLUMN(v + 1, B, A, LAST), COLUMN(v + 2, B, A, LAST), COLUMN(v + 3, B, A, LAST)
#define COLUMNS(B, A, LAST, WIDTH, WHOLE)                                                                    \
    {                                                                                                        \
        B, WIDTH, WHOLE, (A) * LANES,                                                                        \
        {                                                                                                    \
            FOUR_COLUMNS(0, B, A, LAST), FOUR_COLUMNS(4, B, A, LAST), FOUR_COLUMNS(8, B, A, LAST),           \
                FOUR_COLUMNS(12, B, A, LAST), FOUR_COLUMNS(16, B, A, LAST)                                   \
        }                                                                                                    \
    }
/* clang-format on */

/* Plain matrices, with w in panels of weights, and in panels of columns. */
static const columns_t plain_columns = COLUMNS(1, 1, 0, WEIGHT_WIDTH(1), 0);
static const columns_t column_panels = COLUMNS(1, 1, 0, COLUMN_WIDTH, 0);

/* How rows and vectors of units are divided. It follows from their numbers and from K, columns, before, compact, a_panel
 * and ld_to of the product, which stay as they are. So the steps of a run that have as many rows share it. */
typedef struct {
    fastrnn_size rows, from, to; /* what it is for: rows, and vectors of units */
    fastrnn_size sweeps;         /* over the panels: the rows are divided among them */
    /* A group of units is covered by tiles, and then the cell has it. Its borders are multiples of a grain. */
    fastrnn_size grain, grains, groups;
    fastrnn_size ld_to; /* as a group sees it */
    int64_t flops;      /* of a group in a sweep, at most */
    int ahead;          /* the next panel is prefetched */
    int undivided;      /* a few rows: one tile is as high, and all units are one group */
} schedule_t;

typedef struct product_t {
    const columns_t *columns;
    fastrnn_size K, units;
    struct product_t *before; /* of the same units, done first wherever this one is done; or NULL */
    int continues;            /* the sums of `before`, which stay in registers, except where the columns differ */
    int compact;              /* `to` is used again for every group of units, so that it stays in L1 */
    int downward; /* from the last units to the first: as every second step does, so that it begins with the weights that
                   * the one before read last, which a cache still holds */
    const real *panels; /* NULL: `matrix` has the weights themselves, (blocks*units, K) with ld_matrix (unpacked.h) */
    fastrnn_size depth, first_k; /* rows of a panel, and the first that is used; depth is K where all are */
    const real *matrix;
    fastrnn_size ld_matrix;
    const real *a; /* a(r, k) = a[r*a_row + k*a_k], unless a_panel */
    fastrnn_size a_row, a_k;
    fastrnn_size a_panel; /* 0, or: rows of a are columns of panels of this size, from column a_first on */
    fastrnn_size a_first;
    const real *from; /* NULL: zeros; ld_from = 0: the same for every row */
    fastrnn_size ld_from;
    real *to;
    fastrnn_size ld_to;
    schedule_t schedule; /* of the last use, if rows is not 0 */
} product_t;

/* The rows that share one sweep over the panels, and where the sums of the group of units at hand go. */
typedef struct {
    real *to; /* of the product, or, if it is compact, as if the first units were those of the group */
    fastrnn_size ld_to;
    fastrnn_size first_row, rows;
    fastrnn_size ahead; /* 1 or -1: the next panel, up or down, is fetched into L2, a part with each tile; or 0 */
} sweep_t;

/* R rows by Q vectors: from a row on, and from block `block` of the units of `vector` on. A tile of more than one panel
 * begins with a whole one. */
typedef void (*tile_t)(const product_t *p, const sweep_t *sweep, fastrnn_size row, fastrnn_size vector,
                       fastrnn_size block);
/* What is done with rows [row, row+n) and units [unit, end) as soon as their sums stand; `to` and its ld as if it
 * were not compact. */
typedef void (*epilogue_t)(const void *context, fastrnn_size row, fastrnn_size n, fastrnn_size unit, fastrnn_size end,
                           real *to, fastrnn_size ld);

/* a/b of numbers below 2^32. A step of a small layer has a dozen divisions, and many processors divide 64 bits more
 * slowly than 32. */
INLINE fastrnn_size quotient(fastrnn_size a, fastrnn_size b) { return (uint32_t)a / (uint32_t)b; }

/* Vectors of a matrix with that many units (per block). */
INLINE fastrnn_size vector_count(fastrnn_size units) { return (units + LANES - 1) / LANES; }

/* Numbers in a panel: K vectors of each, and a cache line so that panels that are read side by side do not
 * fall into the same sets of the cache. */
INLINE fastrnn_size panel_size(fastrnn_size K, int width)
{
    return width * K * LANES + 64 / (fastrnn_size)sizeof(real);
}

/* Numbers in the panels of a matrix, of any width. */
static fastrnn_size packed_size(int blocks, fastrnn_size units, fastrnn_size K)
{
    return (blocks * vector_count(units) + 3) * panel_size(K, 1);
}

/* clang-format off */
/* The register tile. R, Q and the width of panels are constants, so every loop but that over k unrolls. */
INLINE void tile(const int R, const int Q, const int width, const product_t *p, const sweep_t *sweep, fastrnn_size row,
                 fastrnn_size vector, fastrnn_size block)
{
    const fastrnn_size panel = quotient(vector * p->columns->blocks + block, width);
    const fastrnn_size place = vector * p->columns->blocks + block - panel * width;
    const product_t *part = p->continues ? p->before : p;
    /* Only the last vector can be incomplete. */
    const fastrnn_size m = p->columns->whole ? LANES : least(p->units - (vector + Q - 1) * LANES, LANES);
    const fastrnn_size first = vector * p->columns->stride;
    fastrnn_size column[Q]; /* read now: for all that the compiler knows, a store might change it */
    UNROLL for (int j = 0; j < Q; j++) column[j] = first + part->columns->column[block + j];
    V sum[TILE_VECTORS];
    if (part->from) {
        const fastrnn_size ld = part->ld_from;
        const real *from = part->from + row * ld;
        UNROLL for (int r = 0; r < R; r++, from += ld) {
            UNROLL for (int j = 0; j + 1 < Q; j++) sum[r * Q + j] = v_load(from + column[j], LANES);
            sum[r * Q + Q - 1] = v_load(from + column[Q - 1], m);
        }
    } else {
        UNROLL for (int j = 0; j < R * Q; j++) sum[j] = v_set(0);
    }
    for (;; part = p) {
        const fastrnn_size a_row = part->a_row, a_k = part->a_k, next = panel_size(part->depth, width);
        const fastrnn_size from_a = row + part->a_first;
        const real *a =
            part->a + (part->a_panel ? from_a / LANES * part->a_panel + from_a % LANES : row * a_row);
        const real *w = part->panels + panel * next + (part->first_k * width + place) * LANES;
        const char *fetch = (const char *)w;
        fastrnn_size fetch_step = 0;
        if (R >= 4 && Q == width && sweep->ahead) {
            const fastrnn_size bytes = width * VECTOR_BYTES; /* for each k */
            fetch += sweep->ahead * next * (fastrnn_size)sizeof(real);
            fetch += (row - sweep->first_row) * bytes * part->K / sweep->rows;
            fetch_step = (R * bytes + sweep->rows - 1) / sweep->rows;
        }
#define W_VECTOR(j) (*(const V *)(w + (j) / width * next + (j) % width * LANES))
        /* The shorter side of the outer product stays in registers while the longer one passes through one. */
        for (fastrnn_size k = part->K; k > 0; k--) {
            V side[4];
            if (R <= 4 && R < Q) {
                UNROLL for (int r = 0; r < R; r++) side[r] = v_set(a[r * a_row]);
                UNROLL for (int j = 0; j < Q; j++) {
                    V w_j = W_VECTOR(j);
                    if (R > 1)
                        V_IN_REGISTER(w_j);
                    UNROLL for (int r = 0; r < R; r++) sum[r * Q + j] = v_fma(side[r], w_j, sum[r * Q + j]);
                }
            } else {
                UNROLL for (int j = 0; j < Q; j++) side[j] = W_VECTOR(j);
                UNROLL for (int r = 0; r < R; r++) {
                    const V a_r = v_set(a[r * a_row]);
                    UNROLL for (int j = 0; j < Q; j++) sum[r * Q + j] = v_fma(a_r, side[j], sum[r * Q + j]);
                }
            }
            if (R >= 4 && Q == width) { /* the loop has room for it, and none for a branch */
                __builtin_prefetch(fetch, 0, 2);
                fetch += fetch_step;
            }
            a += a_k;
            w += width * LANES;
        }
#undef W_VECTOR
        if (part == p)
            break;
        UNROLL for (int j = 0; j < Q; j++) {
            const fastrnn_size next_column = first + p->columns->column[block + j];
            if (next_column == column[j])
                continue;
            const fastrnn_size ld = sweep->ld_to, ld_next = p->ld_from; /* these sums end here, and others begin */
            real *to = sweep->to + row * ld + column[j];
            const real *from = p->from + row * ld_next + next_column;
            UNROLL for (int r = 0; r < R; r++, to += ld, from += ld_next) {
                v_store(to, LANES, sum[r * Q + j]);
                sum[r * Q + j] = v_load(from, LANES);
            }
            column[j] = next_column;
        }
    }
    const fastrnn_size ld = sweep->ld_to;
    real *to = sweep->to + row * ld;
    UNROLL for (int r = 0; r < R; r++, to += ld) {
        UNROLL for (int j = 0; j + 1 < Q; j++) v_store(to + column[j], LANES, sum[r * Q + j]);
        v_store(to + column[Q - 1], m, sum[r * Q + Q - 1]);
    }
}

/* clang-format on */

#define DEFINE_TILE(R, Q, W)                                                                                          \
    static void tile_##R##_##Q##_##W(const product_t *p, const sweep_t *sweep, fastrnn_size row, fastrnn_size vector, \
                                     fastrnn_size block)                                                              \
    {                                                                                                                 \
        tile(R, Q, W, p, sweep, row, vector, block);                                                                  \
    }

/* clang-format off */
/* Every tile that is used, (R, Q, width of panels), R*Q <= TILE_VECTORS. Then, for each width: the most
 * vectors for a number of rows (0: such tiles are not used), and the rows of a tile if there are even more.
 * One row wants some ten chains at once to hide the latency of the multiply-add; many rows want an outer
 * product near a square. */
#if TILE_VECTORS == 24
#define FIRST_WIDTH 3
#define MOST_ROWS 8
#define MOST_VECTORS 12
#define TILES(X)                                                                                             \
    X(1, 1, 4) X(1, 2, 4) X(1, 3, 4) X(1, 4, 4) X(1, 5, 4) X(1, 6, 4) X(1, 7, 4) X(1, 8, 4) X(1, 9, 4)       \
    X(1, 10, 4) X(1, 11, 4) X(1, 12, 4) X(2, 1, 4) X(2, 2, 4) X(2, 3, 4) X(2, 4, 4) X(2, 5, 4) X(2, 6, 4)    \
    X(2, 7, 4) X(2, 8, 4) X(2, 9, 4) X(2, 10, 4) X(2, 11, 4) X(2, 12, 4) X(3, 1, 4) X(3, 2, 4) X(3, 3, 4)    \
    X(3, 4, 4) X(3, 5, 4) X(3, 6, 4) X(3, 7, 4) X(3, 8, 4) X(4, 1, 4) X(4, 2, 4) X(4, 3, 4) X(4, 4, 4)       \
    X(5, 1, 4) X(5, 2, 4) X(5, 3, 4) X(5, 4, 4) X(6, 1, 4) X(6, 2, 4) X(6, 3, 4) X(6, 4, 4) X(7, 1, 4)       \
    X(7, 2, 4) X(7, 3, 4) X(8, 1, 4) X(8, 2, 4) X(8, 3, 4)                                                   \
    X(1, 1, 3) X(1, 2, 3) X(1, 3, 3) X(1, 6, 3) X(1, 9, 3) X(1, 12, 3) X(2, 1, 3) X(2, 2, 3) X(2, 3, 3)      \
    X(2, 6, 3) X(2, 9, 3) X(2, 12, 3) X(3, 1, 3) X(3, 2, 3) X(3, 3, 3) X(3, 6, 3) X(4, 1, 3) X(4, 2, 3)      \
    X(4, 3, 3) X(4, 6, 3) X(5, 1, 3) X(5, 2, 3) X(5, 3, 3) X(6, 1, 3) X(6, 2, 3) X(6, 3, 3) X(7, 1, 3)       \
    X(7, 2, 3) X(7, 3, 3) X(8, 1, 3) X(8, 2, 3) X(8, 3, 3)
static const unsigned char most_vectors_of[][MOST_ROWS + 1] = {{0, 12, 12, 6, 6, 3, 3, 3, 3},
                                                           {0, 12, 12, 8, 4, 4, 4, 3, 3}};
static const unsigned char tallest_tile[] = {8, 6};
#define COLUMN_ROWS (LANES < 8 ? LANES : 8) /* of a tile whose rows are columns of panels: none crosses two */
#else
#define FIRST_WIDTH 2
#define MOST_ROWS 6
#define MOST_VECTORS 12
#define TILES(X)                                                                                             \
    X(1, 1, 2) X(1, 2, 2) X(1, 3, 2) X(1, 4, 2) X(1, 5, 2) X(1, 6, 2) X(1, 7, 2) X(1, 8, 2) X(1, 9, 2)       \
    X(1, 10, 2) X(1, 11, 2) X(1, 12, 2) X(2, 1, 2) X(2, 2, 2) X(2, 3, 2) X(2, 4, 2) X(2, 5, 2) X(2, 6, 2)    \
    X(3, 1, 2) X(3, 2, 2) X(3, 3, 2) X(3, 4, 2) X(4, 1, 2) X(4, 2, 2) X(5, 1, 2) X(5, 2, 2) X(6, 1, 2)       \
    X(6, 2, 2)                                                                                               \
    X(1, 1, 3) X(1, 2, 3) X(1, 3, 3) X(1, 6, 3) X(1, 9, 3) X(1, 12, 3) X(2, 1, 3) X(2, 2, 3) X(2, 3, 3)      \
    X(2, 6, 3) X(3, 1, 3) X(3, 2, 3) X(3, 3, 3) X(4, 1, 3) X(4, 2, 3) X(4, 3, 3)
static const unsigned char most_vectors_of[][MOST_ROWS + 1] = {{0, 12, 6, 4, 2, 2, 2}, {0, 12, 6, 3, 3}};
static const unsigned char tallest_tile[] = {6, 4};
#define COLUMN_ROWS (LANES < 4 ? LANES : 4)
#endif

/* clang-format on */

TILES(DEFINE_TILE)
#define TILE_ENTRY(R, Q, W) [W - FIRST_WIDTH][R - 1][Q - 1] = tile_##R##_##Q##_##W,
static const tile_t tile_table[][MOST_ROWS][MOST_VECTORS] = {TILES(TILE_ENTRY)};

/* How n rows are divided among tiles: evenly, unless they are columns of panels. What is one needs no
 * division: a step of a small layer is over in a few hundred cycles. */
typedef struct {
    fastrnn_size tiles, low; /* rows of the lowest */
    fastrnn_size most;       /* vectors of that one, at most */
} tiling_t;

/* Vectors of a tile of n rows, at most. */
INLINE fastrnn_size widest_tile(const product_t *p, fastrnn_size n)
{
    return p->a_panel ? p->columns->width : most_vectors_of[p->columns->width - FIRST_WIDTH][n];
}

INLINE tiling_t divide_rows(const product_t *p, fastrnn_size n)
{
    const int which = p->columns->width - FIRST_WIDTH;
    const unsigned char *most = most_vectors_of[which];
    const fastrnn_size tallest = p->a_panel ? COLUMN_ROWS : tallest_tile[which];
    const fastrnn_size tiles = n <= MOST_ROWS && most[n] ? 1 : quotient(n + tallest - 1, tallest);
    const fastrnn_size low = tiles == 1 ? n : quotient(n, tiles);
    return (tiling_t){tiles, low, widest_tile(p, low)};
}

/* Where neither leaves L1, all sums of a step are one group, whatever a tile takes: the cell's chains of operations wait
 * less, the more of them there are. With larger weights the cell had better begin while the next are on their way. Tests
 * set the limits lower. */
#ifndef SMALL_SUMS
#define SMALL_SUMS (4096 / (fastrnn_size)sizeof(real))
#define SMALL_WEIGHTS (40960 / VECTOR_BYTES)
#endif

/* Rows that share a sweep over the panels: their part of `a` stays in L2 meanwhile. Larger weights come from further away,
 * and reading them once matters more. */
#define SWEEP_BYTES (256 * 1024)
#define SWEEP_WEIGHTS (4096 * 1024)

/* More rows than these never share a sweep, so that a call can be ended within milliseconds. Weights that are read once
 * for so many rows cost next to nothing. */
#define SWEEP_ROWS 4096

/* Weights that do not stay in L2 from one step to the next. */
#ifndef FAR_WEIGHTS
#define FAR_WEIGHTS (512 * 1024)
#endif

/* Vectors of the next tile of `n` that are left, if one takes `most`: tiles of equal width, but whole panels. */
INLINE fastrnn_size next_width(fastrnn_size n, fastrnn_size most, fastrnn_size width)
{
    if (n <= most)
        return n;
    const fastrnn_size part = n <= 2 * most ? (n + 1) / 2 : quotient(n - 1, quotient(n + most - 1, most)) + 1;
    const fastrnn_size panels = width == 3 ? (part + 2) / 3 * 3 : (part + width - 1) & -width;
    return least(panels, most);
}

/* The tiles of `high` rows from `row` on by vectors of units [first, last). */
INLINE void cover_rows(const product_t *p, const sweep_t *sweep, fastrnn_size row, fastrnn_size high,
                       fastrnn_size first, fastrnn_size last)
{
    const fastrnn_size blocks = p->columns->blocks, width = p->columns->width, most = widest_tile(p, high);
    const fastrnn_size end = last * blocks; /* vectors */
    const tile_t *tiles_of_rows = tile_table[width - FIRST_WIDTH][high - 1];
    fastrnn_size place = first && blocks != width ? first * blocks % width : 0; /* in its panel */
    fastrnn_size unit = first, block = 0;
    for (fastrnn_size v = first * blocks, n; v < end; v += n) {
        n = next_width(end - v, most, width);
        if (place || n < width) /* the panel's rest, at most */
            n = least(n, width - place);
        FASTRNN_ASSERT(tiles_of_rows[n - 1]);
        tiles_of_rows[n - 1](p, sweep, row, unit, block);
        for (place += n; place >= width;)
            place -= width;
        unit = quotient(v + n, blocks), block = v + n - unit * blocks;
    }
}

/* All tiles of the sweep's rows by vectors of units [first, last). */
static void cover(const product_t *p, const sweep_t *sweep, fastrnn_size first, fastrnn_size last)
{
    const fastrnn_size rows = sweep->rows, end = sweep->first_row + rows;
    const tiling_t tiling = divide_rows(p, rows);
    fastrnn_size higher = rows - tiling.low * tiling.tiles; /* tiles with a row more */
    for (fastrnn_size row = sweep->first_row, next; row < end; row = next, higher--) {
        next = row + tiling.low + (higher > 0);
        if (p->a_panel) /* no tile crosses a panel of `a` */
            next = least(((row + p->a_first) / COLUMN_ROWS + 1) * COLUMN_ROWS - p->a_first, end);
        cover_rows(p, sweep, row, next - row, first, last);
    }
}

/* The same, of so many rows that no tile has more than one panel: panel by panel, so that the next can be fetched. */
static void cover_panels(const product_t *p, const sweep_t *sweep, fastrnn_size first, fastrnn_size last)
{
    const fastrnn_size blocks = p->columns->blocks, width = p->columns->width;
    const fastrnn_size from = first * blocks, to = last * blocks; /* vectors */
    const fastrnn_size rows = sweep->rows, row_end = sweep->first_row + rows;
    const tiling_t tiling = divide_rows(p, rows);
    const fastrnn_size first_panel = quotient(from, width), panels = quotient(to - 1, width) + 1 - first_panel;
    for (fastrnn_size turn = 0; turn < panels; turn++) {
        const fastrnn_size panel = first_panel + (p->downward ? panels - 1 - turn : turn);
        const fastrnn_size vector = greatest(panel * width, from), end = least((panel + 1) * width, to);
        const fastrnn_size unit = quotient(vector, blocks);
        fastrnn_size higher = rows - tiling.low * tiling.tiles; /* tiles with a row more */
        for (fastrnn_size row = sweep->first_row, high; row < row_end; row += high, higher--) {
            high = tiling.low + (higher > 0);
            FASTRNN_ASSERT(tile_table[width - FIRST_WIDTH][high - 1][end - vector - 1]);
            tile_table[width - FIRST_WIDTH][high - 1][end - vector - 1](p, sweep, row, unit, vector - unit * blocks);
        }
    }
}

/* Make the schedule of `rows` rows by vectors of units [from, to). */
static __attribute__((noinline)) void make_schedule(product_t *p, fastrnn_size rows, fastrnn_size from, fastrnn_size to)
{
    schedule_t *s = &p->schedule;
    const columns_t *columns = p->columns;
    const fastrnn_size blocks = columns->blocks, vectors = to - from, depth = p->K + (p->before ? p->before->K : 0);
    const fastrnn_size weights = vectors * blocks * depth * VECTOR_BYTES;
    s->rows = rows, s->from = from, s->to = to;
    s->sweeps = s->grain = s->groups = 1, s->grains = vectors;
    fastrnn_size n = rows; /* of a sweep, at most */
    if (!p->a_panel && rows > MOST_ROWS) {
        const fastrnn_size bytes = rows * depth * (fastrnn_size)sizeof(real);
        if (bytes > SWEEP_BYTES && weights <= SWEEP_WEIGHTS)
            s->sweeps = least((bytes - 1) / SWEEP_BYTES + 1, rows / (4 * MOST_ROWS) + 1);
        s->sweeps = greatest(s->sweeps, (rows - 1) / SWEEP_ROWS + 1);
        n = s->sweeps == 1 ? rows : (rows + s->sweeps - 1) / s->sweeps;
    }
    /* A group is what a tile takes, but whole panels, and whole units: the epilogue needs all blocks. A grain is the
     * vectors of units that a panel has, or one if it has less. */
    const tiling_t tiling = divide_rows(p, n);
    if (vectors * blocks > tiling.most &&
        (p->compact || n * vectors * columns->stride > SMALL_SUMS || vectors * blocks * depth > SMALL_WEIGHTS)) {
        if (blocks < columns->width) {
            s->grain = columns->width / blocks;
            s->grains = (to + s->grain - 1) / s->grain - from / s->grain;
        }
        const fastrnn_size most_grains = tiling.most / (s->grain * blocks);
        s->groups = most_grains <= 1 ? s->grains : (s->grains - 1) / most_grains + 1;
    }
    /* The largest group, in vectors of units */
    const fastrnn_size largest = (s->groups == 1 ? s->grains : (s->grains - 1) / s->groups + 1) * s->grain;
    s->ld_to = p->compact ? largest * columns->stride : p->ld_to;
    s->flops = 2 * n * largest * LANES * blocks * depth;
    s->ahead = tiling.most == columns->width && !p->a_panel && weights > FAR_WEIGHTS;
    s->undivided = s->groups == 1 && !s->ahead && !p->compact && !p->a_panel && tiling.tiles == 1;
}

static void run_unpacked(const product_t *p, fastrnn_size row, fastrnn_size row_end, fastrnn_size vector,
                         fastrnn_size vector_end, epilogue_t epilogue, const void *context);

/* Rows [row, row_end) by vectors of units [from, to); `me` is whose part of the work it is. */
static void run_product(product_t *p, const fastrnn_member *me, fastrnn_size row, fastrnn_size row_end,
                        fastrnn_size from, fastrnn_size to, epilogue_t epilogue, const void *context)
{
    const fastrnn_size rows = row_end - row;
    if (rows <= 0 || from >= to)
        return;
    if (!p->panels) {
        if (!fastrnn_stopping(me, 2 * rows * (to - from) * LANES * p->columns->blocks * p->K))
            run_unpacked(p, row, row_end, from, to, epilogue, context);
        return;
    }
    if (p->schedule.rows != rows || p->schedule.from != from || p->schedule.to != to)
        make_schedule(p, rows, from, to);
    const schedule_t *s = &p->schedule;
    FASTRNN_ASSERT(to <= vector_count(p->units) && p->depth >= p->first_k + p->K);
    FASTRNN_ASSERT(p->columns->whole || p->columns->blocks == 1);
    if (s->undivided) {
        const sweep_t whole = {p->to, p->ld_to, row, rows, 0};
        if (fastrnn_stopping(me, s->flops))
            return;
        if (p->before && !p->continues)
            cover(p->before, &whole, from, to);
        cover_rows(p, &whole, row, rows, from, to);
        if (epilogue)
            epilogue(context, row, rows, from * LANES, least(to * LANES, p->units), p->to, p->ld_to);
        return;
    }
    const fastrnn_size grain = s->grain, sweeps = s->sweeps, groups = s->groups, stride = p->columns->stride;
    sweep_t sweep = {.to = p->to, .ld_to = s->ld_to};
    sweep.ahead = !s->ahead ? 0 : p->downward ? -1 : 1;
    for (fastrnn_size number = 0; number < sweeps; number++) {
        const fastrnn_size top = sweeps == 1 ? row : row + rows * number / sweeps;
        const fastrnn_size bottom = sweeps == 1 ? row_end : row + rows * (number + 1) / sweeps;
        sweep.first_row = top, sweep.rows = bottom - top;
        for (fastrnn_size turn = 0; turn < groups; turn++) {
            const fastrnn_size group = p->downward ? groups - 1 - turn : turn;
            const fastrnn_size first = group ? (from / grain + s->grains * group / groups) * grain : from;
            const fastrnn_size last = group + 1 < groups ? (from / grain + s->grains * (group + 1) / groups) * grain
                                                         : to;
            if (fastrnn_stopping(me, s->flops))
                break;
            /* This member's part of `to` begins where its sums would, and is as if the first units were these. */
            if (p->compact)
                sweep.to = p->to + row * (p->ld_to - s->ld_to) + (rows * from - first) * stride;
            if (p->before && !p->continues)
                cover(p->before, &sweep, first, last);
            (s->ahead ? cover_panels : cover)(p, &sweep, first, last);
            if (epilogue)
                epilogue(context, top, bottom - top, first * LANES, least(last * LANES, p->units), sweep.to,
                         sweep.ld_to);
        }
    }
}

/* Panels of w (blocks*units, K), for a product with its transpose. */
INLINE void panels_of_strided_rows(int blocks, fastrnn_size units, fastrnn_size K, const fastrnn_matrix *w,
                                   const fastrnn_size column_stride, real *panels)
{
    const int width = WEIGHT_WIDTH(blocks);
    const fastrnn_size columns = vector_count(units) * blocks, ld = w->row;
    for (fastrnn_size column = 0; column < columns; column++) {
        const fastrnn_size unit = column / blocks * LANES, m = least(units - unit, LANES), block = column % blocks;
        const real *rows = (const real *)w->data + ((w->order ? w->order[block] : block) * units + unit) * ld;
        real *to = panels + column / width * panel_size(K, width) + column % width * LANES;
        for (fastrnn_size k = 0; k < K; k++, to += width * LANES)
            for (fastrnn_size lane = 0; lane < LANES; lane++)
                to[lane] = lane < m ? rows[lane * ld + k * column_stride] : 0;
    }
}

static void panels_of_rows(int blocks, fastrnn_size units, fastrnn_size K, const fastrnn_matrix *w, void *panels)
{
    if (w->column == 1)
        panels_of_strided_rows(blocks, units, K, w, 1, panels);
    else
        panels_of_strided_rows(blocks, units, K, w, w->column, panels);
}

/* Panels of n rows of a matrix as it stands, w (n, units), as its rows k = first .. first+n-1 of the K in
 * each panel; vectors [vector, vector_end). */
static void panels_of_columns(fastrnn_size units, int width, fastrnn_size K, fastrnn_size first, fastrnn_size n,
                              const real *w, fastrnn_size ld, real *panels, fastrnn_size vector,
                              fastrnn_size vector_end)
{
    /* Some rows at a time, so that a cache line of either side is done with when it is left. */
    enum { ROWS = 16 };
    for (fastrnn_size row = 0; row < n; row += ROWS)
        for (fastrnn_size v = vector; v < vector_end; v++) {
            const fastrnn_size m = least(units - v * LANES, LANES), end = least(row + ROWS, n);
            const real *from = w + v * LANES;
            real *to = panels + v / width * panel_size(K, width) + (first * width + v % width) * LANES;
            for (fastrnn_size k = row; k < end; k++)
                *(V *)(to + k * width * LANES) = v_load(from + k * ld, m);
        }
}

/* Panels of w (K, units), as it stands. */
static void panels_of_matrix(fastrnn_size units, fastrnn_size K, const fastrnn_matrix *w, void *panels)
{
    const int width = WEIGHT_WIDTH(1);
    const fastrnn_size block = w->order ? w->block : K;
    for (fastrnn_size first = 0; first < K; first += block) {
        const real *from = (const real *)w->data + (w->order ? w->order[first / block] * block : first) * w->row;
        if (w->column == 1) {
            panels_of_columns(units, width, K, first, block, from, w->row, panels, 0, vector_count(units));
            continue;
        }
        for (fastrnn_size v = 0; v < vector_count(units); v++) {
            real *to = (real *)panels + v / width * panel_size(K, width) + (first * width + v % width) * LANES;
            for (fastrnn_size k = 0; k < block; k++, to += width * LANES)
                for (fastrnn_size lane = 0, unit = v * LANES; lane < LANES; lane++, unit++)
                    to[lane] = unit < units ? from[k * w->row + unit * w->column] : 0;
        }
    }
}
