/* A made-up problem for fastrnn.h: a stack, its weights, a batch of one of several kinds, and all inputs. */
#ifndef PROBLEM_H
#define PROBLEM_H

#include "kernels.h"

#include "harness.h"

enum { FULL, LENGTHS, PACKED, MASK, RESET, MIXED, REPEAT, BATCHES };
enum { TIME_MAJOR, BATCH_MAJOR, GAPS, LAYOUTS };
static const char *const batch_names[] = {"full", "lengths", "packed", "mask", "reset", "mixed", "repeat"};
static const char *const layout_names[] = {"", " batch-major", " gaps"};

enum { MOST_RUNS = 4 };

/* A problem, and all that is made up for it. */
typedef struct {
    fastrnn_cell_shape cell;
    int projected;                                  /* h is */
    int single, L, D, runs, batch, layout, dropout; /* runs: L*D */
    int reverse;                                    /* of one direction */
    int64_t T, B, I, H, P, W, N, S;                 /* W: the width of y */
    fastrnn_stack *stack;
    fastrnn_batch rows;
    void *map;
    fastrnn_weights weights[MOST_RUNS];
    void *panels, *panels_backward;
    fastrnn_sequence x, dy;
    void *h_0, *c_0, *dh_n, *dc_n;
    uint8_t *masks;
} problem;

/* Every cell, and the projected form of those that have one. */
static struct {
    fastrnn_cell_shape cell;
    int projected;
} listed[2 * FASTRNN_CELLS];

static int list_cells(void)
{
    int count = 0;
    for (int cell = 0; cell < FASTRNN_CELLS; cell++)
        for (int projected = 0; projected <= fastrnn_cell_shapes[cell].projects; projected++)
            listed[count].cell = fastrnn_cell_shapes[cell], listed[count++].projected = projected;
    return count;
}

static void expect_ok(fastrnn_status status, const char *error)
{
    if (status != FASTRNN_OK)
        fail(error);
}

/* ---- sequences ------------------------------------------------------------------------------------- */

/* Strides of a sequence of that width, and the numbers from its first to its last. */
static int64_t lay_out(const problem *q, int64_t width, fastrnn_sequence *s)
{
    const int64_t row = width + (q->layout == GAPS ? 3 : 0);
    *s = (fastrnn_sequence){.step = q->B * row, .row = row};
    if (q->layout == BATCH_MAJOR)
        *s = (fastrnn_sequence){.step = row, .row = q->T * row};
    if (q->batch == PACKED)
        return *s = (fastrnn_sequence){.row = row}, (q->N - 1) * row + width;
    return (q->T - 1) * s->step + (q->B - 1) * s->row + width;
}

static fastrnn_sequence made_up(const problem *q, int64_t width)
{
    fastrnn_sequence s;
    const int64_t count = lay_out(q, width, &s);
    s.data = numbers(count, 1);
    return s;
}

static fastrnn_sequence empty(const problem *q, int64_t width)
{
    fastrnn_sequence s;
    const int64_t count = lay_out(q, width, &s);
    s.data = array(count);
    return s;
}

static char *element(fastrnn_sequence s, int64_t t, int64_t b)
{
    return (char *)s.data + (size_t)(t * s.step + b * s.row) * item;
}

static void same_sequence(const problem *q, fastrnn_sequence a, fastrnn_sequence b, int64_t width, const char *what)
{
    fastrnn_sequence s;
    if (memcmp(a.data, b.data, (size_t)lay_out(q, width, &s) * item))
        fail(what);
}

/* The hash includes what lies between the rows, which nobody may touch. */
static void report_sequence(const problem *q, const char *name, fastrnn_sequence s, int64_t width)
{
    fastrnn_sequence ignored;
    const int64_t packed = q->batch == PACKED, T = packed ? q->N : q->T, B = packed ? 1 : q->B;
    printf(" %s %016llx", name, (unsigned long long)hash(s.data, (size_t)lay_out(q, width, &ignored) * item));
    for (int64_t t = 0; t < T; t++)
        for (int64_t b = 0; b < B; b++)
            for (int64_t k = 0; k < width; k++)
                if (!is_finite(s.data, (packed ? t * s.row : t * s.step + b * s.row) + k))
                    fail("a result is not finite");
}

/* ---- made up ---------------------------------------------------------------------------------------- */

static int64_t input_size(const problem *q, int k) { return k < q->D ? q->I : q->W; }

