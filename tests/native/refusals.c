/* What fastrnn.h refuses, with which status and text; empty batches, which it takes; and its settings. Prints the number
 * of refusals. */
#include "fastrnn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int refusals;

/* The status, and a word of the text: the argument that is wrong. */
static void expect(int line, fastrnn_status found, fastrnn_status wanted, const char *error, const char *word)
{
    if (found != wanted || (found != FASTRNN_OK && !strstr(error, word))) {
        fprintf(stderr, "refusals: line %d: status %d \"%s\", expected %d and \"%s\"\n", line, (int)found, error,
                (int)wanted, word);
        exit(1);
    }
    refusals += found != FASTRNN_OK;
}

static void *allocate(size_t size)
{
    void *memory = calloc(size ? size : 1, 1);
    if (!memory)
        abort();
    return memory;
}

/* ---- stacks ----------------------------------------------------------------------------------------- */

static const fastrnn_spec good_spec = {
    .size = sizeof good_spec, .cell = "lstm", .dtype = FASTRNN_F32, .I = 3, .H = 5, .P = 5, .options = FASTRNN_BIAS_IH};

/* CHANGE is applied to two layers that fit each other. */
#define STACK(L, D, STATUS, WORD, CHANGE)                                                    \
    do {                                                                                     \
        fastrnn_spec spec[2] = {good_spec, good_spec};                                       \
        fastrnn_stack *stack = NULL;                                                         \
        char error[256] = "";                                                                \
        spec[1].I = 5;                                                                       \
        CHANGE;                                                                              \
        expect(__LINE__, fastrnn_stack_new(spec, L, D, &stack, error), STATUS, error, WORD); \
        if (((STATUS) == FASTRNN_OK) != (stack != NULL))                                     \
            expect(__LINE__, FASTRNN_INVALID, FASTRNN_OK, "a stack, or none", "");           \
        fastrnn_stack_free(stack);                                                           \
    } while (0)

static void refuse_stacks(void)
{
    STACK(2, 1, FASTRNN_OK, "", (void)0);
    STACK(0, 1, FASTRNN_INVALID, "L", (void)0);
    STACK(-1, 1, FASTRNN_INVALID, "L", (void)0);
    STACK(2, 0, FASTRNN_INVALID, "D", (void)0);
    STACK(2, 3, FASTRNN_INVALID, "D", (void)0);
    STACK(2, 1, FASTRNN_INVALID, "dtype", spec[0].dtype = 0);
    STACK(2, 1, FASTRNN_INVALID, "spec 1", spec[1].dtype = FASTRNN_F64);
    STACK(2, 1, FASTRNN_INVALID, "cell", spec[0].cell = "lstn");
    STACK(2, 1, FASTRNN_INVALID, "cell", spec[1].cell = NULL);
    STACK(2, 1, FASTRNN_INVALID, "spec 1", spec[1].cell = "gru");
    STACK(2, 1, FASTRNN_INVALID, "I, H, P", spec[0].I = 0);
    STACK(2, 1, FASTRNN_INVALID, "I, H, P", spec[0].H = spec[0].P = -5);
    STACK(2, 1, FASTRNN_INVALID, "I, H, P", spec[0].H = spec[0].P = INT64_MAX / 2);
    STACK(2, 1, FASTRNN_INVALID, "I, H, P", spec[0].I = INT64_MAX);
    STACK(2, 1, FASTRNN_INVALID, "P is not H", spec[0].P = 4);
    STACK(2, 1, FASTRNN_INVALID, "projected", spec[0].cell = "gru"; spec[0].options |= FASTRNN_PROJECTED);
    STACK(2, 1, FASTRNN_UNSUPPORTED, "options", spec[0].options |= 1u << 30);
    STACK(2, 1, FASTRNN_INVALID, "spec 1", spec[1].I = 4);
    STACK(1, 2, FASTRNN_INVALID, "spec 1", spec[1].I = 4);
}

/* ---- maps -------------------------------------------------------------------------------------------- */

#define MAP(STATUS, WORD, CHANGE)                                               \
    do {                                                                        \
        int64_t lengths[2] = {0, 3}, sizes[3] = {2, 2, 1};                      \
        fastrnn_batch batch = {.size = sizeof batch, .T = 3, .B = 2};           \
        void *map = allocate(fastrnn_map_size(3, 2));                           \
        char error[256] = "";                                                   \
        batch.lengths = lengths;                                                \
        (void)sizes;                                                            \
        CHANGE;                                                                 \
        expect(__LINE__, fastrnn_map(&batch, map, error), STATUS, error, WORD); \
        free(map);                                                              \
    } while (0)

