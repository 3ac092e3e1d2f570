/* The cells of more_cells.h through fastrnn.h, against loops over single numbers, and their gradients against finite
 * differences of those loops.
 *
 *     cells ISA THREADS */
#include "kernels.h"

#include "harness.h"

enum { MOST_RUNS = 4, L = 2 };

/* An array of numbers, and the gradient that the engine gave it. */
typedef struct {
    double *at, *gradient;
    int64_t count;
} numbers_t;

typedef struct {
    numbers_t ih, hh, b_ih, b_hh, hr, vector[FASTRNN_MOST_VECTORS];
} parameters_t;

typedef struct {
    fastrnn_cell_shape cell;
    int D, projected, states;
    int64_t T, B, I, H, P, W;
    int64_t *lengths; /* or NULL */
    numbers_t x, state[FASTRNN_MOST_STATES];
    parameters_t parameters[MOST_RUNS];
    double *y, *final[FASTRNN_MOST_STATES], *dy, *dfinal[FASTRNN_MOST_STATES]; /* of the loops; weights of the loss */
} problem;

static double sigmoid(double x) { return 1 / (1 + exp(-x)); }

/* ---- loops over single numbers ------------------------------------------------------------------------ */

/* Unit k of one row: `a` its pre-activations, `vector` its parameters. Returns what is h, or what is projected. */
static double unit_of(const problem *q, const double *a, const double *vector, double h_prev, double *inner)
{
    if (!strcmp(q->cell.name, "diagonal"))
        return tanh(a[0] + vector[0] * h_prev);
    if (!strcmp(q->cell.name, "peepholes")) {
        const double f = sigmoid(a[1] + vector[1] * inner[0]), i = sigmoid(a[0] + vector[0] * inner[0]);
        inner[0] = f * inner[0] + i * tanh(a[2]);
        return sigmoid(a[3] + vector[2] * inner[0]) * tanh(inner[0]);
    }
    const double i = sigmoid(a[0]), f = sigmoid(a[1]);
    inner[0] = f * inner[0] + i * tanh(a[2]);
    inner[1] = f * inner[1] + i;
    inner[2] = vector[0] * inner[2] + inner[0];
    return tanh(inner[2] + inner[1] * h_prev);
}

/* One step of a row: h (P), inner (H) each. */
static void step_of(const problem *q, const parameters_t *p, int64_t I, const double *x, double *h, double *inner[])
{
    double unit[64], next[64];
    for (int64_t k = 0; k < q->H; k++) {
        double a[8], vector[8], parts[3];
        for (int gate = 0; gate < q->cell.gates; gate++) {
            const int64_t row = gate * q->H + k;
            a[gate] = p->b_ih.at[row] + p->b_hh.at[row];
            for (int64_t i = 0; i < I; i++)
                a[gate] += p->ih.at[row * I + i] * x[i];
            for (int64_t i = 0; q->cell.hidden_blocks && i < q->P; i++)
                a[gate] += p->hh.at[row * q->P + i] * h[i];
        }
        for (int j = 0; j < q->cell.vectors; j++)
            vector[j] = p->vector[j].at[k];
        for (int j = 0; j < q->cell.inner; j++)
            parts[j] = inner[j][k];
        unit[k] = unit_of(q, a, vector, h[k < q->P ? k : 0], parts);
        for (int j = 0; j < q->cell.inner; j++)
            inner[j][k] = parts[j];
    }
    for (int64_t k = 0; k < q->P; k++) {
        next[k] = q->projected ? 0 : unit[k];
        for (int64_t i = 0; q->projected && i < q->H; i++)
            next[k] += p->hr.at[k * q->H + i] * unit[i];
    }
    memcpy(h, next, (size_t)q->P * sizeof *h);
}

