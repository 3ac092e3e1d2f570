/* The cells of cells.h over rows and units: loads, stores and tails. The loops know how many accumulators and stages a
 * cell has, and nothing else of it. */

/* fastrnn_sums with a pointer of the right type. */
typedef struct {
    real *at;
    fastrnn_size row, block, unit;
} sums_t;

INLINE sums_t sums_of(const fastrnn_cell_forward *step)
{
    const fastrnn_sums sums = step->sums;
    return (sums_t){sums.at, sums.row, sums.block, sums.unit};
}

/* Units [unit, end): full vectors, then the tail. The body handles `m` lanes from unit `k` on. */
#define FOR_UNITS(...)                                                                                       \
    do {                                                                                                     \
        fastrnn_size k = unit;                                                                               \
        for (; k + LANES <= end; k += LANES) {                                                               \
            const fastrnn_size m = LANES;                                                                    \
            __VA_ARGS__                                                                                      \
        }                                                                                                    \
        if (k < end) {                                                                                       \
            const fastrnn_size m = end - k;                                                                  \
            __VA_ARGS__                                                                                      \
        }                                                                                                    \
    } while (0)

/* Rows 0 .. n-1 by units [unit, end). The body handles `m` lanes from unit `k` of `row` on. It is instantiated three
 * times, so that the width is a constant in the two loops over full vectors: along each row if a row has four or more
 * of them, which is the order of memory, else down the rows, and once for the tails. */
#define FOR_ROWS(...)                                                                                        \
    do {                                                                                                     \
        const fastrnn_size whole = (end - unit) / LANES * LANES + unit;                                      \
        if (whole - unit >= 4 * LANES) {                                                                     \
            for (fastrnn_size row = 0; row < n; row++)                                                       \
                for (fastrnn_size k = unit; k < whole; k += LANES) {                                         \
                    const fastrnn_size m = LANES;                                                            \
                    __VA_ARGS__                                                                              \
                }                                                                                            \
        } else {                                                                                             \
            for (fastrnn_size k = unit; k < whole; k += LANES)                                               \
                for (fastrnn_size row = 0; row < n; row++) {                                                 \
                    const fastrnn_size m = LANES;                                                            \
                    __VA_ARGS__                                                                              \
                }                                                                                            \
        }                                                                                                    \
        if (whole < end)                                                                                     \
            for (fastrnn_size row = 0; row < n; row++) {                                                     \
                const fastrnn_size k = whole, m = end - whole;                                               \
                __VA_ARGS__                                                                                  \
            }                                                                                                \
    } while (0);

#define FIRST_STAGE_1(CELL, A, HAS_C)
#define FIRST_STAGE_2(CELL, A, HAS_C)                                                                        \
    FOR_ROWS(                                                                                                \
        real *sums_k = sums.at + row * sums.row + k * sums.unit, *c_k = HAS_C ? c + row * H + k : 0;         \
        V a[A]; V c_k_new = v_set(0);                                                                        \
        UNROLL for (int block = 0; block < A; block++) a[block] = v_load(sums_k + block * sums.block, m);    \
        if (HAS_C)                                                                                           \
            c_k_new = v_load(c_k, m);                                                                        \
        CELL##_gates(a, &c_k_new);                                                                    \
        UNROLL for (int block = 0; block < A; block++) v_store(sums_k + block * sums.block, m, a[block]);    \
        if (HAS_C)                                                                                           \
            v_store(c_k, m, c_k_new);)

#define DEFINE_FORWARD(CELL, A, HAS_C, STAGES)                                                               \
    static void CELL##_forward_rows(const fastrnn_cell_forward *step)                                        \
    {                                                                                                        \
        const fastrnn_size n = step->n, H = step->H, unit = step->unit, end = step->end;                     \
        const fastrnn_size ld_prev = step->ld_prev, ldh = step->ldh;                                         \
        real *const gates = step->gates, *const h = step->h, *const c = step->c;                             \
        real *const c_kept = step->c_kept;                                                                   \
        const real *const h_prev = step->h_prev;                                                             \
        const sums_t sums = sums_of(step);                                                                   \
        FIRST_STAGE_##STAGES(CELL, A, HAS_C)                                                                 \
        FOR_ROWS(                                                                                            \
            const real *sums_k = sums.at + row * sums.row + k * sums.unit;                                   \
            V a[A]; V c_k = v_set(0); V h_k = v_set(0);                                                      \
            UNROLL for (int block = 0; block < A; block++) a[block] = v_load(sums_k + block * sums.block, m);\
            if (HAS_C)                                                                                       \
                c_k = v_load(c + row * H + k, m);                                                            \
            else                                                                                             \
                h_k = v_load(h_prev + row * ld_prev + k, m);                                                 \
            CELL##_output(a, c_k, &h_k);                                                              \
            if (gates)                                                                                       \
                UNROLL for (int block = 0; block < A; block++)                                               \
                    v_store(gates + (row * A + block) * H + k, m, a[block]);                                 \
            if (HAS_C && c_kept)                                                                             \
                v_store(c_kept + row * H + k, m, c_k);                                                       \
            v_store(h + row * ldh + k, m, h_k);)                                                             \
    }

