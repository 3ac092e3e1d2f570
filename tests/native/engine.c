/* Runs the fused engine, without Python, on made-up problems and prints one line for each: a hash of the bits
 * of every result. Two runs agree to the last bit where their lines are the same, whatever instruction set,
 * processor, compiler or number of threads each had; tests/native/run compares them.
 *
 *     engine                          the instruction sets that can be asked for
 *     engine ISA THREADS small|large
 *
 * The small problems have every shape that leaves a vector, a tile or a chunk incomplete. The large ones are
 * large enough to be worth sharing, by rows and by units; that they are in fact shared is checked, so that a
 * change of the thresholds in run.h cannot make the comparison of threads an empty one.
 */
#include "kernels.h"

#include "harness.h"

typedef struct {
    int cell, single, reverse, mixed, projected; /* mixed: rows of different lengths */
    fastrnn_size T, B, I, H;
} problem;

static const fastrnn_isa *isa;
static int must_share;

/* ---- the engine's functions, of the real type at hand --------------------------------------------- */

static void *array_if(int needed, fastrnn_size n) { return needed ? array(n) : NULL; }
static void *panels(fastrnn_size n) { return block((size_t)n * item, 0); }

static void *copy(const void *from, fastrnn_size n) { return from ? memcpy(array(n), from, (size_t)n * item) : NULL; }

#define CALL(F, ...) isa->table[item == sizeof(double)]->F(__VA_ARGS__)

static void *pack_rows(int count, fastrnn_size units, fastrnn_size K, const void *w, void *to)
{
    const fastrnn_matrix source = {w, K, 1, 0, NULL};
    CALL(pack_rows, count, units, K, &source, to);
    return to;
}

static void *pack_columns(fastrnn_size units, fastrnn_size K, const void *w)
{
    void *to = panels(CALL(packed_size, 1, units, K));
    const fastrnn_matrix source = {w, units, 1, 0, NULL};
    CALL(pack_columns, units, K, &source, to);
    return to;
}

/* In the place of the engine's calls of fastrnn_parallel (ld --wrap). */
int __real_fastrnn_parallel(int n, fastrnn_work work, void *context, const fastrnn_poll *poll);
int __wrap_fastrnn_parallel(int n, fastrnn_work work, void *context, const fastrnn_poll *poll);
int __wrap_fastrnn_parallel(int n, fastrnn_work work, void *context, const fastrnn_poll *poll)
{
    if (must_share && n != threads)
        fail("too small to be shared by all threads");
    return __real_fastrnn_parallel(n, work, context, poll);
}

static fastrnn_size least(fastrnn_size a, fastrnn_size b) { return a < b ? a : b; }

/* ---- a run, there and back ------------------------------------------------------------------------ */

