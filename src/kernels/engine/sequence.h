/* The fused engine: a whole run, forward and BPTT, of one layer in one direction.
 *
 * Forward takes the steps in chunks of time. A chunk's inputs are projected at once,
 *     sums[t] = bias + x[t] W_ih^T
 * and then each step multiplies in its state and lets the cell loose on every group of units as soon as their
 * sums stand, while they are in the first-level cache:
 *     sums[t] += h[t-1] W_hh^T;  h[t] = cell(sums[t])
 * h[t] is written to y, where the next step reads it. BPTT mirrors this against the order of time: the
 * product dgates[t] W_hh gives dh[t-1], on which the cell's backward follows; what remains, dx and the
 * gradients of the weights, are large products once a chunk is through.
 *
 * A row of sums has the accumulators of each vector of units side by side, so it is as wide as whole vectors.
 *
 * Threads divide the rows of the batch, which never meet; or, when there are too few, the units, with a
 * barrier after every step. Everything else of a chunk is divided by rows or columns of its result: no sum
 * is ever split, so the bits do not depend on the number of threads.
 *
 * Nothing here knows a cell but by its fastrnn_cell_shape and its functions.
 */

typedef fastrnn_run run_t;

typedef struct {
    fastrnn_size from, to;
} span_t;

/* This member's part of n things, in pieces of `grain`. */
static span_t share_of(const fastrnn_member *me, fastrnn_size n, fastrnn_size grain)
{
    if (me->size == 1)
        return (span_t){0, n};
    const fastrnn_size pieces = (n + grain - 1) / grain;
    const fastrnn_size from = pieces * me->rank / me->size * grain, to = pieces * (me->rank + 1) / me->size * grain;
    return (span_t){from < n ? from : n, to < n ? to : n};
}

/* What the steps of a run share, and one step's place in memory. */
typedef struct {
    const run_t *run;
    fastrnn_cell_shape shape;
    fastrnn_size AH, direct;    /* accumulator columns; those that h_prev feeds */
    fastrnn_size width;         /* of a row of sums */
    const real *bias;           /* as a row of sums */
    int project_by_step;        /* the inputs of a step with the step, else those of a chunk ahead */
    int split_units;            /* threads divide the units, else the rows */
    span_t rows;                /* of the batch: this member's */
    span_t units, out;          /* vectors of H and of P: this member's */
    fastrnn_size t;
    fastrnn_size first, n;      /* packed row of the step, and its rows */
    fastrnn_size first_old, old; /* packed row of the step before; the rows that have one */
    const real *gates;          /* backward: (n, AH) */
    real *dgates, *units_kept, *dh_kept; /* backward: this step's rows of the chunk's scratch */
    const real *h_old, *h_new;  /* h_prev of rows < old: rows of y; of the others: the initial state */
    const real *h_prev;         /* forward: the one of the two at hand */
    fastrnn_size ld_prev;
    product_t input, hidden, reset, output; /* forward: of every step; what changes is set with each */
    product_t back;                         /* backward: dgates W_hh */
} step_t;

