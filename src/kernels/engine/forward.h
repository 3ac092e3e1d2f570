/* A run forward. A chunk's inputs are projected at once,
 *     sums[t] = bias + x[t] W_ih^T
 * and then each step multiplies in its state and lets the cell loose on every group of units as soon as their sums stand,
 * while they are in L1:
 *     sums[t] += h[t-1] W_hh^T;  h[t] = cell(sums[t])
 * h[t] is written to the history, where the next step reads it. From 16 rows on, and where there is one step only, a step
 * projects its own inputs (project_by_step).
 *
 * A row of sums has the accumulators of each vector of units side by side, so it is as wide as whole vectors. */

typedef struct {
    step_t step;
    const fastrnn_forward_run *run;
    int project_by_step;
    fastrnn_size width;                     /* of a row of sums */
    const real *bias;                       /* as a row of sums */
    const rows_t *h_prev;                   /* of the rows at hand: one of the two of the step */
    product_t input, hidden, reset, output; /* of every step; its rows are set with each */
} forward_t;

/* ---- the cell, of the rows and units whose sums stand ------------------------------------------------ */

/* Members are set one by one, as in set_product. */
static void apply_forward(const void *context, fastrnn_size row, fastrnn_size n, fastrnn_size unit, fastrnn_size end,
                          real *to, fastrnn_size ld)
{
    const forward_t *f = context;
    const step_t *s = &f->step;
    const fastrnn_run *run = s->run;
    const fastrnn_layer *layer = s->layer;
    const fastrnn_size H = layer->H, at = s->first + row;
    fastrnn_cell_forward cell;
    cell.n = n, cell.H = H, cell.unit = unit, cell.end = end;
    cell.sums = (fastrnn_sums){to + row * ld, ld, LANES, layer->shape.accumulators};
    cell.kept = run->kept ? (real *)run->kept + at * layer->KH : 0;
    cell.h_prev = row_of(*f->h_prev, row), cell.ld_prev = f->h_prev->ld;
    cell.h = layer->projected ? (real *)f->run->unit + row * H : row_of(s->history, at);
    cell.ldh = layer->projected ? H : s->history.ld;
    for (int part = 0; part < layer->shape.inner; part++) {
        cell.inner[part] = (real *)run->inner[part] + row * H;
        cell.inner_kept[part] = run->inner_rows[part] ? (real *)run->inner_rows[part] + at * H : 0;
    }
    for (int k = 0; k < layer->shape.vectors; k++)
        cell.vector[k] = run->weights->vector[k];
    cells[layer->cell].forward(&cell);
}

static void apply_reset_forward(const void *context, fastrnn_size row, fastrnn_size n, fastrnn_size unit,
                                fastrnn_size end, real *to, fastrnn_size ld)
{
    const forward_t *f = context;
    const fastrnn_layer *layer = f->step.layer;
    cells[layer->cell].reset_forward(&(fastrnn_cell_forward){
        .n = n,
        .H = layer->H,
        .unit = unit,
        .end = end,
        .sums = {to + row * ld, ld, LANES, layer->shape.accumulators},
        .h_prev = row_of(*f->h_prev, row),
        .ld_prev = f->h_prev->ld,
        .rh = (real *)f->run->unit + row * layer->H,
    });
}

/* ---- bias -------------------------------------------------------------------------------------------- */

/* Write the combined bias as one row in the layout of the sums. Block b of b_ih and of b_hh goes to the accumulator that
 * block b of the corresponding product feeds. In the arrays, the block of gate b is order[b], or b without an order. */
static void set_bias_row(const fastrnn_layer *layer, const fastrnn_weights *w, const uint8_t *order, void *row)
{
    const int A = layer->shape.accumulators, gates = layer->shape.gates, input = layer->shape.input_blocks;
    const fastrnn_size H = layer->H;
    for (int block = 0; block < A; block++) {
        const int from = block < input ? block : gates - 1; /* of bias_ih */
        const int has_ih = layer->has_bias_ih && (block < input || block == A - 1);
        const int has_hh = layer->has_bias_hh && block < gates;
        const real *ih = has_ih ? (const real *)w->bias_ih + (order ? order[from] : from) * H : 0;
        const real *hh = has_hh ? (const real *)w->bias_hh + (order ? order[block] : block) * H : 0;
        real *to = (real *)row + block * LANES;
        for (fastrnn_size k = 0; k < H; k += LANES, to += A * LANES) {
            const fastrnn_size m = least(H - k, LANES);
            V sum = ih ? v_load(ih + k, m) : v_set(0);
            if (hh)
                sum += v_load(hh + k, m);
            *(V *)to = sum;
        }
    }
}

