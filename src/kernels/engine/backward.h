/* A run of BPTT. It mirrors forward.h against the order of time: the product dgates[t] W_hh gives dh[t-1], on which the
 * cell's backward follows. What remains, dx and the gradients of the weights, are large products once a chunk is
 * through. */

typedef struct {
    step_t step;
    const fastrnn_backward_run *run;
    rows_t dy;                           /* of the chunk */
    real *dgates, *units_kept, *dh_kept; /* this step's rows of the chunk's scratch */
    product_t back;                      /* dh of the step before = dgates W_hh */
    product_t unit;                      /* gradient of o tanh(c) = dh W_hr */
    product_t reset;                     /* gradient of r*h_prev = da_n W_hn */
} backward_t;

/* to (n, units) = a (n, K) times panels of `depth` rows, of a plain matrix. */
static product_t plain_product(fastrnn_size K, fastrnn_size units, const real *panels, fastrnn_size depth,
                               const real *a, fastrnn_size a_row, real *to)
{
    return (product_t){
        .columns = &plain_columns,
        .K = K,
        .units = units,
        .panels = panels,
        .depth = depth,
        .a = a,
        .a_row = a_row,
        .a_k = 1,
        .ld_from = units,
        .to = to,
        .ld_to = units,
    };
}

/* ---- the steps of a chunk ---------------------------------------------------------------------------- */

/* Of this member's rows of the step, those from `row` on that have a step before, or else those that begin. */
typedef struct {
    fastrnn_size n;
    const rows_t *h_prev;
    int has_before;
} part_t;

static part_t part_of_step(const step_t *s, fastrnn_size row)
{
    const fastrnn_size to = least(s->rows.to, s->n);
    if (row < s->n_before)
        return (part_t){least(to, s->n_before) - row, &s->h_before, 1};
    return (part_t){to - row, &s->h_initial, 0};
}

/* The cells, of this member's rows and units of the step. The rows are whole, not a group of units at a time as in
 * forward: what forward kept comes from beyond the caches, and in the order of memory. */
static void apply_backward(const backward_t *b)
{
    const step_t *s = &b->step;
    const fastrnn_run *run = s->run;
    const fastrnn_layer *layer = s->layer;
    const fastrnn_size H = layer->H, to = least(s->rows.to, s->n);
    part_t part;
    for (fastrnn_size row = s->rows.from; row < to; row += part.n) {
        part = part_of_step(s, row);
        const fastrnn_size at = s->first + row;
        fastrnn_cell_backward cell;
        cell.n = part.n, cell.H = H;
        cell.unit = s->units.from * LANES, cell.end = least(s->units.to * LANES, H);
        cell.kept = run->kept ? (const real *)run->kept + at * layer->KH : 0;
        cell.h_prev = row_of(*part.h_prev, row), cell.ld_prev = part.h_prev->ld;
        cell.h = row_of(s->history, at), cell.ldh = s->history.ld;
        for (int k = 0; k < layer->shape.inner; k++) {
            const real *rows = run->inner_rows[k], *initial = run->inner[k];
            cell.inner[k] = rows + at * H;
            cell.inner_prev[k] = part.has_before ? rows + (s->first_before + row) * H : initial + row * H;
            cell.dinner[k] = (real *)b->run->dinner[k] + row * H;
        }
        for (int k = 0; k < layer->shape.vectors; k++)
            cell.vector[k] = run->weights->vector[k];
        cell.dy = b->dy.at && !layer->projected ? row_of(b->dy, at) : 0, cell.lddy = b->dy.ld;
        cell.dgates = b->dgates + row * layer->DH;
        cell.dh = (real *)(layer->projected ? b->run->dunit : b->run->dh) + row * H;
        cell.unprojected = b->units_kept ? b->units_kept + row * H : 0;
        cells[layer->cell].backward(&cell);
    }
}

static void apply_reset_backward(const backward_t *b)
{
    const step_t *s = &b->step;
    const fastrnn_layer *layer = s->layer;
    const fastrnn_size H = layer->H, to = least(s->rows.to, s->n);
    part_t part;
    for (fastrnn_size row = s->rows.from; row < to; row += part.n) {
        part = part_of_step(s, row);
        cells[layer->cell].reset_backward(&(fastrnn_cell_backward){
            .n = part.n,
            .H = H,
            .unit = s->units.from * LANES,
            .end = least(s->units.to * LANES, H),
            .kept = (const real *)s->run->kept + (s->first + row) * layer->KH,
            .h_prev = row_of(*part.h_prev, row),
            .ld_prev = part.h_prev->ld,
            .drh = b->units_kept + row * H,
            .dgates = b->dgates + row * layer->DH,
            .dh = (real *)b->run->dh + row * H,
        });
    }
}

