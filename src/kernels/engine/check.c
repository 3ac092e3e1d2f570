/* The sizes of tape and workspace, and the checks of a call. */
#include "call.h"

#include <stdio.h>

/* ---- sizes ------------------------------------------------------------------------------------------- */

/* Bytes of scratch, states included, of the run that needs most: runs follow each other and share the memory. */
static size_t scratch_size(const plan_t *b, int pass, int strided)
{
    const fastrnn_stack *stack = b->stack;
    const fastrnn_rows dy = fastrnn_rows_of(b, b->call->dy, fastrnn_output_width(stack), 0);
    const fastrnn_rows dx = fastrnn_rows_of(b, b->call->dx, stack->layers[0].I, 0);
    size_t most = 0;
    for (int k = 0; k < stack->L * stack->D; k++) {
        const fastrnn_layer *layer = &stack->layers[k];
        const int bottom = k < stack->D, top = k >= (stack->L - 1) * stack->D;
        fastrnn_arena arena = fastrnn_open_arena(NULL);
        fastrnn_run run = {.layer = layer, .x.scattered = bottom && b->x.scattered};
        run.ring = top && b->y.scattered && !is_kept(b->call);
        fastrnn_take(&arena, (size_t)(b->S * layer->P) * b->item);
        for (int part = 0; part < layer->shape.inner; part++)
            fastrnn_take(&arena, (size_t)(b->S * layer->H) * b->item);
        if (pass == FASTRNN_FORWARD) {
            fastrnn_take_forward_scratch(b, &arena, &(fastrnn_forward_run){.run = run});
        } else {
            fastrnn_backward_run backward = {.run = run};
            backward.dy.scattered = top && dy.scattered;
            backward.dx.scattered = bottom && dx.scattered;
            fastrnn_take_backward_scratch(b, &arena, &backward);
            const fastrnn_weights none = {0}, *d = b->call->dweights ? &b->call->dweights[k] : &none;
            if (strided || !fastrnn_is_plain(d, layer))
                fastrnn_take_plain(b, &arena, layer, d);
        }
        most = arena.used > most ? arena.used : most;
    }
    return most;
}

/* Sizes of a call with N packed rows in S segments. */
static void measure(const fastrnn_stack *stack, const fastrnn_call *call, int64_t N, int64_t S, int pass, int strided,
                    size_t *tape, size_t *workspace)
{
    fastrnn_call sizes = *call;
    sizes.tape = sizes.workspace = NULL;
    plan_t b;
    fastrnn_open_plan(&b, stack, &sizes);
    b.N = N, b.S = S;
    fastrnn_lay_out(&b, pass);
    if (tape)
        *tape = b.tape.used;
    if (workspace)
        *workspace = b.workspace.used + scratch_size(&b, pass, strided);
}

void fastrnn_call_sizes(const fastrnn_stack *stack, const fastrnn_call *call, int pass, size_t *tape, size_t *workspace)
{
    plan_t b;
    fastrnn_open_plan(&b, stack, &(fastrnn_call){.map = call->map, .T = call->T, .B = call->B});
    measure(stack, call, b.N, b.S, pass, 0, tape, workspace);
}

/* The call that needs most memory: with dropout, and, if `scattered`, with a map. Only the header of that map is
 * read. */
static fastrnn_call largest_call(const fastrnn_stack *stack, int64_t T, int64_t B, int scattered)
{
    static const uint8_t masks = 0;
    static const fastrnn_map_head map = {0};
    static char somewhere;
    const int64_t W = fastrnn_output_width(stack);
    return (fastrnn_call){
        .map = scattered ? &map : NULL,
        .T = T,
        .B = B,
        .keep = FASTRNN_KEEP_ALL,
        .y = {&somewhere, B * W, W},
        .x_masks = stack->L > 1 ? &masks : NULL,
    };
}

size_t fastrnn_tape_size(const fastrnn_stack *stack, int64_t T, int64_t B, int64_t N_at_most, int64_t S_at_most,
                         int scattered)
{
    const fastrnn_call call = largest_call(stack, T, B, scattered);
    size_t tape;
    measure(stack, &call, N_at_most, S_at_most, FASTRNN_FORWARD, 0, &tape, NULL);
    return tape;
}

size_t fastrnn_workspace_size(const fastrnn_stack *stack, int64_t T, int64_t B, int64_t N_at_most, int64_t S_at_most,
                              int passes)
{
    fastrnn_call call = largest_call(stack, T, B, 1);
    size_t sizes[3] = {0};
    if (passes & FASTRNN_BACKWARD)
        measure(stack, &call, N_at_most, S_at_most, FASTRNN_BACKWARD, passes & FASTRNN_STRIDED, NULL, &sizes[0]);
    if (passes & FASTRNN_FORWARD)
        measure(stack, &call, N_at_most, S_at_most, FASTRNN_FORWARD, 0, NULL, &sizes[1]);
    call.keep = FASTRNN_KEEP_NOTHING;
    if (passes & FASTRNN_FORWARD)
        measure(stack, &call, N_at_most, S_at_most, FASTRNN_FORWARD, 0, NULL, &sizes[2]);
    const size_t most = sizes[0] > sizes[1] ? sizes[0] : sizes[1], offsets = sizeof(int64_t) * (size_t)(T + 8);
    return offsets + (most > sizes[2] ? most : sizes[2]); /* without a map, the workspace holds the offsets, too */
}