/* The accumulator that no input feeds begins as its bias. */
static void set_bias(const forward_t *f, span_t rows, span_t units, real *sums)
{
    const fastrnn_cell_shape shape = f->step.layer->shape;
    const fastrnn_size A = shape.accumulators, block = shape.input_blocks;
    if (A > shape.gates)
        for (fastrnn_size row = rows.from; row < rows.to; row++)
            for (fastrnn_size k = units.from; k < units.to; k++) {
                const fastrnn_size column = (k * A + block) * LANES;
                *(V *)(sums + row * f->width + column) = *(const V *)(f->bias + column);
            }
}

/* ---- products ---------------------------------------------------------------------------------------- */

/* The columns of a cell's products. A block feeds the accumulator of its number, and the last block the last, which may be
 * one further on. */
typedef struct {
    columns_t input, hidden, reset;
} cell_columns;
#define CELL_COLUMNS(CELL, GATES_, A, INPUT, HIDDEN, ...) \
    {COLUMNS(GATES_, A, A - 1, WEIGHT_WIDTH(GATES_), 1),  \
     COLUMNS(HIDDEN + !HIDDEN, A, HIDDEN - 1, WEIGHT_WIDTH(HIDDEN), 1), COLUMNS(1, A, HIDDEN, WEIGHT_WIDTH(1), 1)},
static const cell_columns columns_of_cells[FASTRNN_CELLS] = {FASTRNN_CELL_LIST(CELL_COLUMNS)};

/* sums += a w^T, w (blocks*H, K) in panels, or as it is where there are none. Members are set one by one: an initializer
 * clears the struct first, by an instruction that is slow to start (rep stos), and a step of a small layer has several. */
static void set_product(const forward_t *f, product_t *p, const columns_t *columns, fastrnn_size K, const real *panels,
                        const real *w)
{
    p->columns = columns;
    p->K = K, p->units = f->step.layer->H;
    p->before = 0, p->continues = p->compact = p->downward = 0;
    p->panels = panels, p->depth = K, p->first_k = 0;
    p->matrix = w, p->ld_matrix = K;
    p->a = 0, p->a_row = K, p->a_k = 1, p->a_panel = p->a_first = 0;
    p->from = 0, p->ld_from = f->width;
    p->to = 0, p->ld_to = f->width;
    p->schedule.rows = 0;
}

/* The products of a step, but for its rows of x, h and sums. */
static void make_forward(forward_t *f)
{
    const fastrnn_run *run = f->step.run;
    const fastrnn_layer *layer = f->step.layer;
    const fastrnn_weights *w = run->weights;
    const fastrnn_cell_shape shape = layer->shape;
    const fastrnn_size H = layer->H, P = layer->P;
    const int hidden = shape.hidden_blocks;
    const cell_columns *columns = &columns_of_cells[layer->cell];
    set_product(f, &f->input, &columns->input, layer->I, run->panels.ih, w->weight_ih);
    f->input.from = f->bias, f->input.ld_from = 0;
    set_product(f, &f->hidden, &columns->hidden, P, run->panels.hh, w->weight_hh);
    if (f->project_by_step) {
        f->hidden.before = &f->input;
        f->hidden.continues = hidden == shape.gates;
        f->hidden.compact = f->hidden.continues && run->B >= 16;
        if (f->hidden.continues) /* what no input feeds begins with its bias */
            f->hidden.from = f->bias, f->hidden.ld_from = 0;
    }
    if (shape.has_reset) { /* sums of the last block += (r h) W_hh^T */
        const real *panels = run->panels.hh ? (const real *)run->panels.hh + packed_size(hidden, H, P) : 0;
        set_product(f, &f->reset, &columns->reset, H, panels, (const real *)w->weight_hh + hidden * H * P);
        f->reset.a = f->run->unit;
    }
    if (layer->projected) { /* h = (o tanh(c)) W_hr^T */
        set_product(f, &f->output, &plain_columns, H, run->panels.hr, w->weight_hr);
        f->output.units = P;
        f->output.a = f->run->unit;
        f->output.ld_to = run->ldh;
    }
}

/* The inputs of a whole chunk. */
static void project(forward_t *f, real *sums)
{
    const step_t *s = &f->step;
    const fastrnn_member *me = s->me;
    const fastrnn_size first = s->run->offsets[s->from], rows = s->run->offsets[s->to] - first;
    const int by_rows = rows >= 8 * me->size;
    const span_t mine = share_of(by_rows ? me : &alone, rows, 1);
    const span_t units = share_of(by_rows ? &alone : me, vector_count(s->layer->H), 1);
    f->input.a = row_of(s->x, first), f->input.a_row = s->x.ld;
    f->input.to = sums;
    run_product(&f->input, me, mine.from, mine.to, units.from, units.to, 0, 0);
    set_bias(f, mine, units, sums);
    fastrnn_barrier(me);
}