#define DEFINE_BACKWARD(CELL, A, HAS_C)                                                                      \
    static void CELL##_backward_rows(const fastrnn_cell_backward *step)                                      \
    {                                                                                                        \
        const fastrnn_size n = step->n, H = step->H, unit = step->unit, end = step->end;                     \
        const fastrnn_size ld_prev = step->ld_prev, lddy = step->lddy;                                       \
        const real *const gates = step->gates, *const h_prev = step->h_prev, *const c = step->c;             \
        const real *const c_prev = step->c_prev, *const dy = step->dy;                                       \
        real *const dgates = step->dgates, *const dh = step->dh, *const dc = step->dc, *const h = step->h;   \
        FOR_ROWS(                                                                                            \
            const fastrnn_size at = row * H + k, at_gates = row * A * H + k;                                 \
            V a[A]; V da[A]; V h_old = v_set(0); V h_new = v_set(0);                                         \
            V c_old = v_set(0); V c_new = v_set(0); V dc_new = v_set(0);                                     \
            V dh_new = v_load(dh + at, m);                                                                   \
            UNROLL for (int block = 0; block < A; block++) a[block] = v_load(gates + at_gates + block * H, m);\
            if (HAS_C)                                                                                       \
                c_new = v_load(c + at, m), c_old = v_load(c_prev + at, m), dc_new = v_load(dc + at, m);      \
            else                                                                                             \
                h_old = v_load(h_prev + row * ld_prev + k, m);                                               \
            if (dy)                                                                                          \
                dh_new += v_load(dy + row * lddy + k, m);                                                    \
            CELL##_backward(a, h_old, c_new, c_old, &dh_new, &dc_new, &h_new, da);                    \
            UNROLL for (int block = 0; block < A; block++) v_store(dgates + at_gates + block * H, m, da[block]);\
            v_store(dh + at, m, dh_new);                                                                     \
            if (HAS_C)                                                                                       \
                v_store(dc + at, m, dc_new);                                                                 \
            if (HAS_C && h)                                                                                  \
                v_store(h + at, m, h_new);)                                                                  \
    }

#define DEFINE_CELL(CELL, GATES_, A, INPUT, HIDDEN, HAS_C, HAS_RESET, STAGES)                                \
    DEFINE_FORWARD(CELL, A, HAS_C, STAGES) DEFINE_BACKWARD(CELL, A, HAS_C)
FASTRNN_CELL_LIST(DEFINE_CELL)

static void reset_forward_rows(const fastrnn_cell_forward *step)
{
    const fastrnn_size n = step->n, H = step->H, unit = step->unit, end = step->end, ld_prev = step->ld_prev;
    const real *const h_prev = step->h_prev;
    real *const rh = step->rh;
    const sums_t sums = sums_of(step);
    FOR_ROWS(
        real *r = sums.at + row * sums.row + k * sums.unit, *z = r + sums.block;
        V a[2] = {v_load(r, m), v_load(z, m)}; V rh_k;
        reset_stage_forward(a, v_load(h_prev + row * ld_prev + k, m), &rh_k);
        v_store(r, m, a[0]);
        v_store(z, m, a[1]);
        v_store(rh + row * H + k, m, rh_k);)
}

static void reset_backward_rows(const fastrnn_cell_backward *step)
{
    const fastrnn_size n = step->n, H = step->H, unit = step->unit, end = step->end, ld_prev = step->ld_prev;
    const real *const gates = step->gates, *const h_prev = step->h_prev;
    real *const drh = step->drh, *const dgates = step->dgates, *const dh = step->dh;
    FOR_ROWS(
        const fastrnn_size at = row * H + k, at_gates = row * 3 * H + k;
        V a[1] = {v_load(gates + at_gates, m)}; V da[1];
        V drh_k = v_load(drh + at, m); V dh_k = v_load(dh + at, m);
        reset_stage_backward(a, v_load(h_prev + row * ld_prev + k, m), &drh_k, &dh_k, da);
        v_store(dgates + at_gates, m, da[0]);
        v_store(drh + at, m, drh_k);
        v_store(dh + at, m, dh_k);)
}

/* Threads divide the columns: each out[k] is one chain in the order of rows. */
static void add_rows(fastrnn_size n, fastrnn_size ld, fastrnn_size unit, fastrnn_size end, const void *rows, void *to)
{
    const real *a = rows;
    real *out = to;
    for (; unit + 4 * LANES <= end; unit += 4 * LANES) { /* four chains hide the latency of an addition */
        V sum[4] = {{0}};
        for (const real *at = a + unit, *last = at + n * ld; at < last; at += ld)
            UNROLL for (int j = 0; j < 4; j++) sum[j] += v_load(at + j * LANES, LANES);
        UNROLL for (int j = 0; j < 4; j++)
            v_store(out + unit + j * LANES, LANES, v_load(out + unit + j * LANES, LANES) + sum[j]);
    }
    FOR_UNITS(
        V sum = v_set(0);
        for (fastrnn_size row = 0; row < n; row++)
            sum += v_load(a + row * ld + k, m);
        v_store(out + k, m, v_load(out + k, m) + sum););
}

#define DEFINE_ACTIVATION(F)                                                                                 \
    static void F##_all(fastrnn_size end, const void *from, void *to)                                        \
    {                                                                                                        \
        const fastrnn_size unit = 0;                                                                         \
        const real *x = from;                                                                                \
        real *y = to;                                                                                        \
        FOR_UNITS(v_store(y + k, m, v_##F(v_load(x + k, m))););                                     \
    }
DEFINE_ACTIVATION(tanh)
DEFINE_ACTIVATION(sigmoid)

#define RESET_ROWS_0(F) 0
#define RESET_ROWS_1(F) F
#define CELL_ENTRY(CELL, GATES_, A, INPUT, HIDDEN, HAS_C, HAS_RESET, STAGES)                                 \
    {CELL##_forward_rows, CELL##_backward_rows, RESET_ROWS_##HAS_RESET(reset_forward_rows),   \
     RESET_ROWS_##HAS_RESET(reset_backward_rows)},
static const fastrnn_cell cells[FASTRNN_CELLS] = {FASTRNN_CELL_LIST(CELL_ENTRY)};