/* y, the final states, and the loss: the sum of all of them, weighted with dy and dfinal. */
static double loss_of(const problem *q)
{
    static double between[1 << 15];
    double *below = q->x.at, loss = 0;
    int64_t I = q->I;
    for (int layer = 0; layer < L; layer++) {
        double *y = layer + 1 < L ? between : q->y;
        memset(y, 0, (size_t)(q->T * q->B * q->W) * sizeof *y);
        for (int direction = 0; direction < q->D; direction++)
            for (int64_t b = 0; b < q->B; b++) {
                const int k = layer * q->D + direction;
                const int64_t n = q->lengths ? q->lengths[b] : q->T, row = k * q->B + b;
                double *parts[FASTRNN_MOST_STATES];
                for (int part = 0; part < q->states; part++) {
                    const int64_t width = part ? q->H : q->P;
                    parts[part] = q->final[part] + row * width;
                    memcpy(parts[part], q->state[part].at + row * width, (size_t)width * sizeof(double));
                }
                for (int64_t t = 0; t < n; t++) {
                    const int64_t slot = (direction ? n - 1 - t : t) * q->B + b;
                    step_of(q, &q->parameters[k], I, below + slot * I, parts[0], parts + 1);
                    memcpy(y + slot * q->W + direction * q->P, parts[0], (size_t)q->P * sizeof *y);
                }
            }
        below = between, I = q->W;
    }
    for (int64_t k = 0; k < q->T * q->B * q->W; k++)
        loss += q->y[k] * q->dy[k];
    for (int part = 0; part < q->states; part++)
        for (int64_t k = 0; k < q->state[part].count; k++)
            loss += q->final[part][k] * q->dfinal[part][k];
    return loss;
}

/* ---- the engine ------------------------------------------------------------------------------------------ */

/* Doubles as numbers of the type at hand. */
static void *narrow(const double *from, int64_t n)
{
    char *to = array(n);
    for (int64_t k = 0; k < n; k++)
        if (item == sizeof(float))
            ((float *)to)[k] = (float)from[k];
        else
            ((double *)to)[k] = from[k];
    return to;
}

static void expect_close(const char *what, const void *actual, const double *expected, int64_t n, double tolerance)
{
    for (int64_t k = 0; k < n; k++) {
        const double value = item == sizeof(float) ? (double)((const float *)actual)[k] : ((const double *)actual)[k];
        if (!(fabs(value - expected[k]) <= tolerance * (1 + fabs(expected[k])))) {
            fprintf(stderr, "%s[%d] is %.17g, expected %.17g\n", what, (int)k, value, expected[k]);
            fail("differs from the loops");
        }
    }
}

static fastrnn_weights weights_of(const problem *q, const parameters_t *p, int empty)
{
    fastrnn_weights w = {.size = sizeof w};
    const numbers_t *from[] = {&p->ih, &p->hh, &p->b_ih, &p->b_hh, &p->hr};
    void **to[] = {&w.weight_ih, &w.weight_hh, &w.bias_ih, &w.bias_hh, &w.weight_hr};
    for (int k = 0; k < 5; k++)
        if (from[k]->count)
            *to[k] = empty ? array(from[k]->count) : narrow(from[k]->at, from[k]->count);
    for (int k = 0; k < q->cell.vectors; k++)
        w.vector[k] = empty ? array(q->H) : narrow(p->vector[k].at, q->H);
    return w;
}

static void expect_ok(fastrnn_status status, const char *error)
{
    if (status != FASTRNN_OK)
        fail(error);
}

static fastrnn_stack *stack_of(const problem *q)
{
    fastrnn_spec specs[MOST_RUNS];
    fastrnn_stack *stack;
    char error[256];
    for (int k = 0; k < L * q->D; k++)
        specs[k] = (fastrnn_spec){
            .size = sizeof *specs,
            .cell = q->cell.name,
            .dtype = item == sizeof(float) ? FASTRNN_F32 : FASTRNN_F64,
            .I = k < q->D ? q->I : q->W,
            .H = q->H,
            .P = q->P,
            .options = FASTRNN_BIAS_IH | FASTRNN_BIAS_HH | (q->projected ? FASTRNN_PROJECTED : 0),
        };
    expect_ok(fastrnn_stack_new(specs, L, q->D, &stack, error), error);
    return stack;
}