static void solve(problem q)
{
    const fastrnn_cell_shape shape = fastrnn_cell_shapes[q.cell];
    const fastrnn_size T = q.T, B = q.B, I = q.I, H = q.H, P = q.projected ? H * 3 / 4 + 1 : H;
    const fastrnn_size G = shape.gates * H, AH = shape.accumulators * H, direct = shape.hidden_blocks * H;
    const int wants_units = q.projected || shape.has_reset;
    char name[160];
    item = q.single ? sizeof(float) : sizeof(double);
    snprintf(name, sizeof name, "%s%s %s T%d B%d I%d H%d%s%s", shape.name, q.projected ? " projected" : "",
             q.single ? "f32" : "f64", (int)T, (int)B, (int)I, (int)H, q.reverse ? " reverse" : "",
             q.mixed ? " mixed" : "");
    open_problem(name);

    fastrnn_size *offsets = calloc((size_t)T + 1, sizeof *offsets); /* the last of mixed rows may have none */
    if (!offsets)
        fail("out of memory");
    for (fastrnn_size t = 0; t < T; t++) {
        offsets[t + 1] = offsets[t];
        for (fastrnn_size row = 0; row < B; row++)
            offsets[t + 1] += t < (q.mixed ? T - row * (T + 1) / B : T);
    }
    const fastrnn_size N = offsets[T];

    /* Weights, then the packed copies as fastrnn_pack lays them out. */
    const void *w_ih = numbers(G * I, I), *w_hh = numbers(G * P, P);
    const void *w_hr = q.projected ? numbers(P * H, H) : NULL;
    const fastrnn_size size_hh = CALL(packed_size, shape.hidden_blocks, H, P);
    char *packed_hh = panels(size_hh + (shape.has_reset ? CALL(packed_size, 1, H, H) : 0));
    pack_rows(shape.hidden_blocks, H, P, w_hh, packed_hh);
    if (shape.has_reset)
        pack_rows(1, H, H, (const char *)w_hh + (size_t)(direct * H) * item, packed_hh + (size_t)size_hh * item);

    const void *h = numbers(B * P, 1), *c = shape.inner ? numbers(B * H, 1) : NULL;
    const fastrnn_size ldy = P + (one_in(2) ? 3 : 0);
    int polls = 0, asked = 0;
    const fastrnn_weights weights = {
        .weight_ih = (void *)w_ih,
        .weight_hh = (void *)w_hh,
        .weight_hr = (void *)w_hr,
        .bias_ih = one_in(4) ? NULL : numbers(G, 1),
        .bias_hh = one_in(4) ? NULL : numbers(G, 1),
    };
    const fastrnn_layer layer = {
        .cell = q.cell,
        .shape = shape,
        .I = I,
        .H = H,
        .P = P,
        .G = G,
        .AH = AH,
        .KH = shape.kept * H,
        .DH = AH,
        .has_bias_ih = weights.bias_ih != NULL,
        .has_bias_hh = weights.bias_hh != NULL,
        .projected = q.projected,
        .reverse = q.reverse,
    };
    fastrnn_forward_run forward = {
        .run =
            {
                .layer = &layer,
                .item = item,
                .T = T,
                .B = B,
                .chunk = one_in(3) ? 1000 : B + (N - B) / 3, /* all steps at once, or some */
                .offsets = offsets,
                .weights = &weights,
                .panels =
                    {
                        pack_rows(shape.gates, H, I, w_ih, panels(CALL(packed_size, shape.gates, H, I))),
                        packed_hh,
                        q.projected ? pack_rows(1, P, H, w_hr, panels(CALL(packed_size, 1, P, H))) : NULL,
                    },
                .x = {numbers(N * I, 1), I, 0, 0},
                .ldh = ldy,
                .threads = threads,
                .poll = {count_down, &polls},
            },
        .unit = array_if(wants_units, B * H),
    };
    fastrnn_run *run = &forward.run;
    const fastrnn_size width = shape.accumulators * ((H + 15) / 16 * 16), sums = (1 + least(run->chunk, N)) * width;

    /* Inference, once to the end and once stopped half way, at which no thread may be left waiting. */
    const void *y = NULL, *h_n = NULL, *c_n = NULL;
    for (int stop = 0; stop < 2; stop++) {
        asked = -polls; /* small work may be over before it is asked at all */
        polls = stop ? 1 + asked / 2 : 0;
        run->h_rows = array(N * ldy);
        run->h = copy(h, B * P);
        run->inner[0] = copy(c, B * H);
        forward.sums = panels(sums);
        if (CALL(run_forward, &forward) != (stop && asked ? STOP : 0))
            fail("not stopped by poll, or by nobody");
        if (!stop)
            y = run->h_rows, h_n = run->h, c_n = run->inner[0];
    }
    report("y", y, N, P, ldy);
    report("h", h_n, B, P, P);
    report("c", c_n, B, H, H);

    /* The same, keeping what BPTT wants. */
    run->poll.ask = NULL;
    run->h_rows = array(N * ldy);
    run->h = copy(h, B * P);
    run->inner[0] = copy(c, B * H);
    run->kept = array_if(shape.kept, N * shape.kept * H);
    run->inner_rows[0] = array_if(shape.inner, N * H);
    CALL(run_forward, &forward);
    if (memcmp(run->h_rows, y, (size_t)(N * ldy) * item) || memcmp(run->h, h_n, (size_t)(B * P) * item) ||
        (c && memcmp(run->inner[0], c_n, (size_t)(B * H) * item)))
        fail("differs with keep");

    /* And with the weights as they are. */
    fastrnn_forward_run unpacked = forward;
    unpacked.run.panels = (fastrnn_layer_panels){0};
    unpacked.run.kept = unpacked.run.inner_rows[0] = NULL;
    unpacked.run.h_rows = array(N * ldy);
    unpacked.run.h = copy(h, B * P);
    unpacked.run.inner[0] = copy(c, B * H);
    CALL(run_forward, &unpacked);
    if (memcmp(unpacked.run.h_rows, y, (size_t)(N * ldy) * item) ||
        memcmp(unpacked.run.h, h_n, (size_t)(B * P) * item) ||
        (c && memcmp(unpacked.run.inner[0], c_n, (size_t)(B * H) * item)))
        fail("differs with unpacked weights");

    fastrnn_backward_run backward = {.run = *run};
    run = &backward.run;
    run->h = copy(h, B * P);
    run->inner[0] = copy(c, B * H);
    run->chunk = one_in(3) ? N : least(B + (N - B) / 2, N);
    run->panels.ih = pack_columns(I, G, w_ih);
    run->panels.hh = pack_columns(P, G, w_hh);
    run->panels.hr = q.projected ? pack_columns(H, P, w_hr) : NULL;
    const fastrnn_size chunk = run->chunk, lddy = P + (one_in(2) ? 5 : 0);
    if (!one_in(8))
        backward.dy = (fastrnn_rows){numbers(N * lddy, 1), lddy, 0, 0};
    backward.dh = numbers(B * P, 1);
    backward.dinner[0] = c ? numbers(B * H, 1) : NULL;
    backward.add_to_dx = one_in(2);
    if (!one_in(8))
        backward.dx = (fastrnn_rows){backward.add_to_dx ? numbers(N * I, 1) : array(N * I), I, 0, 0};
    backward.dweights.weight_ih = array(G * I);
    backward.dweights.weight_hh = array(G * P);
    backward.dweights.weight_hr = array_if(q.projected, P * H);
    backward.dbias = numbers(AH, 1);
    backward.dgates = array(chunk * AH);
    backward.units = array_if(wants_units, chunk * H);
    backward.dh_rows = array_if(q.projected, chunk * P);
    backward.dunit = array_if(q.projected, B * H);
    backward.panels_dgates = panels(CALL(packed_size, 1, AH, chunk));
    backward.panels_h = panels(CALL(packed_size, 1, P, chunk));
    backward.panels_x = panels(CALL(packed_size, 1, I, chunk));
    backward.panels_units = wants_units ? panels(CALL(packed_size, 1, H, chunk)) : NULL;
    CALL(run_backward, &backward);
    report("dx", backward.dx.data, N, I, I);
    report("dh", backward.dh, B, P, P);
    report("dc", backward.dinner[0], B, H, H);
    report("dw_ih", backward.dweights.weight_ih, G, I, I);
    report("dw_hh", backward.dweights.weight_hh, G, P, P);
    report("dw_hr", backward.dweights.weight_hr, P, H, H);
    report("dbias", backward.dbias, 1, AH, AH);
    printf("\n");
    free(offsets);
    free_all();
}