/* dh += dy of the projected state, and a copy for dW_hr. */
static void apply_upstream(const backward_t *b)
{
    const step_t *s = &b->step;
    const fastrnn_size P = s->layer->P, unit = s->out.from * LANES, end = least(s->out.to * LANES, P);
    for (fastrnn_size row = s->rows.from; row < least(s->rows.to, s->n); row++) {
        real *dh = (real *)b->run->dh + row * P, *kept = b->dh_kept + row * P;
        const real *dy = b->dy.at ? row_of(b->dy, s->first + row) : 0;
        /* clang-format off */
        FOR_UNITS(
            V sum = v_load(dh + k, m);
            if (dy)
                sum += v_load(dy + k, m);
            v_store(dh + k, m, sum);
            v_store(kept + k, m, sum););
        /* clang-format on */
    }
}

/* dh of the step before, from the dgates (n, DH) of one. */
static void carry_back(backward_t *b, const real *dgates, fastrnn_size n)
{
    const step_t *s = &b->step;
    b->back.a = dgates;
    b->back.downward = s->t & 1;
    if (s->layer->shape.hidden_blocks)
        run_product(&b->back, s->me, s->rows.from, least(s->rows.to, n), s->out.from, s->out.to, 0, 0);
}

/* dgates of step t, given those (n, DH) of the step after it if it is in the same chunk, else n = 0. */
static void step_backward(backward_t *b, const real *dgates, fastrnn_size n)
{
    const step_t *s = &b->step;
    const fastrnn_layer *layer = s->layer;
    const fastrnn_size to = least(s->rows.to, s->n);
    carry_back(b, dgates, n);
    if (layer->projected) {
        apply_upstream(b);
        wait_for_members(s);
        run_product(&b->unit, s->me, s->rows.from, to, s->units.from, s->units.to, 0, 0);
    }
    apply_backward(b);
    if (layer->shape.has_reset) {
        wait_for_members(s);
        b->reset.a = b->dgates + b->reset.first_k;
        b->reset.to = b->units_kept;
        run_product(&b->reset, s->me, s->rows.from, to, s->units.from, s->units.to, 0, 0);
        apply_reset_backward(b);
    }
    wait_for_members(s);
}

/* All steps of the chunk, and dh, dc of the step before it. */
static void steps_backward(backward_t *b)
{
    step_t *s = &b->step;
    const fastrnn_run *run = s->run;
    const fastrnn_layer *layer = s->layer;
    const fastrnn_size steps = s->to - s->from;
    fastrnn_size after = 0; /* rows of the step that came before this one in this loop */
    b->dgates = 0;
    for (fastrnn_size step = 0; step < steps; step++) {
        const fastrnn_size t = layer->reverse ? s->from + step : s->to - 1 - step;
        const fastrnn_size at = run->offsets[t] - run->offsets[s->from];
        const real *dgates_after = b->dgates;
        go_to(s, t);
        b->dgates = (real *)b->run->dgates + at * layer->DH;
        b->units_kept = b->run->units ? (real *)b->run->units + at * layer->H : 0;
        b->dh_kept = b->run->dh_rows ? (real *)b->run->dh_rows + at * layer->P : 0;
        step_backward(b, dgates_after, after);
        after = s->n;
    }
    carry_back(b, b->dgates, after); /* the next chunk takes over from dh */
}

/* ---- what a chunk adds to the gradients of the weights ------------------------------------------------ */

/* Panels of the states that the chunk's rows started from: rows of the history as far as they follow each other, so
 * that a full batch is one copy, and of the initial state. */
static void pack_h_prev(step_t *s, fastrnn_size rows, void *panels, span_t vectors)
{
    const fastrnn_run *run = s->run;
    const fastrnn_size P = s->layer->P, first = run->offsets[s->from];
    const real *from = 0;
    fastrnn_size to = 0, count = 0;
    for (fastrnn_size t = s->from; t <= s->to; t++) {
        if (t < s->to)
            go_to(s, t);
        const int follows = t < s->to && count && s->n_before && s->h_before.at == from + count * run->ldh &&
                            s->first - first == to + count;
        if (!follows) {
            if (count)
                panels_of_columns(P, COLUMN_WIDTH, rows, to, count, from, run->ldh, panels, vectors.from, vectors.to);
            from = s->h_before.at, to = s->first - first, count = 0;
        }
        if (t < s->to) {
            count += s->n_before;
            if (s->n > s->n_before)
                panels_of_columns(P, COLUMN_WIDTH, rows, s->first - first + s->n_before, s->n - s->n_before,
                                  row_of(s->h_initial, s->n_before), P, panels, vectors.from, vectors.to);
        }
    }
}

