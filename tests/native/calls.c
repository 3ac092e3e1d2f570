/* Runs whole calls through fastrnn.h, without Python, on made-up problems and prints one line for each: a hash of the
 * bits of every result. tests/native/run compares the lines of instruction sets and numbers of threads.
 *
 *     calls                          the engines that can be asked for
 *     calls ENGINE THREADS small|long|few
 *
 * Within one run, all ways to the same result are compared to the last bit: with panels and without, with a tape and
 * without, step by step, stopped and begun again, from several threads at once, with transposed weights in another order
 * of gates, and each episode alone: a masked step is a deleted step, and a reset cuts a row in two. The long problems are
 * longer than a chunk of time. */
#include "problem.h"

#include <pthread.h>

/* ---- calls ------------------------------------------------------------------------------------------ */

static fastrnn_call call_of(const problem *q)
{
    return (fastrnn_call){
        .size = sizeof(fastrnn_call),
        .map = q->map,
        .T = q->T,
        .B = q->B,
        .weights = q->weights,
        .panels = q->panels,
        .panels_backward = q->panels_backward,
        .x = q->x,
        .state = {q->h_0, q->c_0},
        .x_masks = q->masks,
        .x_scale = 1.5,
    };
}

/* Give the call results, and just as much memory as it wants, at odd addresses. */
static void open_forward(const problem *q, fastrnn_call *call, int keep)
{
    const int bound = q->map != NULL || q->layout != TIME_MAJOR;
    call->keep = keep;
    call->y = empty(q, q->W);
    call->final_state[0] = array(q->runs * q->B * q->P);
    call->final_state[1] = q->cell.inner ? array(q->runs * q->B * q->H) : NULL;
    fastrnn_call_sizes(q->stack, call, FASTRNN_FORWARD, &call->tape_size, &call->workspace_size);
    call->workspace = block(call->workspace_size, item);
    call->tape = keep ? block(call->tape_size, item) : NULL;
    if (call->workspace_size > fastrnn_workspace_size(q->stack, q->T, q->B, q->N, q->S, FASTRNN_FORWARD) ||
        (keep && call->tape_size > fastrnn_tape_size(q->stack, q->T, q->B, q->N, q->S, bound)))
        fail("a forward call wants more than the sizes promise");
}

static void forward(const problem *q, fastrnn_call *call)
{
    char error[256] = "";
    expect_ok(fastrnn_check(q->stack, call, FASTRNN_FORWARD, error), error);
    if (fastrnn_forward(q->stack, call) != FASTRNN_OK)
        fail("stopped by nobody");
}

static void same_results(const problem *q, const fastrnn_call *a, const fastrnn_call *b, const char *what)
{
    if (a->y.data && b->y.data)
        same_sequence(q, a->y, b->y, q->W, what);
    if (memcmp(a->final_state[0], b->final_state[0], (size_t)(q->runs * q->B * q->P) * item) ||
        (q->cell.inner && memcmp(a->final_state[1], b->final_state[1], (size_t)(q->runs * q->B * q->H) * item)))
        fail(what);
}

/* Stopped half way, then run again to the end. */
static void stop(const problem *q, const fastrnn_call *whole, int pass)
{
    int polls = 0, asked;
    fastrnn_call call = *whole;
    fastrnn_status (*const run)(const fastrnn_stack *,
                                const fastrnn_call *) = pass == FASTRNN_FORWARD ? fastrnn_forward : fastrnn_backward;
    call.poll = count_down, call.poll_context = &polls;
    if (run(q->stack, &call) != FASTRNN_OK)
        fail("stopped by nobody");
    asked = -polls; /* small work may be over before it is asked at all */
    polls = 1 + asked / 2;
    if (run(q->stack, &call) != (asked ? FASTRNN_STOPPED : FASTRNN_OK))
        fail("not stopped by poll");
    call.poll = NULL;
    if (run(q->stack, &call) != FASTRNN_OK)
        fail("stopped by nobody");
}

