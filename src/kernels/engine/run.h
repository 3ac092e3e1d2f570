/* The fused engine: a whole run, forward or BPTT, of one layer in one direction. This file has what the two passes
 * share: who does what, and where the rows of a step lie.
 *
 * Steps are taken in chunks of time. Threads divide the rows of the batch, which never meet; or, when there are too few,
 * the units, with a barrier after every step. Everything else of a chunk is divided by rows or columns of its result: no
 * sum is ever split, so the bits do not depend on the number of threads.
 *
 * Nothing here knows a cell but by its fastrnn_cell_shape and its functions. */

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

static const fastrnn_member alone = {.size = 1};

/* Rows of a matrix, of which the first is packed row `first`. */
typedef struct {
    real *at;
    fastrnn_size first, ld;
} rows_t;

INLINE real *row_of(rows_t rows, fastrnn_size row) { return rows.at + (row - rows.first) * rows.ld; }

/* One member's part of a run, the chunk at hand, and the step at hand. */
typedef struct {
    const fastrnn_run *run;
    const fastrnn_layer *layer;
    const fastrnn_member *me;
    int split_units;   /* threads divide the units, else the rows */
    span_t rows;       /* of the batch: this member's */
    span_t units, out; /* vectors of H and of P: this member's */

    fastrnn_size from, to;    /* steps of the chunk */
    rows_t history, previous; /* h of the chunk, and of the chunk that was taken before it */
    rows_t x;                 /* of the chunk */

    fastrnn_size t;
    fastrnn_size first, n;     /* packed row of the step, and its rows */
    fastrnn_size n_before;     /* rows that have a step before, in the order of forward; the others begin */
    rows_t h_before;           /* h_prev of rows < n_before: rows of the step before, numbered as those of this step */
    rows_t h_initial;          /* h_prev of the others */
    fastrnn_size first_before; /* packed row of the step before */
} step_t;

/* The least row before which `work` packed rows lie: what divides rows of different lengths fairly. */
static fastrnn_size row_after(const fastrnn_run *run, fastrnn_size work)
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

/* Rows need no barrier, but each thread reads all weights; below some four rows a thread that reading is the work, and
 * units divide it. */
INLINE int divides_units(const fastrnn_run *run, int threads) { return threads > 1 && run->B < 4 * threads; }

static void begin_run(step_t *s, const fastrnn_run *run, const fastrnn_member *me)
{
    const fastrnn_layer *layer = run->layer;
    const int split_units = divides_units(run, me->size);
    const fastrnn_size N = run->offsets[run->T];
    span_t rows = share_of(split_units ? &alone : me, run->B, 1);
    if (!split_units && me->size > 1 && N < run->T * run->B)
        rows = (span_t){row_after(run, N * me->rank / me->size),
                        me->rank + 1 < me->size ? row_after(run, N * (me->rank + 1) / me->size) : run->B};
    s->run = run;
    s->layer = layer;
    s->me = me;
    s->split_units = split_units;
    s->rows = rows;
    s->units = share_of(split_units ? me : &alone, vector_count(layer->H), 1);
    s->out = share_of(split_units ? me : &alone, vector_count(layer->P), 1);
    s->history = (rows_t){run->h_rows, 0, run->ldh};
    s->x = (rows_t){run->x.data, 0, run->x.row};
}

INLINE fastrnn_size rows_at(const fastrnn_run *run, fastrnn_size t)
{
    return t < 0 || t >= run->T ? 0 : run->offsets[t + 1] - run->offsets[t];
}

/* Go to the chunk of steps [from, to), number `turn`. */
static void open_chunk(step_t *s, fastrnn_size from, fastrnn_size to, unsigned turn)
{
    const fastrnn_run *run = s->run;
    FASTRNN_ASSERT(from < to && to <= run->T);
    FASTRNN_ASSERT(run->offsets[to] - run->offsets[from] <= run->chunk || to - from == 1);
    FASTRNN_ASSERT(!run->ring || run->offsets[to] - run->offsets[from] <= run->chunk);
    s->from = from, s->to = to;
    s->previous = s->history;
    if (run->ring)
        s->history = (rows_t){(real *)run->h_rows + (turn & 1 ? run->chunk * run->ldh : 0), run->offsets[from],
                              run->ldh};
    if (run->x.scattered)
        s->x = (rows_t){run->x_chunk, run->offsets[from], s->layer->I};
}

/* This member's part of the chunk's rows of scattered x; complete after the next barrier. */
static void gather_x(const step_t *s)
{
    const fastrnn_run *run = s->run;
    const fastrnn_size first = run->offsets[s->from];
    const span_t mine = share_of(s->me, run->offsets[s->to] - first, 1);
    if (run->x.scattered)
        fastrnn_gather(run, &run->x, s->layer->I, first + mine.from, mine.to - mine.from, 0,
                       row_of(s->x, first + mine.from));
}

/* Go to step t of the chunk. */
static void go_to(step_t *s, fastrnn_size t)
{
    const fastrnn_run *run = s->run;
    const fastrnn_size before = s->layer->reverse ? t + 1 : t - 1, there = rows_at(run, before);
    const rows_t history = before >= s->from && before < s->to ? s->history : s->previous;
    FASTRNN_ASSERT(t >= s->from && t < s->to);
    FASTRNN_ASSERT(rows_at(run, t) <= run->B);
    s->t = t;
    s->first = run->offsets[t];
    s->n = rows_at(run, t);
    s->n_before = there < s->n ? there : s->n;
    s->first_before = s->n_before ? run->offsets[before] : 0;
    s->h_before = s->n_before ? (rows_t){row_of(history, s->first_before), 0, history.ld} : history;
    s->h_initial = (rows_t){run->h, 0, s->layer->P};
}

INLINE void wait_for_members(const step_t *s)
{
    if (s->split_units)
        fastrnn_barrier(s->me);
}

/* Work that is too small to share: waking a thread costs some microseconds, a barrier some tenths. */
#ifndef FASTRNN_SHARED_CALL_FLOPS /* tests want even the smallest work to be shared */
#define FASTRNN_SHARED_CALL_FLOPS 2000000
#define FASTRNN_SHARED_STEP_FLOPS 80000
#endif

static int useful_threads(const fastrnn_run *run)
{
    const fastrnn_layer *layer = run->layer;
    const double call = 2.0 * (double)run->offsets[run->T] * (double)layer->G * (double)(layer->I + layer->P);
    int threads = run->threads;
    if (call < FASTRNN_SHARED_CALL_FLOPS)
        return 1;
    const double step = 2.0 * (double)run->B * (double)layer->G * (double)layer->P;
    while (divides_units(run, threads) &&
           (step < FASTRNN_SHARED_STEP_FLOPS * (threads - 1) || vector_count(layer->H) < 2 * threads))
        threads--;
    return threads;
}