/* A product with the states before the step: of rows that have a step before, then of those that begin. */
static void from_states(forward_t *f, product_t *p, epilogue_t epilogue)
{
    const step_t *s = &f->step;
    const fastrnn_size end = least(s->rows.to, s->n);
    for (fastrnn_size row = s->rows.from, next; row < end; row = next) {
        const int begins = row >= s->n_before;
        next = begins ? end : least(s->n_before, end);
        f->h_prev = begins ? &s->h_initial : &s->h_before;
        if (p == &f->hidden)
            p->a = f->h_prev->at, p->a_row = f->h_prev->ld;
        if (s->layer->shape.hidden_blocks)
            run_product(p, s->me, row, next, s->units.from, s->units.to, epilogue, f);
        else
            epilogue(f, row, next - row, s->units.from * LANES, least(s->units.to * LANES, s->layer->H), p->to,
                     p->ld_to);
    }
}

/* ---- steps ------------------------------------------------------------------------------------------- */

/* Rows that end with this step leave their state in `h`. */
static void keep_final(const step_t *s)
{
    const fastrnn_run *run = s->run;
    const fastrnn_size P = s->layer->P, alive = rows_at(run, s->layer->reverse ? s->t - 1 : s->t + 1);
    if (alive >= s->n)
        return;
    const span_t share = s->split_units ? share_of(s->me, s->n, 1) : s->rows;
    for (fastrnn_size row = greatest(alive, share.from); row < least(s->n, share.to); row++)
        memcpy((real *)run->h + row * P, row_of(s->history, s->first + row), (size_t)P * sizeof(real));
}

static void step_forward(forward_t *f, fastrnn_size t, real *sums)
{
    step_t *s = &f->step;
    go_to(s, t);
    f->hidden.to = sums;
    f->hidden.downward = t & 1;
    if (f->project_by_step)
        f->input.a = row_of(s->x, s->first), f->input.a_row = s->x.ld;
    if (!f->hidden.continues)
        f->hidden.from = sums;
    if (!s->layer->shape.has_reset) {
        from_states(f, &f->hidden, apply_forward);
    } else {
        from_states(f, &f->hidden, apply_reset_forward);
        wait_for_members(s);
        f->reset.from = f->reset.to = sums;
        f->reset.downward = t & 1;
        from_states(f, &f->reset, apply_forward);
    }
    if (s->layer->projected) {
        wait_for_members(s);
        f->output.to = row_of(s->history, s->first);
        run_product(&f->output, s->me, s->rows.from, least(s->rows.to, s->n), s->out.from, s->out.to, 0, 0);
    }
    wait_for_members(s);
    keep_final(s);
}

/* This member's part of the chunk's rows of y, where y is not the history. */
static void scatter_y(const step_t *s, const fastrnn_rows *y)
{
    const fastrnn_size first = s->run->offsets[s->from];
    const span_t mine = share_of(s->me, s->run->offsets[s->to] - first, 1);
    if (y->data)
        fastrnn_scatter(s->run, y, s->layer->P, first + mine.from, mine.to - mine.from, 1,
                        row_of(s->history, first + mine.from), s->history.ld);
}

static void work_forward(void *context, const fastrnn_member *me)
{
    const fastrnn_forward_run *forward = context;
    const fastrnn_run *run = &forward->run;
    const fastrnn_layer *layer = run->layer;
    forward_t f;
    begin_run(&f.step, run, me);
    f.run = forward;
    /* Unpacked weights have no tile that takes two products. */
    f.project_by_step = (run->B >= 16 || run->T == 1) && run->panels.ih && layer->shape.hidden_blocks;
    f.width = layer->shape.accumulators * vector_count(layer->H) * LANES;
    f.bias = run->panels.bias ? run->panels.bias : forward->sums;
    real *sums = (real *)forward->sums + f.width;
    unsigned turn = 0;
    make_forward(&f);
    if (f.bias == forward->sums) {
        if (me->rank == 0)
            set_bias_row(layer, run->weights, 0, forward->sums);
        fastrnn_barrier(me);
    }
    for (fastrnn_size done = 0, steps; done < run->T; done += steps, turn++) {
        steps = fastrnn_next_chunk(run, done, layer->reverse);
        const fastrnn_size from = layer->reverse ? run->T - done - steps : done, first = run->offsets[from];
        open_chunk(&f.step, from, from + steps, turn);
        if (run->x.scattered) {
            gather_x(&f.step);
            fastrnn_barrier(me);
        }
        if (!f.project_by_step)
            project(&f, sums);
        for (fastrnn_size step = 0; step < steps; step++) {
            const fastrnn_size t = layer->reverse ? from + steps - 1 - step : from + step;
            /* those of a step that projects its own inputs are wanted no longer than that */
            step_forward(&f, t, f.project_by_step ? sums : sums + (run->offsets[t] - first) * f.width);
        }
        if (fastrnn_ended(me, turn))
            return;
        scatter_y(&f.step, &forward->y); /* no member writes to this half of a ring before all have passed here */
    }
}

static int run_forward(const fastrnn_forward_run *run)
{
    return fastrnn_parallel(useful_threads(&run->run), work_forward, (void *)(uintptr_t)run, &run->run.poll);
}