/* All ways forward. */
static void compare_forward(const problem *q, const fastrnn_call *first)
{
    fastrnn_call call = call_of(q);
    open_forward(q, &call, FASTRNN_KEEP_NOTHING);
    call.panels = NULL;
    call.threads = 1;
    forward(q, &call);
    same_results(q, first, &call, "differs with unpacked weights");

    call = call_of(q);
    open_forward(q, &call, FASTRNN_KEEP_NOTHING);
    memcpy(call.final_state[0], q->h_0, (size_t)(q->runs * q->B * q->P) * item);
    if (q->cell.inner)
        memcpy(call.final_state[1], q->c_0, (size_t)(q->runs * q->B * q->H) * item);
    call.state[0] = call.final_state[0], call.state[1] = call.final_state[1];
    forward(q, &call);
    same_results(q, first, &call, "differs where the final state lies over the initial one");

    call = call_of(q);
    open_forward(q, &call, FASTRNN_KEEP_NOTHING);
    call.y = (fastrnn_sequence){0};
    fastrnn_call_sizes(q->stack, &call, FASTRNN_FORWARD, NULL, &call.workspace_size);
    call.workspace = block(call.workspace_size, item);
    forward(q, &call);
    same_results(q, first, &call, "final states differ without y");

    call = call_of(q);
    open_forward(q, &call, FASTRNN_KEEP_NOTHING);
    stop(q, &call, FASTRNN_FORWARD);
    same_results(q, first, &call, "differs after it was stopped once");
}

/* One step a call, the state carried. */
static void compare_steps(const problem *q, const fastrnn_call *first)
{
    fastrnn_call call = call_of(q);
    const fastrnn_sequence y = empty(q, q->W);
    if (q->D > 1 || q->batch != FULL || q->dropout)
        return;
    call.T = 1;
    call.y = y;
    call.final_state[0] = array(q->runs * q->B * q->P),
    call.final_state[1] = q->cell.inner ? array(q->runs * q->B * q->H) : NULL;
    fastrnn_call_sizes(q->stack, &call, FASTRNN_FORWARD, NULL, &call.workspace_size);
    call.workspace = block(call.workspace_size, item);
    for (int64_t step = 0; step < q->T; step++) {
        const int64_t t = q->reverse ? q->T - 1 - step : step;
        call.panels = step % 2 ? NULL : q->panels;
        call.x.data = element(q->x, t, 0), call.y.data = element(y, t, 0);
        forward(q, &call);
        call.state[0] = call.final_state[0], call.state[1] = call.final_state[1];
    }
    call.y = y;
    same_results(q, first, &call, "differs step by step");
}

/* ---- episodes --------------------------------------------------------------------------------------- */

static int is_real(const problem *q, int64_t t, int64_t b)
{
    const fastrnn_batch *rows = &q->rows;
    return (!rows->lengths || t < rows->lengths[b]) &&
           (!rows->mask || rows->mask[t * rows->mask_step + b * rows->mask_row]);
}

static int is_cut(const problem *q, int64_t t, int64_t b)
{
    const fastrnn_batch *rows = &q->rows;
    return rows->reset && (!rows->lengths || t < rows->lengths[b]) &&
           rows->reset[t * rows->reset_step + b * rows->reset_row];
}

/* The state of row b that a run of one row begins with, or zeros: by direction. */
static void *state_of_row(const problem *q, const void *from, int64_t width, int64_t b, const int given[2])
{
    const size_t bytes = (size_t)width * item;
    char *to = array(q->runs * width);
    for (int k = 0; k < q->runs; k++)
        if (given[q->D == 2 ? k % 2 : q->reverse])
            memcpy(to + (size_t)k * bytes, (const char *)from + (size_t)(k * q->B + b) * bytes, bytes);
        else
            memset(to + (size_t)k * bytes, 0, bytes);
    return to;
}

/* Whether row b ends with the state of the episode that is its last one, by direction. */
static void same_final_state(const problem *q, const void *of_rows, const void *of_episode, int64_t width, int64_t b,
                             const int ends[2])
{
    const size_t bytes = (size_t)width * item;
    for (int k = 0; k < q->runs; k++)
        if (ends[q->D == 2 ? k % 2 : q->reverse] && memcmp((const char *)of_rows + (size_t)(k * q->B + b) * bytes,
                                                           (const char *)of_episode + (size_t)k * bytes, bytes))
            fail("the final state is not that of the last episode");
}