/* c (M, N) = a b, or a^T b */
static void multiply(int single, int transpose, fastrnn_size M, fastrnn_size N, fastrnn_size K)
{
    char name[80];
    item = single ? sizeof(float) : sizeof(double);
    snprintf(name, sizeof name, "multiply %s%s %d %d %d", single ? "f32" : "f64", transpose ? " transposed" : "",
             (int)M, (int)N, (int)K);
    open_problem(name);
    const void *a = numbers(M * K, K), *b = numbers(K * N, K);
    void *c = array(M * N);
    CALL(multiply, M, N, K, a, transpose ? 1 : K, transpose ? M : 1, pack_columns(N, K, b), c, threads, NULL);
    report("c", c, M, N, N);
    printf("\n");
    free_all();
}

/* Every cell of so many gates at least, and the projected form of those that have one. */
static void each(problem q, int least_gates)
{
    for (q.cell = 0; q.cell < FASTRNN_CELLS; q.cell++)
        for (q.projected = 0; q.projected <= fastrnn_cell_shapes[q.cell].projects; q.projected++)
            if (fastrnn_cell_shapes[q.cell].gates >= least_gates)
                solve(q);
}

static void small_problems(void)
{
    static const int H[] = {1, 5, 17, 33, 64}, B[] = {1, 3, 7, 20}, I[] = {1, 3, 13};
    int n = 0;
    for (int k = 0; k < 5; k++)
        for (int row = 0; row < 4; row++)
            for (int way = 0; way < (B[row] > 1 ? 8 : 4); way++)
                each((problem){.single = way % 2,
                               .T = 6 + n % 4,
                               .B = B[row],
                               .I = I[n % 3],
                               .H = H[k],
                               .reverse = way / 2 % 2,
                               .mixed = way / 4},
                     0),
                    n += way % 2;
    for (int single = 0; single < 2; single++)
        for (int k = 0; k < 10; k++)
            multiply(single, k % 2, 1 + 5 * k, 3 + 17 * k % 40, 1 + 29 * k % 50);
}