/* ---- checks ------------------------------------------------------------------------------------------ */

static fastrnn_status fail(char *error, fastrnn_status status, const char *what)
{
    snprintf(error, 256, "%s", what);
    return status;
}

static fastrnn_status check_backward(const fastrnn_stack *stack, const plan_t *b, char *error)
{
    const fastrnn_call *call = b->call;
    const tape_head *head = (const tape_head *)b->tape.base;
    fastrnn_rows y = fastrnn_rows_of(b, call->y, fastrnn_output_width(stack), 1);
    y.scattered |= !call->y.data;
    if (call->keep == FASTRNN_KEEP_NOTHING || !head || head->magic != TAPE_MAGIC || head->hash != stack->hash)
        return fail(error, FASTRNN_INVALID, "tape is not one that forward filled for this stack");
    if (head->N != b->N || head->S != b->S || head->steps != b->steps || head->holds_top != y.scattered)
        return fail(error, FASTRNN_INVALID, "tape is of another batch, or y lies in another way than in forward");
    if (fastrnn_is_fused() && fastrnn_match_panels(stack, call->panels_backward, 1) != FASTRNN_OK)
        return fail(error, FASTRNN_WRONG_PANELS,
                    "panels_backward are of another engine or stack, or are not for backward");
    return FASTRNN_OK;
}

/* Weights that are not plain can be read through panels only: not by a back end, nor as unpacked weights. */
static fastrnn_status check_weights(const fastrnn_stack *stack, const fastrnn_call *call, int backward, char *error)
{
    for (int k = 0; k < stack->L * stack->D; k++) {
        const fastrnn_layer *layer = &stack->layers[k];
        const fastrnn_weights *d = backward && call->dweights ? &call->dweights[k] : NULL;
        if (!fastrnn_has_valid_order(&call->weights[k], layer) || (d && !fastrnn_has_valid_order(d, layer)))
            return fail(error, FASTRNN_INVALID, "gate_order is not a permutation of the cell's gates");
        for (int j = 0; j < layer->shape.vectors; j++)
            if (!call->weights[k].vector[j])
                return fail(error, FASTRNN_INVALID, "vector is NULL, which the cell has");
        if (!layer->shape.hidden_blocks && d && d->weight_hh)
            return fail(error, FASTRNN_INVALID, "the gradient of weight_hh is wanted, which the cell has not");
        if (fastrnn_is_plain(&call->weights[k], layer))
            continue;
        if (!fastrnn_is_fused())
            return fail(error, FASTRNN_UNSUPPORTED, "weights with strides or a gate order: this engine has no panels");
        if (!backward && !call->panels)
            return fail(error, FASTRNN_INVALID, "weights with strides or a gate order are read through panels only");
    }
    return FASTRNN_OK;
}

fastrnn_status fastrnn_check(const fastrnn_stack *stack, const fastrnn_call *call, int pass, char error[256])
{
    const int backward = pass == FASTRNN_BACKWARD;
    size_t tape, workspace;
    if (call->T < 0 || call->B < 0)
        return fail(error, FASTRNN_INVALID, "T or B is negative");
    plan_t b;
    fastrnn_open_plan(&b, stack, &(fastrnn_call){.map = call->map, .T = call->T, .B = call->B});
    if (b.map && (b.map->T != call->T || b.map->B != call->B))
        return fail(error, FASTRNN_INVALID, "map is of another T or B");
    if (b.N && !call->x.data)
        return fail(error, FASTRNN_INVALID, "x is NULL");
    if (!call->weights)
        return fail(error, FASTRNN_INVALID, "weights are NULL");
    if (call->x_masks && stack->L == 1)
        return fail(error, FASTRNN_INVALID, "x_masks are given, but there is one layer");
    const fastrnn_status weights = check_weights(stack, call, backward, error);
    if (weights != FASTRNN_OK)
        return weights;
    fastrnn_call_sizes(stack, call, pass, &tape, &workspace);
    if ((call->keep != FASTRNN_KEEP_NOTHING || backward) && (!call->tape || call->tape_size < tape))
        return fail(error, FASTRNN_INVALID, "tape is NULL or too small");
    if (!call->workspace || call->workspace_size < workspace)
        return fail(error, FASTRNN_INVALID, "workspace is NULL or too small");
    if (backward) {
        plan_t whole;
        fastrnn_open_plan(&whole, stack, call);
        return check_backward(stack, &whole, error);
    }
    if (fastrnn_is_fused() && call->panels && fastrnn_match_panels(stack, call->panels, 0) != FASTRNN_OK)
        return fail(error, FASTRNN_WRONG_PANELS, "panels are of another engine or stack, or are not for forward");
    return FASTRNN_OK;
}