/* The real steps of the row from `begin` to `end`, run alone. */
static void compare_episode(const problem *q, const fastrnn_call *first, int64_t b, int64_t begin, int64_t end,
                            const int given[2], const int ends[2])
{
    const size_t x_bytes = (size_t)q->I * item, y_bytes = (size_t)q->W * item;
    const int before = block_count;
    char *x = array((end - begin) * q->I), *y = array((end - begin) * q->W);
    fastrnn_call call = call_of(q);
    call.map = NULL, call.T = 0, call.B = 1;
    for (int64_t t = begin; t < end; t++)
        if (is_real(q, t, b))
            memcpy(x + (size_t)call.T++ * x_bytes, element(q->x, t, b), x_bytes);
    call.x = (fastrnn_sequence){x, q->I, q->I}, call.y = (fastrnn_sequence){y, q->W, q->W};
    call.state[0] = state_of_row(q, q->h_0, q->P, b, given);
    call.state[1] = q->cell.inner ? state_of_row(q, q->c_0, q->H, b, given) : NULL;
    call.final_state[0] = array(q->runs * q->P);
    call.final_state[1] = q->cell.inner ? array(q->runs * q->H) : NULL;
    fastrnn_call_sizes(q->stack, &call, FASTRNN_FORWARD, NULL, &call.workspace_size);
    call.workspace = block(call.workspace_size, item);
    forward(q, &call);
    same_final_state(q, first->final_state[0], call.final_state[0], q->P, b, ends);
    if (q->cell.inner)
        same_final_state(q, first->final_state[1], call.final_state[1], q->H, b, ends);
    for (int64_t t = begin, k = 0; t < end; t++)
        if (is_real(q, t, b) && memcmp(y + (size_t)k++ * y_bytes, element(first->y, t, b), y_bytes))
            fail("an episode alone differs");
    while (block_count > before)
        free(blocks[--block_count]);
}

/* What a step that is not real has: zeros, or by direction the last output before it. */
static void compare_masked(const problem *q, const fastrnn_call *first, int64_t b)
{
    const size_t bytes = (size_t)q->P * item;
    char *expected = array(q->P);
    for (int direction = 0; direction < q->D; direction++) {
        const int reverse = q->D == 2 ? direction : q->reverse;
        memset(expected, 0, bytes);
        for (int64_t step = 0; step < q->T; step++) {
            const int64_t t = reverse ? q->T - 1 - step : step;
            const char *at = element(first->y, t, b) + (size_t)direction * bytes;
            if (!is_real(q, t, b) && memcmp(at, expected, bytes))
                fail("the output of a masked step is wrong");
            if (q->batch == REPEAT && is_real(q, t, b))
                memcpy(expected, at, bytes);
        }
    }
}

static void compare_episodes(const problem *q, const fastrnn_call *first)
{
    if (q->batch == PACKED || q->dropout)
        return; /* rows of packed sequences and masks lie in the order of packed rows */
    for (int64_t b = 0; b < q->B; b++) {
        int64_t begin = 0, length = q->rows.lengths ? q->rows.lengths[b] : q->T;
        for (int64_t t = length > 0; t <= length; t++)
            if (t == length || is_cut(q, t, b)) {
                const int given[2] = {begin == 0 && !is_cut(q, 0, b), t == length}, ends[2] = {t == length, begin == 0};
                compare_episode(q, first, b, begin, t, given, ends);
                begin = t;
            }
        compare_masked(q, first, b);
    }
}

/* ---- backward --------------------------------------------------------------------------------------- */

/* A gradient that is wanted, or one in three that is not. */
static void *wanted(int all, int there, int64_t n) { return there && (all || !one_in(3)) ? array(n) : NULL; }

static void open_backward(const problem *q, fastrnn_call *call, fastrnn_weights dweights[MOST_RUNS], int all)
{
    const int64_t G = q->cell.gates * q->H;
    call->dy = q->dy;
    call->dfinal_state[0] = q->dh_n, call->dfinal_state[1] = q->dc_n;
    call->dx = all || !one_in(3) ? empty(q, q->I) : (fastrnn_sequence){0};
    call->dstate[0] = wanted(all, 1, q->runs * q->B * q->P);
    call->dstate[1] = wanted(all, q->cell.inner, q->runs * q->B * q->H);
    for (int k = 0; k < q->runs; k++)
        dweights[k] = (fastrnn_weights){
            .size = sizeof *dweights,
            .weight_ih = wanted(all, 1, G * input_size(q, k)),
            .weight_hh = wanted(all, 1, G * q->P),
            .bias_ih = wanted(all, q->weights[k].bias_ih != NULL, G),
            .bias_hh = wanted(all, q->weights[k].bias_hh != NULL, G),
            .weight_hr = wanted(all, q->projected, q->P * q->H),
        };
    call->dweights = all || !one_in(4) ? dweights : NULL;
    fastrnn_call_sizes(q->stack, call, FASTRNN_BACKWARD, NULL, &call->workspace_size);
    call->workspace = block(call->workspace_size, item);
    if (call->workspace_size > fastrnn_workspace_size(q->stack, q->T, q->B, q->N, q->S, FASTRNN_BACKWARD))
        fail("a backward call wants more than the sizes promise");
}