/* This member's columns of the chunk's panels, and of the gradient of the biases. */
static void pack_chunk(backward_t *b, fastrnn_size first, fastrnn_size rows)
{
    const fastrnn_backward_run *run = b->run;
    const step_t *s = &b->step;
    const fastrnn_weights *d = &run->dweights;
    const fastrnn_layer *layer = s->layer;
    const fastrnn_size H = layer->H, I = layer->I, AH = layer->AH, DH = layer->DH;
    /* Those of a projection are multiplied with rows of dh, not with columns of panels. */
    const int units_width = layer->projected ? WEIGHT_WIDTH(1) : COLUMN_WIDTH;
    span_t mine = share_of(s->me, vector_count(AH), 1);
    if (d->weight_ih || d->weight_hh)
        panels_of_columns(AH, 1, rows, 0, rows, run->dgates, DH, run->panels_dgates, mine.from, mine.to);
    mine = share_of(s->me, vector_count(DH), 1);
    add_rows(rows, DH, mine.from * LANES, least(mine.to * LANES, DH), run->dgates, run->dbias);
    if (d->weight_hh)
        pack_h_prev(&b->step, rows, run->panels_h, share_of(s->me, vector_count(layer->P), 1));
    mine = share_of(s->me, vector_count(I), 1);
    if (d->weight_ih)
        panels_of_columns(I, COLUMN_WIDTH, rows, 0, rows, row_of(s->x, first), s->x.ld, run->panels_x, mine.from,
                          mine.to);
    mine = share_of(s->me, vector_count(H), 1);
    if (run->panels_units && (d->weight_hh || d->weight_hr))
        panels_of_columns(H, units_width, rows, 0, rows, run->units, H, run->panels_units, mine.from, mine.to);
}

/* dW (n, columns) (+)= columns [column, column+n) of dgates, transposed, times panels of rows (rows, columns). */
static void add_to_weights(const backward_t *b, fastrnn_size rows, fastrnn_size column, fastrnn_size n,
                           const real *panels, fastrnn_size columns, int add, real *dw)
{
    const fastrnn_member *me = b->step.me;
    const span_t mine = share_of(me, n, COLUMN_ROWS);
    product_t p = plain_product(rows, columns, panels, rows, b->run->panels_dgates, 1, dw);
    p.columns = &column_panels;
    p.a_k = LANES;
    p.a_panel = panel_size(rows, 1);
    p.a_first = column;
    p.from = add ? dw : 0;
    run_product(&p, me, mine.from, mine.to, 0, vector_count(columns), 0, 0);
}

/* The first chunk finds nothing to add to. */
static void add_weight_gradients(const backward_t *b, fastrnn_size rows, int add)
{
    const fastrnn_backward_run *run = b->run;
    const fastrnn_layer *layer = b->step.layer;
    const fastrnn_cell_shape shape = layer->shape;
    const fastrnn_size H = layer->H, P = layer->P, I = layer->I, AH = layer->AH;
    const fastrnn_size direct = shape.hidden_blocks * H, direct_x = shape.input_blocks * H;
    real *dw_hh = run->dweights.weight_hh, *dw_ih = run->dweights.weight_ih;
    if (dw_hh)
        add_to_weights(b, rows, 0, direct, run->panels_h, P, add, dw_hh);
    if (dw_hh && shape.has_reset)
        add_to_weights(b, rows, direct, H, run->panels_units, H, add, dw_hh + direct * H);
    if (dw_ih)
        add_to_weights(b, rows, 0, direct_x, run->panels_x, I, add, dw_ih);
    if (dw_ih && shape.gates > shape.input_blocks)
        add_to_weights(b, rows, AH - H, H, run->panels_x, I, add, dw_ih + direct_x * I);
    if (run->dweights.weight_hr) {
        const span_t mine = share_of(b->step.me, P, COLUMN_ROWS);
        product_t p = plain_product(rows, H, run->panels_units, rows, run->dh_rows, 1, run->dweights.weight_hr);
        p.a_k = P;
        p.from = add ? p.to : 0;
        run_product(&p, b->step.me, mine.from, mine.to, 0, vector_count(H), 0, 0);
    }
}

/* ---- dx ---------------------------------------------------------------------------------------------- */