/* Forward with the tape, and without it from unpacked weights; then backward. */
static void solve(problem *q)
{
    const double tolerance = item == sizeof(float) ? 2e-5 : 1e-13;
    const int64_t rows = q->T * q->B, S = q->B;
    fastrnn_stack *stack = stack_of(q);
    fastrnn_weights weights[MOST_RUNS], dweights[MOST_RUNS];
    char error[256] = "";
    for (int k = 0; k < L * q->D; k++)
        weights[k] = weights_of(q, &q->parameters[k], 0), dweights[k] = weights_of(q, &q->parameters[k], 1);
    fastrnn_call call = {.size = sizeof call, .T = q->T, .B = q->B, .weights = weights, .keep = FASTRNN_KEEP_ALL};
    if (q->lengths) {
        const fastrnn_batch batch = {.size = sizeof batch, .T = q->T, .B = q->B, .lengths = q->lengths};
        void *map = block(fastrnn_map_size(q->T, q->B), sizeof(int64_t));
        expect_ok(fastrnn_map(&batch, map, error), error);
        call.map = map;
    }
    void *panels = block(fastrnn_panels_size(stack, FASTRNN_FORWARD | FASTRNN_BACKWARD), sizeof(int64_t));
    expect_ok(fastrnn_pack(stack, weights, FASTRNN_FORWARD | FASTRNN_BACKWARD, panels), "pack");
    call.panels = call.panels_backward = panels;
    call.x = (fastrnn_sequence){narrow(q->x.at, q->x.count), q->B * q->I, q->I};
    call.y = (fastrnn_sequence){array(rows * q->W), q->B * q->W, q->W};
    call.tape_size = fastrnn_tape_size(stack, q->T, q->B, rows, S, q->lengths != NULL);
    call.tape = block(call.tape_size, sizeof(int64_t));
    call.workspace_size = fastrnn_workspace_size(stack, q->T, q->B, rows, S, FASTRNN_FORWARD | FASTRNN_BACKWARD);
    call.workspace = block(call.workspace_size, sizeof(int64_t));
    for (int part = 0; part < q->states; part++) {
        call.state[part] = narrow(q->state[part].at, q->state[part].count);
        call.final_state[part] = array(q->state[part].count);
    }
    loss_of(q);
    for (int unpacked = 0; unpacked < 2; unpacked++) {
        fastrnn_call forward = call;
        if (unpacked)
            forward.panels = NULL, forward.keep = FASTRNN_KEEP_NOTHING, forward.y.data = array(rows * q->W);
        expect_ok(fastrnn_check(stack, &forward, FASTRNN_FORWARD, error), error);
        expect_ok(fastrnn_forward(stack, &forward), "forward");
        expect_close("y", forward.y.data, q->y, rows * q->W, tolerance);
        for (int part = 0; part < q->states; part++)
            expect_close("final state", call.final_state[part], q->final[part], q->state[part].count, tolerance);
    }
    call.dy = (fastrnn_sequence){narrow(q->dy, rows * q->W), q->B * q->W, q->W};
    call.dx = (fastrnn_sequence){array(q->x.count), q->B * q->I, q->I};
    call.dweights = dweights;
    for (int part = 0; part < q->states; part++) {
        call.dfinal_state[part] = narrow(q->dfinal[part], q->state[part].count);
        call.dstate[part] = array(q->state[part].count);
    }
    expect_ok(fastrnn_check(stack, &call, FASTRNN_BACKWARD, error), error);
    expect_ok(fastrnn_backward(stack, &call), "backward");
    fastrnn_stack_free(stack);

    report("y", call.y.data, rows, q->W, q->W);
    report("dx", call.dx.data, rows, q->I, q->I);
    q->x.gradient = call.dx.data;
    for (int part = 0; part < q->states; part++)
        q->state[part].gradient = call.dstate[part];
    for (int k = 0; k < L * q->D; k++) {
        parameters_t *p = &q->parameters[k];
        const fastrnn_weights *d = &dweights[k];
        p->ih.gradient = d->weight_ih, p->hh.gradient = d->weight_hh, p->hr.gradient = d->weight_hr;
        p->b_ih.gradient = d->bias_ih, p->b_hh.gradient = d->bias_hh;
        for (int j = 0; j < q->cell.vectors; j++) {
            p->vector[j].gradient = d->vector[j];
            report("dvector", d->vector[j], 1, q->H, q->H);
        }
    }
    printf("\n");
}

/* ---- gradients ------------------------------------------------------------------------------------------ */

static void check_gradient(const char *what, const problem *q, const numbers_t *numbers)
{
    const double step = 1e-4;
    for (int64_t k = 0; k < numbers->count; k++) {
        double *at = &numbers->at[k], was = *at, sums[4];
        for (int j = 0; j < 4; j++) { /* five-point rule: an error of the order of step^4 */
            *at = was + step * (j < 2 ? j - 2 : j - 1);
            sums[j] = loss_of(q);
        }
        *at = was;
        const double expected = (sums[0] - 8 * sums[1] + 8 * sums[2] - sums[3]) / (12 * step);
        expect_close(what, &numbers->gradient[k], &expected, 1, 1e-8);
    }
}