/* The least row before which `work` packed rows lie: what divides rows of different lengths fairly. */
static fastrnn_size row_after(const run_t *run, fastrnn_size work)
{
    fastrnn_size low = 0, high = run->B;
    while (low < high) {
        const fastrnn_size middle = (low + high) / 2;
        fastrnn_size before = 0;
        for (fastrnn_size t = 0; t < run->T; t++)
            before += least(run->offsets[t + 1] - run->offsets[t], middle);
        if (before < work)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static fastrnn_size sums_width(int cell, fastrnn_size H)
{
    return fastrnn_cell_shapes[cell].accumulators * vector_count(H) * LANES;
}

static fastrnn_size sums_size(int cell, fastrnn_size H, fastrnn_size rows)
{
    return (1 + rows) * sums_width(cell, H); /* the first is the bias */
}

static step_t begin_run(const run_t *run, const fastrnn_member *me)
{
    const fastrnn_cell_shape shape = fastrnn_cell_shapes[run->cell];
    const fastrnn_member all = {.size = 1};
    /* Rows need no barrier, but each thread reads all weights; below some four rows a thread that reading
     * is the work, and units divide it. */
    const int split_units = me->size > 1 && run->B < 4 * me->size;
    const fastrnn_size N = run->offsets[run->T];
    span_t rows = share_of(split_units ? &all : me, run->B, 1);
    if (!split_units && me->size > 1 && N < run->T * run->B)
        rows = (span_t){row_after(run, N * me->rank / me->size),
                        me->rank + 1 < me->size ? row_after(run, N * (me->rank + 1) / me->size) : run->B};
    return (step_t){
        .run = run,
        .shape = shape,
        .AH = shape.accumulators * run->H,
        .direct = shape.hidden_blocks * run->H,
        .width = sums_width(run->cell, run->H),
        .bias = run->sums,
        .project_by_step = run->B >= 16 && run->packed_ih, /* unpacked weights have no tile that takes two products */
        .split_units = split_units,
        .rows = rows,
        .units = share_of(split_units ? me : &all, vector_count(run->H), 1),
        .out = share_of(split_units ? me : &all, vector_count(run->P), 1),
    };
}

INLINE fastrnn_size rows_at(const run_t *run, fastrnn_size t)
{
    return t < 0 || t >= run->T ? 0 : run->offsets[t + 1] - run->offsets[t];
}

/* How many steps the chunk after the first `done` takes: as many as fit run->chunk rows, at least one. */
static fastrnn_size next_chunk(const run_t *run, fastrnn_size done, int from_end)
{
    const fastrnn_size *offsets = run->offsets, edge = run->T - done;
    fastrnn_size steps = 1;
    if (from_end)
        while (steps < edge && offsets[edge] - offsets[edge - steps - 1] <= run->chunk)
            steps++;
    else
        while (done + steps < run->T && offsets[done + steps + 1] - offsets[done] <= run->chunk)
            steps++;
    return steps;
}

/* Set the step's rows, and where the states before it lie. */
static void go_to(step_t *s, fastrnn_size t)
{
    const run_t *run = s->run;
    const fastrnn_size before = run->reverse ? t + 1 : t - 1, there = rows_at(run, before);
    s->t = t;
    s->first = run->offsets[t];
    s->n = rows_at(run, t);
    s->old = there < s->n ? there : s->n;
    s->first_old = s->old ? run->offsets[before] : 0;
    s->h_old = (const real *)run->y + s->first_old * run->ldy;
    s->h_new = run->h;
}

INLINE void wait_for_members(const step_t *s, const fastrnn_member *me)
{
    if (s->split_units)
        fastrnn_barrier(me);
}

/* ---- forward -------------------------------------------------------------------------------------- */

static void apply_forward(const void *context, fastrnn_size row, fastrnn_size n, fastrnn_size unit,
                                 fastrnn_size end, real *to, fastrnn_size ld)
{
    const step_t *s = context;
    const run_t *run = s->run;
    const fastrnn_size H = run->H, at = s->first + row, ldh = run->projected ? H : run->ldy;
    cells[run->cell].forward(&(fastrnn_cell_forward){
        .n = n,
        .H = H,
        .unit = unit,
        .end = end,
        .sums = {to + row * ld, ld, LANES, s->shape.accumulators},
        /* What is kept may be y, which is written anyway. */
        .gates = run->gates && run->gates != run->y ? (real *)run->gates + at * s->AH : 0,
        .h_prev = s->h_prev + row * s->ld_prev,
        .ld_prev = s->ld_prev,
        .h = run->projected ? (real *)run->unit + row * H : (real *)run->y + at * ldh,
        .ldh = ldh,
        .c = run->c ? (real *)run->c + row * H : 0,
        .c_kept = run->c_kept ? (real *)run->c_kept + at * H : 0,
    });
}

static void apply_reset_forward(const void *context, fastrnn_size row, fastrnn_size n, fastrnn_size unit,
                                       fastrnn_size end, real *to, fastrnn_size ld)
{
    const step_t *s = context;
    const fastrnn_size H = s->run->H;
    cells[s->run->cell].reset_forward(&(fastrnn_cell_forward){
        .n = n,
        .H = H,
        .unit = unit,
        .end = end,
        .sums = {to + row * ld, ld, LANES, s->shape.accumulators},
        .h_prev = s->h_prev + row * s->ld_prev,
        .ld_prev = s->ld_prev,
        .rh = (real *)s->run->unit + row * H,
    });
}

/* A row of sums that is the bias: of the blocks of either, as their products, to its accumulator. */
static void set_bias_row(const step_t *s)
{
    const run_t *run = s->run;
    const int A = s->shape.accumulators, gates = s->shape.gates, input = s->shape.input_blocks;
    const fastrnn_size H = run->H;
    for (int block = 0; block < A; block++) {
        const int from = block < input ? block : gates - 1; /* of bias_ih */
        const int has_ih = run->bias_ih && (block < input || block == A - 1), has_hh = run->bias_hh && block < gates;
        const real *ih = (const real *)run->bias_ih + (has_ih ? from * H : 0);
        const real *hh = (const real *)run->bias_hh + (has_hh ? block * H : 0);
        real *to = (real *)run->sums + block * LANES;
        for (fastrnn_size k = 0; k < H; k += LANES, to += A * LANES) {
            const fastrnn_size m = least(H - k, LANES);
            V sum = has_ih ? v_load(ih + k, m) : v_set(0);
            if (has_hh)
                sum += v_load(hh + k, m);
            *(V *)to = sum;
        }
    }
}

/* Where the products of a cell find their sums. A block feeds the accumulator of its number, and the last block the last,
 * which may be one further on. */
typedef struct {
    fastrnn_size input[MOST_COLUMNS], hidden[MOST_COLUMNS], reset[MOST_COLUMNS];
} cell_columns;
#define CELL_COLUMNS(CELL, GATES_, A, INPUT, HIDDEN, ...)                                                    \
    {COLUMNS(GATES_, A, A - 1), COLUMNS(HIDDEN, A, HIDDEN - 1), COLUMNS(1, A, HIDDEN)},
static const cell_columns columns_of_cells[FASTRNN_CELLS] = {FASTRNN_CELL_LIST(CELL_COLUMNS)};

/* The products of a step, but for its rows of x, h and sums. */
static void make_forward(step_t *s, const fastrnn_member *me)
{
    const run_t *run = s->run;
    const fastrnn_cell_shape shape = s->shape;
    const fastrnn_size I = run->I, H = run->H, P = run->P, stride = shape.accumulators * LANES;
    const int hidden = shape.hidden_blocks;
    const cell_columns *columns = &columns_of_cells[run->cell];
    /* sums = bias + x W_ih^T, each block to its accumulator */
    s->input = (product_t){
        .me = me,
        .K = I,
        .units = H,
        .blocks = shape.gates,
        .w = {run->packed_ih, weight_width(shape.gates), I},
        .matrix = run->weight_ih,
        .ld_matrix = I,
        .a_row = I,
        .a_k = 1,
        .from = s->bias,
        .ld_to = s->width,
        .stride = stride,
        .column = columns->input,
        .sums = 1,
    };
    /* sums += h W_hh^T */
    s->hidden = (product_t){
        .me = me,
        .K = P,
        .units = H,
        .blocks = hidden,
        .w = {run->packed_hh, weight_width(hidden), P},
        .matrix = run->weight_hh,
        .ld_matrix = P,
        .a_k = 1,
        .ld_from = s->width,
        .ld_to = s->width,
        .stride = stride,
        .column = columns->hidden,
        .sums = 1,
    };
    if (s->project_by_step) {
        s->hidden.before = &s->input;
        s->hidden.continues = s->hidden.compact = hidden == shape.gates;
        if (s->hidden.continues) /* what no input feeds begins with its bias */
            s->hidden.from = s->bias, s->hidden.ld_from = 0;
    }
    if (shape.has_reset) { /* sums of the last block += (r h) W_hh^T */
        s->reset = (product_t){
            .me = me,
            .K = H,
            .units = H,
            .blocks = 1,
            .w = {run->packed_hh, weight_width(1), H},
            .matrix = (const real *)run->weight_hh + s->direct * P,
            .ld_matrix = H,
            .a = run->unit,
            .a_row = H,
            .a_k = 1,
            .ld_from = s->width,
            .ld_to = s->width,
            .stride = stride,
            .column = columns->reset,
            .sums = 1,
        };
        if (s->reset.w.at)
            s->reset.w.at += packed_size(hidden, H, P);
    }
    if (run->projected) { /* y = (o tanh(c)) W_hr^T */
        s->output = (product_t){
            .me = me,
            .K = H,
            .units = P,
            .blocks = 1,
            .w = {run->packed_hr, weight_width(1), H},
            .matrix = run->weight_hr,
            .ld_matrix = H,
            .a = run->unit,
            .a_row = H,
            .a_k = 1,
            .ld_to = run->ldy,
            .stride = LANES,
            .column = plain_columns,
        };
    }
}

/* The accumulator that no input feeds begins as its bias. */
static void set_bias(const step_t *s, span_t rows, span_t units, real *sums)
{
    const fastrnn_size A = s->shape.accumulators, block = s->shape.input_blocks;
    if (A > s->shape.gates)
        for (fastrnn_size row = rows.from; row < rows.to; row++)
            for (fastrnn_size k = units.from; k < units.to; k++) {
                const fastrnn_size column = (k * A + block) * LANES;
                *(V *)(sums + row * s->width + column) = *(const V *)(s->bias + column);
            }
}

/* The inputs of a whole chunk. */
static void project(step_t *s, fastrnn_size first, fastrnn_size rows, real *sums, const fastrnn_member *me)
{
    const fastrnn_member all = {.size = 1};
    const int by_rows = rows >= 8 * me->size;
    const span_t mine = share_of(by_rows ? me : &all, rows, 1);
    const span_t units = share_of(by_rows ? &all : me, vector_count(s->run->H), 1);
    s->input.a = (const real *)s->run->x + first * s->run->I;
    s->input.to = sums;
    run_product(&s->input, mine.from, mine.to, units.from, units.to, 0, 0);
    set_bias(s, mine, units, sums);
}

/* A product with the states before the step: of rows that have a step before, then of those that begin. */
static void from_states(step_t *s, product_t *p, epilogue_t epilogue)
{
    const run_t *run = s->run;
    const fastrnn_size from = s->rows.from, to = least(s->rows.to, s->n);
    const fastrnn_size middle = least(greatest(from, s->old), to);
    for (int part = 0; part < 2; part++) {
        s->h_prev = part ? s->h_new : s->h_old;
        s->ld_prev = part ? run->P : run->ldy;
        if (p == &s->hidden)
            p->a = s->h_prev, p->a_row = s->ld_prev;
        run_product(p, part ? middle : from, part ? to : middle, s->units.from, s->units.to, epilogue, s);
    }
}

static void step_forward(step_t *s, fastrnn_size t, real *sums, const fastrnn_member *me)
{
    const run_t *run = s->run;
    go_to(s, t);
    s->hidden.to = sums;
    s->hidden.downward = t & 1;
    if (s->project_by_step)
        s->input.a = (const real *)run->x + s->first * run->I;
    if (!s->hidden.continues)
        s->hidden.from = sums;
    if (!s->shape.has_reset) {
        from_states(s, &s->hidden, apply_forward);
    } else {
        from_states(s, &s->hidden, apply_reset_forward);
        wait_for_members(s, me);
        s->reset.from = s->reset.to = sums;
        s->reset.downward = t & 1;
        from_states(s, &s->reset, apply_forward);
    }
    if (run->projected) {
        wait_for_members(s, me);
        s->output.to = (real *)run->y + s->first * run->ldy;
        run_product(&s->output, s->rows.from, least(s->rows.to, s->n), s->out.from, s->out.to, 0, 0);
    }
    wait_for_members(s, me);
}

/* The final state of every row: its h of the last step that it took. */
static void final_state(const run_t *run, const fastrnn_member *me)
{
    const span_t mine = share_of(me, run->B, 1);
    for (fastrnn_size t = run->reverse ? 0 : run->T - 1, done = 0; t >= 0 && done < run->B; t--) {
        const fastrnn_size n = rows_at(run, t);
        const real *y = (const real *)run->y + run->offsets[t] * run->ldy;
        for (fastrnn_size row = greatest(done, mine.from); row < least(n, mine.to); row++)
            memcpy((real *)run->h + row * run->P, y + row * run->ldy, (size_t)run->P * sizeof(real));
        done = greatest(done, n);
    }
}

static void work_forward(void *context, const fastrnn_member *me)
{
    run_t *run = context;
    step_t s = begin_run(run, me);
    real *sums = (real *)run->sums + s.width;
    unsigned turn = 0;
    make_forward(&s, me);
    if (me->rank == 0)
        set_bias_row(&s);
    fastrnn_barrier(me);
    for (fastrnn_size done = 0, steps; done < run->T; done += steps, turn++) {
        steps = next_chunk(run, done, run->reverse);
        const fastrnn_size t = run->reverse ? run->T - done - steps : done, first = run->offsets[t];
        if (!s.project_by_step) {
            project(&s, first, run->offsets[t + steps] - first, sums, me);
            fastrnn_barrier(me);
        }
        for (fastrnn_size step = 0; step < steps; step++) {
            const fastrnn_size now = run->reverse ? t + steps - 1 - step : t + step;
            /* those of a step that projects its own inputs are wanted no longer than that */
            step_forward(&s, now, s.project_by_step ? sums : sums + (run->offsets[now] - first) * s.width, me);
        }
        if (fastrnn_ended(me, turn))
            return;
    }
    final_state(run, me);
}

/* ---- backward ------------------------------------------------------------------------------------- */

/* to (n, units) = a (n, K) times panels of `depth` rows, of a plain matrix. */
static product_t plain_product(const fastrnn_member *me, fastrnn_size K, fastrnn_size units, const real *panels, fastrnn_size depth,
                                      const real *a, fastrnn_size a_row, real *to)
{
    product_t p = {
        .me = me,
        .K = K,
        .units = units,
        .blocks = 1,
        .w = {panels, weight_width(1), depth},
        .a = a,
        .a_row = a_row,
        .a_k = 1,
        .ld_from = units,
        .to = to,
        .ld_to = units,
        .stride = LANES,
        .column = plain_columns,
    };
    return p;
}

/* The cells, of this member's rows and units of the step. The rows are whole, not a group of units at a time as in
 * forward: what forward kept comes from beyond the caches, and in the order of memory. */
static void apply_backward(const step_t *s)
{
    const run_t *run = s->run;
    const fastrnn_size H = run->H, unit = s->units.from * LANES, end = least(s->units.to * LANES, H);
    const fastrnn_size to = least(s->rows.to, s->n);
    for (fastrnn_size row = s->rows.from, next; row < to; row += next) { /* those with a step before, the others */
        const int has_before = row < s->old;
        const fastrnn_size at = s->first + row, ld_prev = has_before ? run->ldy : run->P;
        const real *h_prev = (has_before ? s->h_old : s->h_new) + row * ld_prev, *c = 0, *c_prev = 0;
        next = (has_before ? least(to, s->old) : to) - row;
        if (s->shape.has_c) {
            c = (const real *)run->c_kept + at * H;
            c_prev = has_before ? (const real *)run->c_kept + (s->first_old + row) * H
                                : (const real *)run->c + row * H;
        }
        cells[run->cell].backward(&(fastrnn_cell_backward){
            .n = next,
            .H = H,
            .unit = unit,
            .end = end,
            .gates = s->gates + row * s->AH,
            .h_prev = h_prev,
            .ld_prev = ld_prev,
            .c = c,
            .c_prev = c_prev,
            .dy = run->dy && !run->projected ? (const real *)run->dy + at * run->lddy : 0,
            .lddy = run->lddy,
            .dgates = s->dgates + row * s->AH,
            .dh = (real *)(run->projected ? run->dunit : run->dh) + row * H,
            .dc = run->dc ? (real *)run->dc + row * H : 0,
            .h = s->units_kept ? s->units_kept + row * H : 0,
        });
    }
}

static void apply_reset_backward(const step_t *s)
{
    const run_t *run = s->run;
    const fastrnn_size H = run->H, unit = s->units.from * LANES, end = least(s->units.to * LANES, H);
    const fastrnn_size to = least(s->rows.to, s->n);
    for (fastrnn_size row = s->rows.from, next; row < to; row += next) {
        const int has_before = row < s->old;
        const fastrnn_size ld_prev = has_before ? run->ldy : H;
        next = (has_before ? least(to, s->old) : to) - row;
        cells[run->cell].reset_backward(&(fastrnn_cell_backward){
            .n = next,
            .H = H,
            .unit = unit,
            .end = end,
            .gates = s->gates + row * s->AH,
            .h_prev = (has_before ? s->h_old : s->h_new) + row * ld_prev,
            .ld_prev = ld_prev,
            .drh = s->units_kept + row * H,
            .dgates = s->dgates + row * s->AH,
            .dh = (real *)run->dh + row * H,
        });
    }
}

/* dh += dy of the projected state, and a copy for dW_hr. */
static void apply_upstream(const step_t *s)
{
    const run_t *run = s->run;
    const fastrnn_size unit = s->out.from * LANES, end = least(s->out.to * LANES, run->P);
    for (fastrnn_size row = s->rows.from; row < least(s->rows.to, s->n); row++) {
        real *dh = (real *)run->dh + row * run->P, *kept = s->dh_kept + row * run->P;
        const real *dy = run->dy ? (const real *)run->dy + (s->first + row) * run->lddy : 0;
        FOR_UNITS(
            V sum = v_load(dh + k, m);
            if (dy)
                sum += v_load(dy + k, m);
            v_store(dh + k, m, sum);
            v_store(kept + k, m, sum););
    }
}

/* dh of the step before, from the dgates (n, AH) of one. */
static void carry_back(step_t *s, const real *dgates, fastrnn_size n)
{
    s->back.a = dgates;
    s->back.downward = s->t & 1;
    run_product(&s->back, s->rows.from, least(s->rows.to, n), s->out.from, s->out.to, 0, 0);
}

/* dgates of step t, given those (n, AH) of the step after it if it is in the same chunk, else n = 0. */
static void step_backward(step_t *s, const real *dgates, fastrnn_size n, const fastrnn_member *me)
{
    const run_t *run = s->run;
    const fastrnn_size H = run->H, P = run->P, to = least(s->rows.to, s->n);
    carry_back(s, dgates, n);
    if (run->projected) {
        apply_upstream(s);
        wait_for_members(s, me);
        product_t p = plain_product(me, P, H, run->columns_hr, P, run->dh, P, run->dunit);
        run_product(&p, s->rows.from, to, s->units.from, s->units.to, 0, 0);
    }
    apply_backward(s);
    if (s->shape.has_reset) {
        wait_for_members(s, me);
        product_t p = plain_product(me, H, H, run->columns_hh, s->shape.gates * H, s->dgates + s->direct, s->AH,
                                           s->units_kept);
        p.first_k = s->direct;
        run_product(&p, s->rows.from, to, s->units.from, s->units.to, 0, 0);
        apply_reset_backward(s);
    }
    wait_for_members(s, me);
}

/* Panels of the states that the chunk's rows started from: rows of y as far as they follow each other, so
 * that a full batch is one copy, and of the initial state. */
static void pack_h_prev(step_t *s, fastrnn_size t, fastrnn_size steps, fastrnn_size rows, span_t vectors)
{
    const run_t *run = s->run;
    const fastrnn_size first = run->offsets[t];
    const real *from = 0;
    fastrnn_size to = 0, count = 0;
    for (fastrnn_size step = 0; step <= steps; step++) {
        if (step < steps)
            go_to(s, t + step);
        const int follows = step < steps && count && s->old && s->h_old == from + count * run->ldy &&
                            s->first - first == to + count;
        if (!follows) {
            if (count)
                panels_of_columns(run->P, COLUMN_WIDTH, rows, to, count, from, run->ldy, run->panels_h,
                                  vectors.from, vectors.to);
            from = s->h_old, to = s->first - first, count = 0;
        }
        if (step < steps) {
            count += s->old;
            if (s->n > s->old)
                panels_of_columns(run->P, COLUMN_WIDTH, rows, s->first - first + s->old, s->n - s->old,
                                  s->h_new + s->old * run->P, run->P, run->panels_h, vectors.from, vectors.to);
        }
    }
}

/* What a chunk of steps adds to the gradients of the parameters, and its dx. The first chunk finds nothing to
 * add to, except for the bias. */
static void chunk_products(step_t *s, fastrnn_size t, fastrnn_size steps, int first_chunk,
                                  const fastrnn_member *me)
{
    const run_t *run = s->run;
    const fastrnn_size H = run->H, P = run->P, I = run->I, AH = s->AH, direct = s->direct;
    const fastrnn_size direct_x = s->shape.input_blocks * H;
    const fastrnn_size first = run->offsets[t], rows = run->offsets[t + steps] - first;
    const real *x = (const real *)run->x + first * I, *dgates = run->dgates;
    /* Those of a projection are multiplied with rows of dh_kept, not with columns of panels. */
    const int units_width = run->projected ? weight_width(1) : COLUMN_WIDTH;
    span_t mine;
    if (!fastrnn_stopping(me, 0)) {
        mine = share_of(me, vector_count(AH), 1);
        if (run->dweight_ih || run->dweight_hh)
            panels_of_columns(AH, 1, rows, 0, rows, dgates, AH, run->panels_dgates, mine.from, mine.to);
        add_rows(rows, AH, mine.from * LANES, least(mine.to * LANES, AH), dgates, run->bias);
        if (run->dweight_hh)
            pack_h_prev(s, t, steps, rows, share_of(me, vector_count(P), 1));
        mine = share_of(me, vector_count(I), 1);
        if (run->dweight_ih)
            panels_of_columns(I, COLUMN_WIDTH, rows, 0, rows, x, I, run->panels_x, mine.from, mine.to);
        mine = share_of(me, vector_count(H), 1);
        if (run->panels_units && (run->dweight_hh || run->dweight_hr))
            panels_of_columns(H, units_width, rows, 0, rows, run->units, H, run->panels_units, mine.from, mine.to);
    }
    fastrnn_barrier(me);

    /* Gradients of weights: columns of dgates by columns of what they were multiplied with. */
    product_t p = plain_product(me, rows, P, run->panels_h, rows, run->panels_dgates, 1, run->dweight_hh);
    p.w.width = COLUMN_WIDTH;
    p.a_k = LANES;
    p.a_panel = panel_size(rows, 1);
    if (run->dweight_hh) {
        p.from = first_chunk ? 0 : p.to;
        mine = share_of(me, direct, COLUMN_ROWS);
        run_product(&p, mine.from, mine.to, 0, vector_count(P), 0, 0);
        if (s->shape.has_reset) {
            p.w.at = run->panels_units;
            mine = share_of(me, H, COLUMN_ROWS);
            run_product(&p, direct + mine.from, direct + mine.to, 0, vector_count(H), 0, 0);
        }
    }
    if (run->dweight_ih) {
        p.units = p.ld_from = p.ld_to = I;
        p.w.at = run->panels_x;
        p.to = run->dweight_ih;
        p.from = first_chunk ? 0 : p.to;
        mine = share_of(me, direct_x, COLUMN_ROWS);
        run_product(&p, mine.from, mine.to, 0, vector_count(I), 0, 0);
        if (s->shape.gates > s->shape.input_blocks) {
            p.a_first = AH - H;
            p.to += direct_x * I;
            p.from = first_chunk ? 0 : p.to;
            mine = share_of(me, H, COLUMN_ROWS);
            run_product(&p, mine.from, mine.to, 0, vector_count(I), 0, 0);
        }
    }
    if (run->dweight_hr) {
        product_t q = plain_product(me, rows, H, run->panels_units, rows, run->dh_kept, 1, run->dweight_hr);
        q.a_k = P;
        q.from = first_chunk ? 0 : q.to;
        mine = share_of(me, P, COLUMN_ROWS);
        run_product(&q, mine.from, mine.to, 0, vector_count(H), 0, 0);
    }
    if (run->dx) {
        product_t q = plain_product(me, direct_x, I, run->columns_ih, s->shape.gates * H, dgates, AH,
                                           (real *)run->dx + first * I);
        q.from = run->accumulate_dx ? q.to : 0;
        mine = share_of(me, rows, 1);
        run_product(&q, mine.from, mine.to, 0, vector_count(I), 0, 0);
        if (s->shape.gates > s->shape.input_blocks) {
            q.K = H;
            q.first_k = direct_x;
            q.a += AH - H;
            q.from = q.to;
            run_product(&q, mine.from, mine.to, 0, vector_count(I), 0, 0);
        }
    }
}

static void work_backward(void *context, const fastrnn_member *me)
{
    run_t *run = context;
    step_t s = begin_run(run, me);
    unsigned turn = 0;
    s.back = plain_product(me, s.direct, run->P, run->columns_hh, s.shape.gates * run->H, 0, s.AH, run->dh);
    s.back.from = run->projected ? 0 : run->dh;
    for (fastrnn_size done = 0, steps; done < run->T; done += steps, turn++) {
        steps = next_chunk(run, done, !run->reverse);
        const fastrnn_size t = run->reverse ? done : run->T - done - steps, first = run->offsets[t];
        fastrnn_size after = 0; /* rows of the step that came before this one in this loop */
        s.dgates = 0;
        for (fastrnn_size step = 0; step < steps; step++) {
            const fastrnn_size now = run->reverse ? t + step : t + steps - 1 - step;
            const fastrnn_size at = run->offsets[now] - first;
            const real *dgates_after = s.dgates;
            go_to(&s, now);
            s.gates = (const real *)run->gates + s.first * s.AH;
            s.dgates = (real *)run->dgates + at * s.AH;
            s.units_kept = run->units ? (real *)run->units + at * run->H : 0;
            s.dh_kept = run->dh_kept ? (real *)run->dh_kept + at * run->P : 0;
            step_backward(&s, dgates_after, after, me);
            after = s.n;
        }
        carry_back(&s, s.dgates, after); /* the next chunk takes over from dh */
        fastrnn_barrier(me);
        chunk_products(&s, t, steps, done == 0, me);
        if (fastrnn_ended(me, turn))
            return;
    }
}

/* ---- the table's entries -------------------------------------------------------------------------- */

/* Work that is too small to share: waking a thread costs some microseconds, a barrier some tenths. */
#ifndef FASTRNN_SHARED_CALL_FLOPS /* tests want even the smallest work to be shared */
#define FASTRNN_SHARED_CALL_FLOPS 2000000
#define FASTRNN_SHARED_STEP_FLOPS 80000
#endif

static int useful_threads(const run_t *run)
{
    const fastrnn_size G = fastrnn_cell_shapes[run->cell].gates * run->H;
    const double call = 2.0 * (double)run->offsets[run->T] * (double)G * (double)(run->I + run->P);
    int threads = run->threads;
    if (call < FASTRNN_SHARED_CALL_FLOPS)
        return 1;
    if (run->B < 4 * threads) { /* units are divided */
        const double step = 2.0 * (double)run->B * (double)G * (double)run->P;
        while (threads > 1 &&
               (step < FASTRNN_SHARED_STEP_FLOPS * (threads - 1) || vector_count(run->H) < 2 * threads))
            threads--;
    }
    return threads;
}

static int run_forward(fastrnn_run *run)
{
    return fastrnn_parallel(useful_threads(run), work_forward, run, &run->poll);
}

static int run_backward(fastrnn_run *run)
{
    return fastrnn_parallel(useful_threads(run), work_backward, run, &run->poll);
}

static void pack_all_rows(int blocks, fastrnn_size units, fastrnn_size K, const void *w, void *panels)
{
    panels_of_rows(blocks, units, K, w, K, panels);
}

static void pack_all_columns(fastrnn_size units, fastrnn_size K, const void *w, void *panels)
{
    panels_of_columns(units, weight_width(1), K, 0, K, w, units, panels, 0, vector_count(units));
}

typedef struct {
    product_t p; /* but for the member */
    fastrnn_size rows;
} shared_product;

static void work_multiply(void *context, const fastrnn_member *me)
{
    const shared_product *shared = context;
    product_t p = shared->p;
    p.me = me;
    const fastrnn_member all = {.size = 1};
    const int by_rows = shared->rows >= 8 * me->size;
    const span_t rows = share_of(by_rows ? me : &all, shared->rows, 1);
    const span_t vectors = share_of(by_rows ? &all : me, vector_count(p.units), 1);
    run_product(&p, rows.from, rows.to, vectors.from, vectors.to, 0, 0);
}

static int multiply_all(fastrnn_size M, fastrnn_size N, fastrnn_size K, const void *a, fastrnn_size a_row,
                        fastrnn_size a_k, const void *panels, void *c, int threads, const fastrnn_poll *poll)
{
    shared_product shared = {plain_product(NULL, K, N, panels, K, a, a_row, c), M};
    shared.p.a_k = a_k;
    if (2.0 * (double)M * (double)N * (double)K < FASTRNN_SHARED_CALL_FLOPS)
        threads = 1;
    return fastrnn_parallel(threads, work_multiply, &shared, poll);
}