/* dx of this member's rows of the chunk: dx (+)= dgates W_ih */
static void set_dx(const backward_t *b, fastrnn_size first, fastrnn_size rows)
{
    const fastrnn_backward_run *run = b->run;
    const step_t *s = &b->step;
    const fastrnn_layer *layer = s->layer;
    const fastrnn_cell_shape shape = layer->shape;
    const fastrnn_size I = layer->I, H = layer->H, direct = shape.input_blocks * H;
    const span_t mine = share_of(s->me, rows, 1);
    const fastrnn_size begin = first + mine.from, n = mine.to - mine.from;
    real *to = run->dx.scattered ? run->dx_chunk : (real *)run->dx.data + first * run->dx.row;
    const fastrnn_size ld = run->dx.scattered ? I : run->dx.row;
    if (run->dx.scattered && run->add_to_dx) { /* which fills rows that other members multiply */
        fastrnn_gather(s->run, &run->dx, I, begin, n, 0, to + mine.from * ld);
        fastrnn_barrier(s->me);
    }
    product_t p = plain_product(direct, I, s->run->panels.ih, layer->G, run->dgates, layer->DH, to);
    p.ld_from = p.ld_to = ld;
    p.from = run->add_to_dx ? p.to : 0;
    run_product(&p, s->me, mine.from, mine.to, 0, vector_count(I), 0, 0);
    if (shape.gates > shape.input_blocks) {
        p.K = H;
        p.schedule.rows = 0;
        p.first_k = direct;
        p.a += layer->AH - H;
        p.from = p.to;
        run_product(&p, s->me, mine.from, mine.to, 0, vector_count(I), 0, 0);
    }
    if (run->dx.scattered) {
        fastrnn_barrier(s->me);
        fastrnn_scatter(s->run, &run->dx, I, begin, n, 0, to + mine.from * ld, ld);
    }
}

/* ---- the run ----------------------------------------------------------------------------------------- */

/* This member's part of the chunk's rows of scattered dy; complete after the next barrier. */
static void gather_dy(backward_t *b)
{
    const fastrnn_rows *dy = &b->run->dy;
    const step_t *s = &b->step;
    const fastrnn_size first = s->run->offsets[s->from];
    const span_t mine = share_of(s->me, s->run->offsets[s->to] - first, 1);
    b->dy = (rows_t){b->run->dy_chunk, first, s->layer->P};
    fastrnn_gather(s->run, dy, s->layer->P, first + mine.from, mine.to - mine.from, 1,
                   row_of(b->dy, first + mine.from));
}

/* The products of a step, but for its rows of dgates. */
static void make_backward(backward_t *b)
{
    const fastrnn_backward_run *run = b->run;
    const fastrnn_layer *layer = b->step.layer;
    const fastrnn_layer_panels panels = run->run.panels;
    const fastrnn_size H = layer->H, P = layer->P, G = layer->G, DH = layer->DH,
                       direct = layer->shape.hidden_blocks * H;
    b->back = plain_product(direct, P, panels.hh, G, 0, DH, run->dh);
    b->back.from = layer->projected ? 0 : run->dh;
    if (layer->projected)
        b->unit = plain_product(P, H, panels.hr, P, run->dh, P, run->dunit);
    if (layer->shape.has_reset) {
        b->reset = plain_product(H, H, panels.hh, G, 0, DH, 0);
        b->reset.first_k = direct;
    }
}

static void work_backward(void *context, const fastrnn_member *me)
{
    const fastrnn_backward_run *backward = context;
    const fastrnn_run *run = &backward->run;
    const fastrnn_layer *layer = run->layer;
    backward_t b;
    begin_run(&b.step, run, me);
    b.run = backward;
    b.dy = (rows_t){backward->dy.data, 0, backward->dy.row};
    unsigned turn = 0;
    make_backward(&b);
    for (fastrnn_size done = 0, steps; done < run->T; done += steps, turn++) {
        steps = fastrnn_next_chunk(run, done, !layer->reverse);
        const fastrnn_size from = layer->reverse ? done : run->T - done - steps, first = run->offsets[from];
        const fastrnn_size rows = run->offsets[from + steps] - first;
        open_chunk(&b.step, from, from + steps, turn);
        if (backward->dy.scattered && backward->dy.data) {
            gather_dy(&b);
            fastrnn_barrier(me);
        }
        steps_backward(&b);
        if (backward->dweights.weight_ih) /* nothing else reads x */
            gather_x(&b.step);
        fastrnn_barrier(me);
        if (!fastrnn_stopping(me, 0))
            pack_chunk(&b, first, rows);
        fastrnn_barrier(me);
        add_weight_gradients(&b, rows, done > 0);
        if (backward->dx.data)
            set_dx(&b, first, rows);
        if (fastrnn_ended(me, turn))
            return;
    }
}

static int run_backward(const fastrnn_backward_run *run)
{
    return fastrnn_parallel(useful_threads(&run->run), work_backward, (void *)(uintptr_t)run, &run->run.poll);
}