static void check_gradients(const problem *q)
{
    if (q->T > 4) { /* many chunks: what is summed over all of them */
        check_gradient("dbias_ih", q, &q->parameters[0].b_ih);
        for (int j = 0; j < q->cell.vectors; j++)
            check_gradient("dvector", q, &q->parameters[0].vector[j]);
        return;
    }
    check_gradient("dx", q, &q->x);
    for (int part = 0; part < q->states; part++)
        check_gradient("dstate", q, &q->state[part]);
    for (int k = 0; k < L * q->D; k++) {
        const parameters_t *p = &q->parameters[k];
        check_gradient("dweight_ih", q, &p->ih);
        check_gradient("dweight_hh", q, &p->hh);
        check_gradient("dbias_ih", q, &p->b_ih);
        check_gradient("dbias_hh", q, &p->b_hh);
        check_gradient("dweight_hr", q, &p->hr);
        for (int j = 0; j < q->cell.vectors; j++)
            check_gradient("dvector", q, &p->vector[j]);
    }
}

/* ---- problems --------------------------------------------------------------------------------------------- */

static numbers_t made_up(int64_t count, int64_t K)
{
    item = sizeof(double); /* of the loops */
    return (numbers_t){count ? numbers(count, K) : NULL, NULL, count};
}

static void make(problem *q)
{
    const int64_t G = q->cell.gates * q->H, count = L * q->D * q->B;
    q->x = made_up(q->T * q->B * q->I, 1);
    q->y = made_up(q->T * q->B * q->W, 1).at, q->dy = made_up(q->T * q->B * q->W, 1).at;
    for (int part = 0; part < q->states; part++) {
        const int64_t width = part ? q->H : q->P;
        q->state[part] = made_up(count * width, 1);
        q->final[part] = made_up(count * width, 1).at, q->dfinal[part] = made_up(count * width, 1).at;
    }
    for (int k = 0; k < L * q->D; k++) {
        const int64_t I = k < q->D ? q->I : q->W;
        parameters_t *p = &q->parameters[k];
        p->ih = made_up(G * I, I), p->hh = made_up(q->cell.hidden_blocks ? G * q->P : 0, q->P);
        p->b_ih = made_up(G, 1), p->b_hh = made_up(G, 1), p->hr = made_up(q->projected ? q->P * q->H : 0, q->H);
        for (int j = 0; j < q->cell.vectors; j++)
            p->vector[j] = made_up(q->H, 1);
    }
}

int main(int count, char **arguments)
{
    int64_t lengths[20];
    threads = count == 3 ? atoi(arguments[2]) : 0;
    if (threads < 1 || fastrnn_use_engine(arguments[1]) != FASTRNN_OK || fastrnn_set_threads(threads) != FASTRNN_OK) {
        fprintf(stderr, "usage: cells ISA THREADS\n");
        return 2;
    }
    engine = arguments[1];
    for (int cell = FASTRNN_CELLS - 3; cell < FASTRNN_CELLS; cell++)
        for (int way = 0; way < 18; way++) {
            problem q = {.cell = fastrnn_cell_shapes[cell], .D = 1 + way % 2, .projected = way / 8 == 1};
            char name[80];
            if (q.projected && !q.cell.projects)
                continue;
            q.states = 1 + q.cell.inner;
            q.T = 4, q.B = 1 + way / 2 % 2 * 4, q.I = 3, q.H = way % 3 ? 5 : 19;
            if (way >= 16) /* many rows and chunks */
                q.T = 40, q.B = 20, q.H = 6;
            q.P = q.projected ? 3 : q.H, q.W = q.D * q.P;
            for (int64_t b = 0; b < q.B; b++)
                lengths[b] = (b * 3 + 2) % (q.T + 1);
            q.lengths = way / 4 % 2 || way == 17 ? lengths : NULL;
            snprintf(name, sizeof name, "%s %d", q.cell.name, way);
            open_problem(name);
            make(&q);
            for (int single = 1; single >= 0; single--) {
                item = single ? sizeof(float) : sizeof(double);
                solve(&q);
            }
            if (way % 4 == 1 || way % 4 == 2 || way == 16)
                check_gradients(&q);
            free_all();
        }
    return 0;
}
