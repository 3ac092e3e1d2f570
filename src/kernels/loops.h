/* The loops over rows and hidden units, and the table of one precision. They know the number of
 * accumulators of a cell and nothing else of it. */

/* Units [unit, end) in full vectors, then what is left of them: `m` lanes at `k`. */
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

#define DEFINE_FORWARD(CELL, A, HAS_C)                                                                       \
    static void NAME(CELL##_forward_rows_)(fastrnn_size n, fastrnn_size H, fastrnn_size unit,                \
                                           fastrnn_size end, real *gates, int keep, const real *h_prev,      \
                                           fastrnn_size ld_prev, real *h, fastrnn_size ldh, real *c,         \
                                           real *c_kept)                                                     \
    {                                                                                                        \
        for (fastrnn_size row = 0; row < n; row++) {                                                         \
            real *gates_row = gates + row * A * H, *h_row = h + row * ldh;                                   \
            const real *prev_row = h_prev + row * ld_prev;                                                   \
            real *c_row = HAS_C ? c + row * H : 0, *kept_row = HAS_C && c_kept ? c_kept + row * H : 0;       \
            FOR_UNITS(                                                                                       \
                V a[A];                                                                                      \
                for (int block = 0; block < A; block++)                                                      \
                    a[block] = v_load(gates_row + block * H + k, m);                                         \
                V h_k = HAS_C ? v_set(0) : v_load(prev_row + k, m);                                          \
                V c_k = HAS_C ? v_load(c_row + k, m) : v_set(0);                                             \
                NAME(CELL##_forward_)(a, &h_k, &c_k);                                                        \
                if (keep)                                                                                    \
                    for (int block = 0; block < A; block++)                                                  \
                        v_store(gates_row + block * H + k, m, a[block]);                                     \
                v_store(h_row + k, m, h_k);                                                                  \
                if (HAS_C)                                                                                   \
                    v_store(c_row + k, m, c_k);                                                              \
                if (HAS_C && kept_row)                                                                       \
                    v_store(kept_row + k, m, c_k););                                                         \
        }                                                                                                    \
    }

#define DEFINE_BACKWARD(CELL, A, HAS_C)                                                                      \
    static void NAME(CELL##_backward_rows_)(                                                                 \
        fastrnn_size n, fastrnn_size H, fastrnn_size unit, fastrnn_size end, const real *gates,              \
        const real *h_prev, fastrnn_size ld_prev, const real *c, const real *c_prev, const real *dy,         \
        fastrnn_size lddy, real *dgates, real *dh, real *dc, real *h)                                        \
    {                                                                                                        \
        for (fastrnn_size row = 0; row < n; row++) {                                                         \
            const fastrnn_size at = row * H;                                                                 \
            const real *gates_row = gates + A * at, *prev_row = h_prev + row * ld_prev;                      \
            const real *dy_row = dy ? dy + row * lddy : 0;                                                   \
            real *dgates_row = dgates + A * at;                                                              \
            FOR_UNITS(                                                                                       \
                V a[A]; V da[A]; V h_k = v_set(0);                                                           \
                for (int block = 0; block < A; block++)                                                      \
                    a[block] = v_load(gates_row + block * H + k, m);                                         \
                V h_prev_k = HAS_C ? v_set(0) : v_load(prev_row + k, m);                                     \
                V c_k = HAS_C ? v_load(c + at + k, m) : v_set(0);                                            \
                V c_prev_k = HAS_C ? v_load(c_prev + at + k, m) : v_set(0);                                  \
                V dh_k = v_load(dh + at + k, m);                                                             \
                V dc_k = HAS_C ? v_load(dc + at + k, m) : v_set(0);                                          \
                if (dy_row)                                                                                  \
                    dh_k += v_load(dy_row + k, m);                                                           \
                NAME(CELL##_backward_)(a, h_prev_k, c_k, c_prev_k, &dh_k, &dc_k, &h_k, da);                  \
                for (int block = 0; block < A; block++)                                                      \
                    v_store(dgates_row + block * H + k, m, da[block]);                                       \
                v_store(dh + at + k, m, dh_k);                                                               \
                if (HAS_C)                                                                                   \
                    v_store(dc + at + k, m, dc_k);                                                           \
                if (HAS_C && h)                                                                              \
                    v_store(h + at + k, m, h_k););                                                           \
        }                                                                                                    \
    }

#define DEFINE_CELL(CELL, GATES, A, INPUT, HIDDEN, HAS_C, HAS_RESET)                                         \
    DEFINE_FORWARD(CELL, A, HAS_C) DEFINE_BACKWARD(CELL, A, HAS_C)
FASTRNN_CELL_LIST(DEFINE_CELL)

static void NAME(reset_forward_rows_)(fastrnn_size n, fastrnn_size H, fastrnn_size unit, fastrnn_size end,
                                          real *gates, const real *h_prev, fastrnn_size ld_prev, real *rh)
{
    for (fastrnn_size row = 0; row < n; row++) {
        real *r = gates + row * 3 * H, *z = r + H;
        FOR_UNITS(
            V a[2] = {v_load(r + k, m), v_load(z + k, m)}; V rh_k;
            NAME(reset_stage_forward_)(a, v_load(h_prev + row * ld_prev + k, m), &rh_k);
            v_store(r + k, m, a[0]);
            v_store(z + k, m, a[1]);
            v_store(rh + row * H + k, m, rh_k););
    }
}

static void NAME(reset_backward_rows_)(fastrnn_size n, fastrnn_size H, fastrnn_size unit, fastrnn_size end,
                                           const real *gates, const real *h_prev, fastrnn_size ld_prev,
                                           real *drh, real *dgates, real *dh)
{
    for (fastrnn_size row = 0; row < n; row++) {
        const fastrnn_size at = row * H;
        FOR_UNITS(
            V a[1] = {v_load(gates + 3 * at + k, m)}; V da[1];
            V drh_k = v_load(drh + at + k, m); V dh_k = v_load(dh + at + k, m);
            NAME(reset_stage_backward_)(a, v_load(h_prev + row * ld_prev + k, m), &drh_k, &dh_k, da);
            v_store(dgates + 3 * at + k, m, da[0]);
            v_store(drh + at + k, m, drh_k);
            v_store(dh + at + k, m, dh_k););
    }
}

/* Columns are divided, never the sum: each out[k] is one chain in row order. */
static void NAME(add_rows_)(fastrnn_size n, fastrnn_size ld, fastrnn_size unit, fastrnn_size end, const real *a,
                            real *out)
{
    for (; unit + 4 * LANES <= end; unit += 4 * LANES) { /* four chains hide the addition's latency */
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
    static void NAME(F##_all_)(fastrnn_size end, const real *x, real *y)                                     \
    {                                                                                                        \
        const fastrnn_size unit = 0;                                                                         \
        FOR_UNITS(v_store(y + k, m, NAME(v_##F##_)(v_load(x + k, m))););                                     \
    }
DEFINE_ACTIVATION(tanh)
DEFINE_ACTIVATION(sigmoid)

#define RESET_ROWS_0(F) 0
#define RESET_ROWS_1(F) NAME(F)
#define CELL_ENTRY(CELL, GATES, A, INPUT, HIDDEN, HAS_C, HAS_RESET)                                          \
    {NAME(CELL##_forward_rows_), NAME(CELL##_backward_rows_), RESET_ROWS_##HAS_RESET(reset_forward_rows_),   \
     RESET_ROWS_##HAS_RESET(reset_backward_rows_)},
static const NAME(fastrnn_cell_) NAME(cells_)[FASTRNN_CELLS] = {FASTRNN_CELL_LIST(CELL_ENTRY)};