static void backward(const problem *q, fastrnn_call *call)
{
    char error[256] = "";
    expect_ok(fastrnn_check(q->stack, call, FASTRNN_BACKWARD, error), error);
    if (fastrnn_backward(q->stack, call) != FASTRNN_OK)
        fail("stopped by nobody");
}

/* With one name for each, so that a loop can compare or print them. */
typedef struct {
    const char *name;
    const void *data;
    int64_t count;
} gradient_t;

static int list_gradients(const problem *q, const fastrnn_call *call, gradient_t to[2 + 5 * MOST_RUNS])
{
    int n = 0;
    const int64_t G = q->cell.gates * q->H;
    to[n++] = (gradient_t){"dh", call->dstate[0], q->runs * q->B * q->P};
    to[n++] = (gradient_t){"dc", call->dstate[1], q->runs * q->B * q->H};
    for (int k = 0; k < q->runs; k++) {
        const fastrnn_weights d = call->dweights ? call->dweights[k] : (fastrnn_weights){0};
        to[n++] = (gradient_t){"w_ih", d.weight_ih, G * input_size(q, k)};
        to[n++] = (gradient_t){"w_hh", d.weight_hh, G * q->P};
        to[n++] = (gradient_t){"b_ih", d.bias_ih, G};
        to[n++] = (gradient_t){"b_hh", d.bias_hh, G};
        to[n++] = (gradient_t){"w_hr", d.weight_hr, q->P * q->H};
    }
    return n;
}

static void same_gradients(const problem *q, const fastrnn_call *a, const fastrnn_call *b, const char *what)
{
    gradient_t ours[2 + 5 * MOST_RUNS], theirs[2 + 5 * MOST_RUNS];
    const int n = list_gradients(q, a, ours);
    list_gradients(q, b, theirs);
    if (a->dx.data && b->dx.data)
        same_sequence(q, a->dx, b->dx, q->I, what);
    for (int k = 0; k < n; k++)
        if (ours[k].data && theirs[k].data && memcmp(ours[k].data, theirs[k].data, (size_t)ours[k].count * item))
            fail(what);
}

/* ---- weights with strides and a gate order ------------------------------------------------------------ */

/* The transpose of a matrix (rows, columns), or NULL, whose block k of H rows is block order[k] of `from`. */
static void *transposed(const char *from, int64_t rows, int64_t columns, int64_t H, const uint8_t *order)
{
    char *to = from ? array(rows * columns) : NULL;
    for (int64_t r = 0; from && r < rows; r++)
        for (int64_t k = 0; k < columns; k++)
            memcpy(to + (size_t)(k * rows + r) * item, from + (size_t)((order[r / H] * H + r % H) * columns + k) * item,
                   item);
    return to;
}

/* The same weights, or gradients, with their matrices transposed and their gates in another order. */
static fastrnn_weights in_other_form(const problem *q, int k, const fastrnn_weights *w, const uint8_t *order)
{
    static const uint8_t same[] = {0};
    const int64_t G = q->cell.gates * q->H;
    return (fastrnn_weights){
        .size = sizeof *w,
        .weight_ih = transposed(w->weight_ih, G, input_size(q, k), q->H, order),
        .weight_hh = transposed(w->weight_hh, G, q->P, q->H, order),
        .bias_ih = transposed(w->bias_ih, G, 1, q->H, order),
        .bias_hh = transposed(w->bias_hh, G, 1, q->H, order),
        .weight_hr = transposed(w->weight_hr, q->P, q->H, q->P, same),
        .ih_row = 1,
        .ih_column = G,
        .hh_row = 1,
        .hh_column = G,
        .hr_row = 1,
        .hr_column = q->P,
        .gate_order = order,
    };
}

