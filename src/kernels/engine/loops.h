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

/* Bodies of loops are arguments of macros. */
/* clang-format off */

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

/* Local copies of `COUNT` pointers of a step: for all that the compiler knows, a store might change the step. */
#define HOIST(TYPE, POINTERS, MOST, COUNT)                                                                   \
    __attribute__((unused)) TYPE POINTERS[MOST];                                                             \
    UNROLL for (int j = 0; j < COUNT; j++) POINTERS[j] = step->POINTERS[j];

/* The loads of a stage. */
#define LOAD_FORWARD(A, INNER, VECTORS, PROJECTS)                                                            \
    real *const sums_k = sums.at + row * sums.row + k * sums.unit;                                           \
    unit_forward_t u;                                                                                        \
    UNROLL for (int block = 0; block < A; block++) u.a[block] = v_load(sums_k + block * sums.block, m);      \
    UNROLL for (int part = 0; part < INNER; part++)                                                          \
        u.inner[part] = v_load(inner[part] + row * H + k, m);                                  \
    UNROLL for (int j = 0; j < VECTORS; j++) u.vector[j] = v_load(vector[j] + k, m);                         \
    if (!PROJECTS)                                                                                           \
        u.h_prev = v_load(h_prev + row * ld_prev + k, m);

#define FIRST_STAGE_1(CELL, A, INNER, VECTORS, PROJECTS)
#define FIRST_STAGE_2(CELL, A, INNER, VECTORS, PROJECTS)                                                     \
    FOR_ROWS(                                                                                                \
        LOAD_FORWARD(A, INNER, VECTORS, PROJECTS)                                                            \
        CELL##_gates(&u);                                                                                    \
        UNROLL for (int block = 0; block < A; block++) v_store(sums_k + block * sums.block, m, u.a[block]);  \
        UNROLL for (int part = 0; part < INNER; part++)                                                      \
            v_store(inner[part] + row * H + k, m, u.inner[part]);)

#define DEFINE_FORWARD(CELL, A, KEPT, INNER, VECTORS, PROJECTS, STAGES)                                      \
    static void CELL##_forward_rows(const fastrnn_cell_forward *step)                                        \
    {                                                                                                        \
        const fastrnn_size n = step->n, H = step->H, unit = step->unit, end = step->end;                     \
        const fastrnn_size ld_prev = step->ld_prev, ldh = step->ldh;                                         \
        real *const kept = step->kept, *const h = step->h;                                                   \
        const real *const h_prev = step->h_prev;                                                             \
        const sums_t sums = sums_of(step);                                                                   \
        HOIST(real *, inner, FASTRNN_MOST_INNER, INNER)                                                      \
        HOIST(real *, inner_kept, FASTRNN_MOST_INNER, INNER)                                                 \
        HOIST(const real *, vector, FASTRNN_MOST_VECTORS, VECTORS)                                           \
        FIRST_STAGE_##STAGES(CELL, A, INNER, VECTORS, PROJECTS)                                              \
        FOR_ROWS(                                                                                            \
            LOAD_FORWARD(A, INNER, VECTORS, PROJECTS)                                                        \
            CELL##_output(&u);                                                                               \
            if (KEPT && kept)                                                                                \
                UNROLL for (int block = 0; block < KEPT; block++)                                            \
                    v_store(kept + (row * KEPT + block) * H + k, m, u.a[block]);                             \
            UNROLL for (int part = 0; part < INNER; part++) {                                                \
                if (STAGES == 1)                                                                             \
                    v_store(inner[part] + row * H + k, m, u.inner[part]);                      \
                if (inner_kept[part])                                                                        \
                    v_store(inner_kept[part] + row * H + k, m, u.inner[part]);                               \
            }                                                                                                \
            v_store(h + row * ldh + k, m, u.h);)                                                             \
    }