static void make_stack(problem *q)
{
    fastrnn_spec specs[MOST_RUNS];
    char error[256] = "";
    const int64_t G = q->cell.gates * q->H;
    const int biases = (int)(next_bits() & 3);
    for (int k = 0; k < q->runs; k++) {
        const int64_t I = input_size(q, k);
        specs[k] = (fastrnn_spec){
            sizeof *specs, q->cell.name, q->single ? FASTRNN_F32 : FASTRNN_F64, 0, I, q->H, q->P, 0};
        q->weights[k] = (fastrnn_weights){
            .size = sizeof *q->weights,
            .weight_ih = numbers(G * I, I),
            .weight_hh = numbers(G * q->P, q->P),
        };
        if (q->projected)
            q->weights[k].weight_hr = numbers(q->P * q->H, q->H), specs[k].options |= FASTRNN_PROJECTED;
        if (biases & 1)
            q->weights[k].bias_ih = numbers(G, 1), specs[k].options |= FASTRNN_BIAS_IH;
        if (biases & 2)
            q->weights[k].bias_hh = numbers(G, 1), specs[k].options |= FASTRNN_BIAS_HH;
        if (q->reverse)
            specs[k].options |= FASTRNN_REVERSE;
    }
    expect_ok(fastrnn_stack_new(specs, q->L, q->D, &q->stack, error), error);
    const int both = one_in(2); /* passes in one block */
    const size_t forward = fastrnn_panels_size(q->stack, both ? FASTRNN_FORWARD | FASTRNN_BACKWARD : FASTRNN_FORWARD);
    q->panels = block(forward, sizeof(double));
    q->panels_backward = both ? q->panels : block(fastrnn_panels_size(q->stack, FASTRNN_BACKWARD), sizeof(double));
    fastrnn_pack(q->stack, q->weights, both ? FASTRNN_FORWARD | FASTRNN_BACKWARD : FASTRNN_FORWARD, q->panels);
    if (!both)
        fastrnn_pack(q->stack, q->weights, FASTRNN_BACKWARD, q->panels_backward);
}

static int64_t *integers(int64_t n) { return block((size_t)n * sizeof(int64_t), sizeof(int64_t)); }

/* A mask or resets, batch-major or time-major, one in `chance` of them 1, or but one. */
static uint8_t *flags(const problem *q, int64_t *step, int64_t *row, int chance, int mostly)
{
    uint8_t *to = block((size_t)(q->T * q->B), 1);
    for (int64_t k = 0; k < q->T * q->B; k++)
        to[k] = one_in(chance) != mostly;
    *step = q->layout == BATCH_MAJOR ? 1 : q->B;
    *row = q->layout == BATCH_MAJOR ? q->T : 1;
    return to;
}

static void make_batch(problem *q)
{
    fastrnn_batch *rows = &q->rows;
    char error[256] = "";
    *rows = (fastrnn_batch){.size = sizeof *rows, .T = q->T, .B = q->B, .repeat_masked = q->batch == REPEAT};
    q->N = q->T * q->B, q->S = q->B;
    if (q->batch == FULL)
        return;
    if (q->batch == LENGTHS || q->batch == MIXED) {
        int64_t *lengths = integers(q->B);
        for (int64_t b = 0; b < q->B; b++)
            lengths[b] = (next_bits() & 0xffff) % (q->T + 1);
        rows->lengths = lengths;
    }
    if (q->batch == PACKED) {
        int64_t *sizes = integers(q->T);
        for (int64_t t = 0; t < q->T; t++)
            sizes[t] = t && one_in(2) && sizes[t - 1] > 1 ? sizes[t - 1] - 1 : t ? sizes[t - 1] : q->B;
        rows->batch_sizes = sizes;
    }
    if (q->batch == MASK || q->batch == MIXED || q->batch == REPEAT)
        rows->mask = flags(q, &rows->mask_step, &rows->mask_row, 3, 1);
    if (q->batch == RESET || q->batch == MIXED)
        rows->reset = flags(q, &rows->reset_step, &rows->reset_row, 4, 0);
    q->map = block(q->batch == PACKED ? fastrnn_packed_map_size(q->T, q->B) : fastrnn_map_size(q->T, q->B),
                   sizeof(int64_t));
    expect_ok(fastrnn_map(rows, q->map, error), error);
    fastrnn_map_counts(q->map, &q->N, &q->S);
}

static void make_inputs(problem *q)
{
    q->x = made_up(q, q->I);
    q->dy = made_up(q, q->W);
    q->h_0 = numbers(q->runs * q->B * q->P, 1), q->dh_n = numbers(q->runs * q->B * q->P, 1);
    q->c_0 = q->cell.inner ? numbers(q->runs * q->B * q->H, 1) : NULL;
    q->dc_n = q->cell.inner ? numbers(q->runs * q->B * q->H, 1) : NULL;
    q->masks = NULL;
    if (q->dropout) {
        const int64_t count = (q->L - 1) * q->N * q->W;
        q->masks = block((size_t)count, 1);
        for (int64_t k = 0; k < count; k++)
            q->masks[k] = !one_in(3);
    }
}

/* Of all that calls must not change. */
static uint64_t hash_of_inputs(const problem *q)
{
    fastrnn_sequence s;
    uint64_t h = hash(q->x.data, (size_t)lay_out(q, q->I, &s) * item);
    h = h * 31 + hash(q->dy.data, (size_t)lay_out(q, q->W, &s) * item);
    h = h * 31 + hash(q->h_0, (size_t)(q->runs * q->B * q->P) * item);
    for (int k = 0; k < q->runs; k++)
        h = h * 31 + hash(q->weights[k].weight_hh, (size_t)(q->cell.gates * q->H * q->P) * item);
    return h * 31 + hash(q->panels, fastrnn_panels_size(q->stack, FASTRNN_FORWARD));
}

#endif
