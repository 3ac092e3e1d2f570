/* Products of all shapes that matter to the choice of tiles, in one variant: every tile that is chosen exists, and every
 * number is the same chain of multiply-adds. Compiled with the flags of the variant; the limits beyond which groups are
 * divided and panels prefetched are set so low that both are reached. */
#define SMALL_SUMS 64
#define SMALL_WEIGHTS 8
#define FAR_WEIGHTS (8 * 1024)
#include "variant.c"

#include "harness.h"

enum { MOST_ROW = 27, MOST_UNITS = 14 * LANES, K = 3 };

static real *reals(ptrdiff_t n) { return numbers(n, K); }

/* Panels of w (blocks*units, K), as packing makes them for these columns. */
static real *panels_of(const columns_t *c, fastrnn_size units, const real *w)
{
    real *panels = block((size_t)packed_size(c->blocks, units, K) * sizeof(real), 0), plain[K * MOST_UNITS];
    if (c != &plain_columns && c != &column_panels) {
        panels_of_rows(c->blocks, units, K, &(fastrnn_matrix){w, K, 1, 0, NULL}, panels);
        return panels;
    }
    for (fastrnn_size k = 0; k < K; k++)
        for (fastrnn_size u = 0; u < units; u++)
            plain[k * units + u] = w[u * K + k];
    panels_of_columns(units, c->width, K, 0, K, plain, units, panels, 0, vector_count(units));
    return panels;
}

/* Rows [a_first, a_first + rows) of `a` (K, many), as columns of panels. */
static void take_columns(product_t *p, fastrnn_size first)
{
    real *panels = block((size_t)packed_size(1, MOST_ROW + 8, K) * sizeof(real), 0), plain[K * (MOST_ROW + 8)];
    for (fastrnn_size k = 0; k < K; k++)
        for (fastrnn_size row = 0; row < MOST_ROW + 8; row++)
            plain[k * (MOST_ROW + 8) + row] = row >= first && row < first + MOST_ROW ? p->a[(row - first) * K + k] : 0;
    panels_of_columns(MOST_ROW + 8, 1, K, 0, K, plain, MOST_ROW + 8, panels, 0, vector_count(MOST_ROW + 8));
    p->a = panels, p->a_row = 1, p->a_k = LANES, p->a_panel = panel_size(K, 1), p->a_first = first;
}

static void expect_sums(const product_t *p, const real *a, const real *w, fastrnn_size rows, fastrnn_size from,
                        fastrnn_size to, const real *before)
{
    const columns_t *c = p->columns;
    for (fastrnn_size row = 0; row < rows; row++)
        for (fastrnn_size u = from * LANES; u < least(to * LANES, p->units); u++)
            for (int b = 0; b < c->blocks; b++) {
                const fastrnn_size at = row * p->ld_to + u / LANES * c->stride + c->column[b] + u % LANES;
                real sum = p->from ? before[at] : 0;
                for (fastrnn_size k = 0; k < K; k++)
                    sum = sizeof(real) == 4
                              ? fmaf((float)a[row * K + k], (float)w[(b * p->units + u) * K + k], (float)sum)
                              : (real)fma(a[row * K + k], w[(b * p->units + u) * K + k], sum);
                if (memcmp(&sum, &p->to[at], sizeof sum))
                    fail("a sum is not the chain of its multiply-adds");
            }
}

static int products;

static void solve(const columns_t *c, fastrnn_size units, fastrnn_size rows, int way)
{
    static fastrnn_team team;
    const fastrnn_member me = {.size = 1, .team = &team};
    const fastrnn_size vectors = vector_count(units), from = way & 1 ? vectors / 3 : 0;
    const real *a = reals(MOST_ROW * K), *w = reals(c->blocks * units * K);
    product_t p = plain_product(K, units, panels_of(c, units, w), K, a, K, NULL);
    p.columns = c;
    p.ld_to = p.ld_from = c->whole ? vectors * c->stride : units;
    p.downward = way >> 1 & 1;
    p.to = array(rows * p.ld_to);
    real *before = reals(rows * p.ld_to);
    if (way & 4)
        memcpy(p.to, before, (size_t)(rows * p.ld_to) * sizeof(real)), p.from = p.to;
    if (c == &column_panels)
        take_columns(&p, way % 8);
    run_product(&p, &me, 0, rows, from, vectors, 0, 0);
    expect_sums(&p, a, w, rows, from, vectors, before);
    products++;
    free_all();
}

int main(void)
{
    static const int units_of[] = {1, LANES, LANES + 1, 2 * LANES, 3 * LANES - 1, 5 * LANES, 7 * LANES + 3, MOST_UNITS};
    const columns_t *all[3 * FASTRNN_CELLS + 2] = {&plain_columns, &column_panels};
    int count = 2;
    item = sizeof(real);
    for (const cell_columns *c = columns_of_cells; c < columns_of_cells + FASTRNN_CELLS; c++) {
        all[count++] = &c->input, all[count++] = &c->hidden;
        if (c->reset.column[0] < c->reset.stride) /* the cell has an accumulator for it */
            all[count++] = &c->reset;
    }
    for (int k = 0; k < count; k++)
        for (int j = 0; j < 8; j++)
            for (fastrnn_size rows = 1; rows <= MOST_ROW; rows++)
                for (int way = 0; way < 8; way++)
                    solve(all[k], units_of[j], rows, way);
    printf("ok  %d products: tiles of %d-byte vectors, %d bytes a number\n", products, (int)VECTOR_BYTES,
           (int)sizeof(real));
    return 0;
}