#define DEFINE_BACKWARD(CELL, A, KEPT, INNER, VECTORS, PROJECTS)                                             \
    static void CELL##_backward_rows(const fastrnn_cell_backward *step)                                      \
    {                                                                                                        \
        const fastrnn_size n = step->n, H = step->H, unit = step->unit, end = step->end;                     \
        const fastrnn_size ld_prev = step->ld_prev, ldh = step->ldh, lddy = step->lddy;                      \
        const real *const kept = step->kept, *const h_prev = step->h_prev, *const h = step->h;               \
        const real *const dy = step->dy;                                                                     \
        real *const dgates = step->dgates, *const dh = step->dh, *const unprojected = step->unprojected;     \
        HOIST(const real *, inner, FASTRNN_MOST_INNER, INNER)                                                \
        HOIST(const real *, inner_prev, FASTRNN_MOST_INNER, INNER)                                           \
        HOIST(real *, dinner, FASTRNN_MOST_INNER, INNER)                                                     \
        HOIST(const real *, vector, FASTRNN_MOST_VECTORS, VECTORS)                                           \
        FOR_ROWS(                                                                                            \
            const fastrnn_size at = row * H + k, at_dgates = row * (A + VECTORS) * H + k;                    \
            unit_backward_t u;                                                                               \
            UNROLL for (int block = 0; block < KEPT; block++)                                                \
                u.a[block] = v_load(kept + (row * KEPT + block) * H + k, m);                                 \
            UNROLL for (int part = 0; part < INNER; part++) {                                                \
                u.inner[part] = v_load(inner[part] + at, m);                             \
                u.inner_prev[part] = v_load(inner_prev[part] + at, m);                   \
                u.dinner[part] = v_load(dinner[part] + at, m);                           \
            }                                                                                                \
            UNROLL for (int j = 0; j < VECTORS; j++) u.vector[j] = v_load(vector[j] + k, m); \
            if (!KEPT)                                                                                       \
                u.h = v_load(h + row * ldh + k, m);                                                          \
            if (!PROJECTS)                                                                                   \
                u.h_prev = v_load(h_prev + row * ld_prev + k, m);                                            \
            u.dh = v_load(dh + at, m);                                                                       \
            if (dy)                                                                                          \
                u.dh += v_load(dy + row * lddy + k, m);                                                      \
            CELL##_backward(&u);                                                                             \
            UNROLL for (int block = 0; block < A; block++) v_store(dgates + at_dgates + block * H, m, u.da[block]); \
            UNROLL for (int j = 0; j < VECTORS; j++) v_store(dgates + at_dgates + (A + j) * H, m, u.dvector[j]); \
            v_store(dh + at, m, u.dh);                                                                       \
            UNROLL for (int part = 0; part < INNER; part++) v_store(dinner[part] + at, m, u.dinner[part]); \
            if (PROJECTS && unprojected)                                                                     \
                v_store(unprojected + at, m, u.unprojected);)                                                \
    }

#define DEFINE_CELL(CELL, GATES_, A, INPUT, HIDDEN, KEPT, INNER, VECTORS, PROJECTS, HAS_RESET, STAGES)       \
    DEFINE_FORWARD(CELL, A, KEPT, INNER, VECTORS, PROJECTS, STAGES)                                          \
    DEFINE_BACKWARD(CELL, A, KEPT, INNER, VECTORS, PROJECTS)
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
    const real *const kept = step->kept, *const h_prev = step->h_prev;
    real *const drh = step->drh, *const dgates = step->dgates, *const dh = step->dh;
    FOR_ROWS(
        const fastrnn_size at = row * H + k, at_gates = row * 3 * H + k;
        V a[1] = {v_load(kept + at_gates, m)}; V da[1];
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
#define CELL_ENTRY(CELL, GATES_, A, INPUT, HIDDEN, KEPT, INNER, VECTORS, PROJECTS, HAS_RESET, STAGES)        \
    {CELL##_forward_rows, CELL##_backward_rows, RESET_ROWS_##HAS_RESET(reset_forward_rows),   \
     RESET_ROWS_##HAS_RESET(reset_backward_rows)},
static const fastrnn_cell cells[FASTRNN_CELLS] = {FASTRNN_CELL_LIST(CELL_ENTRY)};