/* As `first` and as the gradients of `plain`, to the bit. */
static void compare_strided(const problem *q, const fastrnn_call *first, const fastrnn_call *plain)
{
    static const uint8_t orders[][4] = {{0}, {0}, {1, 0}, {2, 0, 1}, {2, 0, 3, 1}};
    const uint8_t *order = orders[q->cell.gates];
    const int both = FASTRNN_FORWARD | FASTRNN_BACKWARD;
    problem other = *q;
    fastrnn_weights dweights[MOST_RUNS], expected[MOST_RUNS];
    for (int k = 0; k < q->runs; k++)
        other.weights[k] = in_other_form(q, k, &q->weights[k], order);
    other.panels = other.panels_backward = block(fastrnn_panels_size(q->stack, both), sizeof(double));
    expect_ok(fastrnn_pack(q->stack, other.weights, both, other.panels), "gate order");
    fastrnn_call call = call_of(&other);
    open_forward(&other, &call, FASTRNN_KEEP_ALL);
    forward(&other, &call);
    same_results(q, first, &call, "differs with strided weights");

    open_backward(&other, &call, dweights, 1);
    for (int k = 0; k < q->runs; k++) {
        const fastrnn_weights form = other.weights[k];
        expected[k] = in_other_form(q, k, &plain->dweights[k], order);
        dweights[k].ih_row = form.ih_row, dweights[k].ih_column = form.ih_column;
        dweights[k].hh_row = form.hh_row, dweights[k].hh_column = form.hh_column;
        dweights[k].hr_row = form.hr_row, dweights[k].hr_column = form.hr_column;
        dweights[k].gate_order = order;
    }
    fastrnn_call_sizes(q->stack, &call, FASTRNN_BACKWARD, NULL, &call.workspace_size);
    call.workspace = block(call.workspace_size, item);
    if (call.workspace_size >
        fastrnn_workspace_size(q->stack, q->T, q->B, q->N, q->S, FASTRNN_BACKWARD | FASTRNN_STRIDED))
        fail("strided gradients want more than the sizes promise");
    backward(&other, &call);
    fastrnn_call wanted_call = *plain;
    wanted_call.dweights = expected;
    same_gradients(q, &wanted_call, &call, "strided gradients differ");
}

/* ---- all ways backward -------------------------------------------------------------------------------- */

static void compare_backward(const problem *q, const fastrnn_call *first, const fastrnn_call *kept)
{
    fastrnn_weights dweights[MOST_RUNS], some_dweights[MOST_RUNS];
    fastrnn_call all = *kept, some = *kept;
    gradient_t gradients[2 + 5 * MOST_RUNS];
    open_backward(q, &all, dweights, 1);
    backward(q, &all);
    report_sequence(q, "dx", all.dx, q->I);
    const int n = list_gradients(q, &all, gradients);
    for (int k = 0; k < n; k++)
        report(gradients[k].name, gradients[k].data, 1, gradients[k].count, gradients[k].count);

    open_backward(q, &some, some_dweights, 0);
    some.threads = 1;
    backward(q, &some); /* with the same tape */
    same_gradients(q, &all, &some, "differs where some gradients are not wanted");
    stop(q, &some, FASTRNN_BACKWARD);
    same_gradients(q, &all, &some, "gradients differ after they were stopped once");
    compare_strided(q, first, &all);
}

/* ---- several threads of the program, one stack -------------------------------------------------------- */

typedef struct {
    const problem *q;
    fastrnn_call there, back;
} caller_t;

static void *call_both(void *context)
{
    caller_t *caller = context;
    for (int k = 0; k < 3; k++)
        if (fastrnn_forward(caller->q->stack, &caller->there) != FASTRNN_OK ||
            fastrnn_backward(caller->q->stack, &caller->back) != FASTRNN_OK)
            fail("stopped by nobody");
    return NULL;
}

static void compare_callers(const problem *q, const fastrnn_call *first)
{
    enum { CALLERS = 3 };
    caller_t callers[CALLERS];
    fastrnn_weights dweights[CALLERS][MOST_RUNS];
    pthread_t ids[CALLERS];
    for (int k = 0; k < CALLERS; k++) {
        callers[k] = (caller_t){.q = q, .there = call_of(q)};
        open_forward(q, &callers[k].there, FASTRNN_KEEP_ALL);
        callers[k].back = callers[k].there;
        open_backward(q, &callers[k].back, dweights[k], 1);
    }
    for (int k = 0; k < CALLERS; k++)
        if (pthread_create(&ids[k], NULL, call_both, &callers[k]))
            fail("no thread");
    for (int k = 0; k < CALLERS; k++)
        pthread_join(ids[k], NULL);
    for (int k = 0; k < CALLERS; k++) {
        same_results(q, first, &callers[k].there, "differs with several callers");
        same_gradients(q, &callers[0].back, &callers[k].back, "gradients differ with several callers");
    }
}