/* Few rows: the units are divided. Thirteen rows are shared by two or three threads as they are, among four
 * the units are; twenty rows, which project their inputs step by step, come to that with six. */
static void large_problems(void)
{
    static const struct {
        int B, H, I, T, gates, shared;
    } shapes[] = {{3, 330, 13, 5, 0, 4}, {1, 333, 7, 5, 3, 4}, {13, 160, 3, 6, 0, 4}, {20, 192, 21, 4, 0, 6}};
    for (int k = 0; k < 4; k++)
        for (int way = 0; way < 2; way++) {
            must_share = threads <= shapes[k].shared;
            each((problem){.single = (way + k / 2) % 2,
                           .T = shapes[k].T,
                           .B = shapes[k].B,
                           .I = shapes[k].I,
                           .H = shapes[k].H,
                           .reverse = (k + way) % 2,
                           .mixed = way && shapes[k].B > 1},
                 shapes[k].gates);
        }
    must_share = 1;
    for (int single = 0; single < 2; single++) {
        multiply(single, 0, 3, 1100, 401); /* shared by columns, by rows, in several passes */
        multiply(single, 1, 201, 103, 99);
        multiply(single, 0, 300, 60, 250);
    }
}

int main(int count, char **arguments)
{
    const fastrnn_isa *isas[FASTRNN_MOST_ISAS + 1];
    int isa_count = fastrnn_available_isas(isas);
#ifdef WITH_WIDE
    extern const fastrnn_table fastrnn_wide_f32, fastrnn_wide_f64; /* want what the widest of the others has */
    static const fastrnn_isa wide = {"wide", 16, {&fastrnn_wide_f32, &fastrnn_wide_f64}};
    if (isa_count > 1)
        isas[isa_count++] = &wide;
#endif
    for (int k = 0; k < isa_count; k++)
        if (isas[k]->table[0]->run_forward && count == 1)
            printf("%s\n", isas[k]->name);
        else if (isas[k]->table[0]->run_forward && count == 4 && !strcmp(isas[k]->name, arguments[1]))
            isa = isas[k], engine = isa->name;
    if (count == 1)
        return 0;
    threads = count == 4 ? atoi(arguments[2]) : 0;
    if (!isa || threads < 1) {
        fprintf(stderr, "usage: engine [ISA THREADS small|large]\n");
        return 2;
    }
    if (strcmp(arguments[3], "large"))
        small_problems();
    else
        large_problems();
    return 0;
}