static void refuse_maps(void)
{
    MAP(FASTRNN_OK, "", (void)0);
    MAP(FASTRNN_INVALID, "negative", batch.T = -1);
    MAP(FASTRNN_INVALID, "negative", batch.B = -1);
    MAP(FASTRNN_INVALID, "lengths[1]", lengths[1] = 4);
    MAP(FASTRNN_INVALID, "lengths[0]", lengths[0] = -1);
    MAP(FASTRNN_OK, "", batch.lengths = NULL; batch.batch_sizes = sizes);
    MAP(FASTRNN_UNSUPPORTED, "batch_sizes", batch.batch_sizes = sizes);
    MAP(FASTRNN_INVALID, "batch_sizes[1]", batch.lengths = NULL; batch.batch_sizes = sizes; sizes[1] = 3);
    MAP(FASTRNN_INVALID, "batch_sizes[0]", batch.lengths = NULL; batch.batch_sizes = sizes; sizes[0] = 3);
    MAP(FASTRNN_INVALID, "batch_sizes[2]", batch.lengths = NULL; batch.batch_sizes = sizes; sizes[2] = 0);
}

/* ---- calls ------------------------------------------------------------------------------------------- */

enum { T = 3, B = 2, I = 3, H = 5 };

/* A stack of one layer, all that its calls want, and others that do not fit. */
static struct {
    fastrnn_stack *stack, *other;
    float numbers[T * B * H], gradients[T * B * H], zeros[3 * H * H];
    fastrnn_weights weights;
    void *map, *short_map, *panels, *others_panels;
} made;

/* `keep`: the call is one that backward goes back to. */
static fastrnn_call good_call(int T_, int B_, int keep)
{
    fastrnn_call call = {
        .size = sizeof call,
        .T = T_,
        .B = B_,
        .keep = keep,
        .weights = &made.weights,
        .panels = made.panels,
        .panels_backward = made.panels,
        .x = {made.numbers, B_ * I, I},
        .y = {allocate(T * B * H * sizeof(float)), B_ * H, H},
        .state = {made.numbers},
        .final_state = {allocate(B * H * sizeof(float))},
    };
    size_t backward;
    fastrnn_call_sizes(made.stack, &call, FASTRNN_FORWARD, &call.tape_size, &call.workspace_size);
    call.dx = (fastrnn_sequence){allocate(T * B * I * sizeof(float)), B_ * I, I};
    call.dy = (fastrnn_sequence){made.gradients, B_ * H, H};
    call.dfinal_state[0] = made.gradients;
    call.dstate[0] = allocate(B * H * sizeof(float));
    fastrnn_call_sizes(made.stack, &call, FASTRNN_BACKWARD, NULL, &backward);
    call.workspace_size = backward > call.workspace_size ? backward : call.workspace_size;
    call.workspace = allocate(call.workspace_size);
    call.tape = keep ? allocate(call.tape_size) : NULL;
    return call;
}

static void close_call(const fastrnn_call *call)
{
    free(call->y.data), free(call->final_state[0]), free(call->dx.data), free(call->dstate[0]), free(call->workspace),
        free(call->tape);
}

#define CALL(PASS, STATUS, WORD, CHANGE)                                                      \
    do {                                                                                      \
        fastrnn_call whole = good_call(T, B, FASTRNN_KEEP_ALL), call = whole;                 \
        size_t tape, workspace;                                                               \
        char error[256] = "";                                                                 \
        fastrnn_call_sizes(made.stack, &call, PASS, &tape, &workspace);                       \
        if ((PASS) == FASTRNN_BACKWARD)                                                       \
            fastrnn_forward(made.stack, &call);                                               \
        CHANGE;                                                                               \
        expect(__LINE__, fastrnn_check(made.stack, &call, PASS, error), STATUS, error, WORD); \
        close_call(&whole);                                                                   \
    } while (0)