/* ---- problems ---------------------------------------------------------------------------------------- */

static void solve(problem q)
{
    char name[160];
    item = q.single ? sizeof(float) : sizeof(double);
    q.runs = q.L * q.D;
    q.reverse = q.D == 1 && q.T % 2;
    q.P = q.projected ? q.H * 3 / 4 + 1 : q.H;
    q.W = q.D * q.P;
    snprintf(name, sizeof name, "%s%s %s L%d D%d T%d B%d I%d H%d %s%s%s", q.cell.name, q.projected ? " projected" : "",
             q.single ? "f32" : "f64", q.L, q.D, (int)q.T, (int)q.B, (int)q.I, (int)q.H, batch_names[q.batch],
             layout_names[q.layout], q.dropout ? " dropout" : "");
    open_problem(name);
    make_batch(&q);
    make_stack(&q);
    make_inputs(&q);
    const uint64_t before = hash_of_inputs(&q);

    fastrnn_call first = call_of(&q), kept = call_of(&q);
    open_forward(&q, &first, FASTRNN_KEEP_NOTHING);
    forward(&q, &first);
    report_sequence(&q, "y", first.y, q.W);
    report("h", first.final_state[0], q.runs * q.B, q.P, q.P);
    report("c", first.final_state[1], q.runs * q.B, q.H, q.H);
    compare_forward(&q, &first);
    compare_steps(&q, &first);
    compare_episodes(&q, &first);
    open_forward(&q, &kept, FASTRNN_KEEP_ALL);
    forward(&q, &kept);
    same_results(&q, &first, &kept, "differs with a tape");
    compare_backward(&q, &first, &kept);
    if (one_in(8))
        compare_callers(&q, &first);
    if (hash_of_inputs(&q) != before)
        fail("an input was changed");
    printf("\n");
    fastrnn_stack_free(q.stack);
    free_all();
}

/* Every kind of batch for each cell, precision, number of layers and of directions; sizes and layouts take turns. */
static void small_problems(void)
{
    static const int H[] = {1, 5, 17, 33}, B[] = {3, 1, 5, 2}, I[] = {3, 1, 13};
    int n = 0;
    const int count = list_cells();
    for (int cell = 0; cell < count; cell++)
        for (int way = 0; way < 8; way++)
            for (int batch = 0; batch < BATCHES; batch++, n++)
                solve((problem){.cell = listed[cell].cell,
                                .projected = listed[cell].projected,
                                .single = way % 2,
                                .L = 1 + way / 2 % 2,
                                .D = 1 + way / 4,
                                .batch = batch,
                                .layout = n / 2 % LAYOUTS,
                                .dropout = way / 2 % 2 && n % 3 == 0,
                                .T = 1 + n % 7,
                                .B = B[n / 7 % 4],
                                .I = I[n % 3],
                                .H = H[n % 4]});
}

/* `few`: one for each cell, for sanitizers. */
static void long_problems(int few)
{
    const int count = list_cells();
    for (int cell = 0; cell < count; cell++)
        for (int n = few ? cell : 0; n < (few ? cell + 1 : 6); n++)
            solve((problem){.cell = listed[cell].cell,
                            .projected = listed[cell].projected,
                            .single = n % 2,
                            .L = 1 + n / 2 % 2,
                            .D = 1 + n / 4,
                            .batch = n % 3 ? (n + cell) % BATCHES : FULL,
                            .layout = (n + cell) % LAYOUTS,
                            .T = 110 - n % 2,
                            .B = 13,
                            .I = 5,
                            .H = 67});
}

int main(int count, char **arguments)
{
    const char *names[8];
    const int engines = fastrnn_engines(names, 8);
    for (int k = 0; k < engines && count == 1; k++)
        printf("%s\n", names[k]);
    if (count == 1)
        return 0;
    threads = count == 4 ? atoi(arguments[2]) : 0;
    if (threads < 1 || fastrnn_use_engine(arguments[1]) != FASTRNN_OK || fastrnn_set_threads(threads) != FASTRNN_OK) {
        fprintf(stderr, "usage: calls [ENGINE THREADS small|long|few]\n");
        return 2;
    }
    engine = fastrnn_engine();
    if (strcmp(arguments[3], "small"))
        long_problems(!strcmp(arguments[3], "few"));
    else
        small_problems();
    return 0;
}