static void refuse_calls(void)
{
    static uint8_t masks[T * B * H];
    for (int pass = FASTRNN_FORWARD; pass <= FASTRNN_BACKWARD; pass *= 2) {
        CALL(pass, FASTRNN_OK, "", (void)0);
        CALL(pass, FASTRNN_INVALID, "negative", call.T = -1);
        CALL(pass, FASTRNN_INVALID, "negative", call.B = -1);
        CALL(pass, FASTRNN_INVALID, "map", call.map = made.short_map);
        CALL(pass, FASTRNN_INVALID, "x is NULL", call.x.data = NULL);
        CALL(pass, FASTRNN_INVALID, "weights", call.weights = NULL);
        CALL(pass, FASTRNN_INVALID, "x_masks", call.x_masks = masks);
        CALL(pass, FASTRNN_INVALID, "tape", call.tape = NULL);
        CALL(pass, FASTRNN_INVALID, "tape", call.tape_size = tape - 1);
        CALL(pass, FASTRNN_INVALID, "workspace", call.workspace = NULL);
        CALL(pass, FASTRNN_INVALID, "workspace", call.workspace_size = workspace - 1);
    }
    CALL(FASTRNN_FORWARD, FASTRNN_OK, "", call.panels = NULL);
    static const uint8_t no_gate[] = {1};
    fastrnn_weights wrong = made.weights, strided = made.weights;
    wrong.gate_order = no_gate;
    strided.hh_row = 1, strided.hh_column = H;
    CALL(FASTRNN_FORWARD, FASTRNN_INVALID, "gate_order", call.weights = &wrong);
    CALL(FASTRNN_BACKWARD, FASTRNN_INVALID, "gate_order", call.weights = &wrong);
    CALL(FASTRNN_BACKWARD, FASTRNN_INVALID, "gate_order", call.dweights = &wrong);
    CALL(FASTRNN_FORWARD, FASTRNN_OK, "", call.weights = &strided);
    CALL(FASTRNN_FORWARD, FASTRNN_INVALID, "panels", call.weights = &strided; call.panels = NULL);
    CALL(FASTRNN_FORWARD, FASTRNN_OK, "", call.keep = FASTRNN_KEEP_NOTHING; call.tape = NULL);
    CALL(FASTRNN_FORWARD, FASTRNN_WRONG_PANELS, "panels", call.panels = made.others_panels);
    CALL(FASTRNN_BACKWARD, FASTRNN_INVALID, "tape", call.keep = FASTRNN_KEEP_NOTHING);
    CALL(FASTRNN_BACKWARD, FASTRNN_INVALID, "tape", memset(call.tape, 0, call.tape_size));
    CALL(FASTRNN_BACKWARD, FASTRNN_INVALID, "tape", call.map = made.map);
    CALL(FASTRNN_BACKWARD, FASTRNN_INVALID, "tape", call.y.row = T * H; call.y.step = H);
    CALL(FASTRNN_BACKWARD, FASTRNN_WRONG_PANELS, "panels", call.panels_backward = NULL);
    CALL(FASTRNN_BACKWARD, FASTRNN_WRONG_PANELS, "panels", call.panels_backward = made.others_panels);
}

/* Panels are for the engine that made them, and for the passes that were asked for. */
static void refuse_panels(void)
{
    const char *names[8], *before = fastrnn_engine();
    const int engines = fastrnn_engines(names, 8);
    for (int k = 0; k < engines; k++) {
        fastrnn_use_engine(names[k]);
        CALL(FASTRNN_FORWARD, strcmp(names[k], before) ? FASTRNN_WRONG_PANELS : FASTRNN_OK, "panels", (void)0);
    }
    fastrnn_use_engine(before);
    void *forward = allocate(fastrnn_panels_size(made.stack, FASTRNN_FORWARD));
    static const uint8_t no_gate[] = {1};
    fastrnn_weights wrong = made.weights;
    wrong.gate_order = no_gate;
    expect(__LINE__, fastrnn_pack(made.stack, &wrong, FASTRNN_FORWARD, forward), FASTRNN_INVALID, "", "");
    fastrnn_pack(made.stack, &made.weights, FASTRNN_FORWARD, forward);
    CALL(FASTRNN_FORWARD, FASTRNN_OK, "", call.panels = forward);
    CALL(FASTRNN_BACKWARD, FASTRNN_WRONG_PANELS, "panels", call.panels_backward = forward);
    free(forward);
}

/* No steps, or no rows: states pass through, gradients of weights are zero. */
static void take_empty_batches(void)
{
    for (int steps = 0; steps < 2; steps++) {
        float dweight[H * H];
        char error[256] = "";
        fastrnn_call call = good_call(steps ? T : 0, steps ? 0 : B, FASTRNN_KEEP_ALL);
        const fastrnn_weights dweights = {.size = sizeof dweights, .weight_hh = dweight};
        memset(dweight, 0xff, sizeof dweight);
        call.dweights = &dweights;
        expect(__LINE__, fastrnn_check(made.stack, &call, FASTRNN_FORWARD, error), FASTRNN_OK, error, "");
        expect(__LINE__, fastrnn_forward(made.stack, &call), FASTRNN_OK, "forward", "");
        expect(__LINE__, fastrnn_check(made.stack, &call, FASTRNN_BACKWARD, error), FASTRNN_OK, error, "");
        expect(__LINE__, fastrnn_backward(made.stack, &call), FASTRNN_OK, "backward", "");
        for (int k = 0; k < H * H; k++)
            expect(__LINE__, dweight[k] != 0, FASTRNN_OK, "a gradient is not zero", "");
        for (int k = 0; !steps && k < B * H; k++)
            expect(__LINE__,
                   ((float *)call.final_state[0])[k] != made.numbers[k] ||
                       ((float *)call.dstate[0])[k] != made.gradients[k],
                   FASTRNN_OK, "a state does not pass through", "");
        close_call(&call);
    }
}

/* ---- settings ---------------------------------------------------------------------------------------- */

static void refuse_settings(void)
{
    const char *names[1] = {NULL};
    char error[256] = "";
    const int threads = fastrnn_get_threads();
    expect(__LINE__, fastrnn_abi() != FASTRNN_ABI, FASTRNN_OK, "abi", "");
    expect(__LINE__, fastrnn_engines(names, 1) < 1 || !names[0], FASTRNN_OK, "no engines", "");
    expect(__LINE__, fastrnn_engines(NULL, 0) < 1, FASTRNN_OK, "no engines", "");
    expect(__LINE__, fastrnn_use_engine("x86_v9"), FASTRNN_INVALID, "", "");
    expect(__LINE__, fastrnn_use_engine("blas"), FASTRNN_INVALID, "", ""); /* nobody has registered any */
    expect(__LINE__, fastrnn_use_engine("baseline"), FASTRNN_INVALID, "", "");
    expect(__LINE__, fastrnn_use_engine(""), FASTRNN_INVALID, "", "");
    expect(__LINE__, fastrnn_use_engine(NULL), FASTRNN_INVALID, "", "");
    expect(__LINE__, fastrnn_set_threads(0), FASTRNN_INVALID, "", "");
    expect(__LINE__, fastrnn_set_threads(-1), FASTRNN_INVALID, "", "");
    expect(__LINE__, fastrnn_set_threads(FASTRNN_MOST_THREADS + 1), FASTRNN_INVALID, "", "");
    expect(__LINE__, fastrnn_get_threads() != threads, FASTRNN_OK, "threads changed", "");
    expect(__LINE__, fastrnn_set_threads(FASTRNN_MOST_THREADS), FASTRNN_OK, "", "");
    expect(__LINE__, fastrnn_get_threads() != FASTRNN_MOST_THREADS, FASTRNN_OK, "threads did not change", "");
    expect(__LINE__, fastrnn_set_threads(2), FASTRNN_OK, "", "");
    expect(__LINE__, fastrnn_check_settings(error), FASTRNN_OK, error, "");
}

int main(void)
{
    char error[256] = "";
    int64_t lengths[B] = {1, 3};
    fastrnn_spec spec = good_spec;
    fastrnn_batch batch = {.size = sizeof batch, .T = T, .B = B, .lengths = lengths};
    refuse_settings();
    refuse_stacks();
    refuse_maps();

    spec.cell = "rnn_tanh";
    expect(__LINE__, fastrnn_stack_new(&spec, 1, 1, &made.stack, error), FASTRNN_OK, error, "");
    spec.cell = "gru";
    expect(__LINE__, fastrnn_stack_new(&spec, 1, 1, &made.other, error), FASTRNN_OK, error, "");
    for (int k = 0; k < T * B * H; k++)
        made.numbers[k] = 0.25f * (float)(k % 7) - 0.5f, made.gradients[k] = 0.5f * (float)(k % 5) - 1;
    made.weights = (fastrnn_weights){.size = sizeof made.weights, made.zeros, made.zeros, made.zeros, NULL, NULL};
    made.map = allocate(fastrnn_map_size(T, B));
    expect(__LINE__, fastrnn_map(&batch, made.map, error), FASTRNN_OK, error, "");
    lengths[1] = batch.T = T - 1;
    made.short_map = allocate(fastrnn_map_size(T - 1, B));
    expect(__LINE__, fastrnn_map(&batch, made.short_map, error), FASTRNN_OK, error, "");
    const int both = FASTRNN_FORWARD | FASTRNN_BACKWARD;
    made.panels = allocate(fastrnn_panels_size(made.stack, both));
    fastrnn_pack(made.stack, &made.weights, both, made.panels);
    made.others_panels = allocate(fastrnn_panels_size(made.other, both));
    fastrnn_pack(made.other, &made.weights, both, made.others_panels);
    refuse_calls();
    refuse_panels();
    take_empty_batches();

    free(made.map), free(made.short_map), free(made.panels), free(made.others_panels);
    fastrnn_stack_free(made.stack);
    fastrnn_stack_free(made.other);
    printf("ok  %d refusals\n", refusals);
    return 0;
}
