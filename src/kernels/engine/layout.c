/* What lies where: tape, workspace, and the scratch of a run. Sizes come from the same walk as addresses. */
#include "call.h"

#include <string.h>

/* Rows of one chunk of BPTT: the depth of the products that make the gradients of the weights. */
enum { BACKWARD_ROWS = 512 };

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smallest(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- tape and rows between layers -------------------------------------------------------------------- */

static void take_kept(plan_t *b, const fastrnn_layer *layer, kept_t *kept)
{
    kept->h = fastrnn_take(&b->tape, (size_t)(b->S * layer->P) * b->item);
    for (int part = 0; part < layer->shape.inner; part++) {
        kept->inner[part] = fastrnn_take(&b->tape, (size_t)(b->S * layer->H) * b->item);
        kept->inner_rows[part] = fastrnn_take(&b->tape, (size_t)(b->N * layer->H) * b->item);
    }
    kept->cell = layer->KH ? fastrnn_take(&b->tape, (size_t)(b->N * layer->KH) * b->item) : NULL;
}

static fastrnn_rows take_rows(const plan_t *b, fastrnn_arena *arena, int64_t width)
{
    return (fastrnn_rows){fastrnn_take(arena, (size_t)(b->N * width) * b->item), width, 0, 0};
}

/* The tape holds the history of every layer, but for that of the top where y is it, and inputs that dropout changed. */
static void open_kept_level(plan_t *b, int layer, level_t *level)
{
    const fastrnn_stack *stack = b->stack;
    const fastrnn_layer *first = &stack->layers[layer * stack->D];
    if (layer && b->call->x_masks)
        level->x = take_rows(b, &b->tape, level->x.row);
    level->h = b->y;
    if (layer + 1 < stack->L || b->y.scattered)
        level->h = take_rows(b, &b->tape, stack->D * first->P);
    for (int direction = 0; direction < stack->D; direction++)
        take_kept(b, first + direction, &level->kept[direction]);
}

/* Without a tape, two arrays take turns between layers. */
static void open_passing_level(const plan_t *b, int layer, char *const passing[2], level_t *level)
{
    const fastrnn_stack *stack = b->stack;
    const int above = stack->L - 1 - layer;
    if (above)
        level->h = (fastrnn_rows){passing[above % 2 == 0], stack->D * stack->layers[layer * stack->D].P, 0, 0};
    else
        level->h = b->y.scattered ? (fastrnn_rows){0} : b->y;
}

/* The first is for the layer below the top; the second may be y, if its rows are wide enough for all layers. */
static void take_passing(plan_t *b, char *passing[2])
{
    const fastrnn_stack *stack = b->stack;
    const int use_y = !b->y.scattered && b->y.row == stack->width && fastrnn_output_width(stack) == stack->width;
    if (stack->L > 1)
        passing[0] = take_rows(b, &b->workspace, stack->width).data;
    if (stack->L > 2)
        passing[1] = use_y ? b->y.data : take_rows(b, &b->workspace, stack->width).data;
}

void fastrnn_lay_out(plan_t *b, int pass)
{
    const fastrnn_stack *stack = b->stack;
    const fastrnn_call *call = b->call;
    const int kept = pass == FASTRNN_BACKWARD || is_kept(call);
    char *passing[2] = {NULL, NULL};
    b->x = fastrnn_rows_of(b, call->x, stack->layers[0].I, 0);
    b->y = fastrnn_rows_of(b, call->y, fastrnn_output_width(stack), kept);
    b->y.scattered |= !call->y.data;
    b->levels = fastrnn_take(&b->workspace, sizeof(level_t) * (size_t)stack->L);
    if (kept)
        fastrnn_take(&b->tape, sizeof(tape_head));
    else
        take_passing(b, passing);
    level_t only_measured;
    fastrnn_rows below = b->x;
    for (int layer = 0; layer < stack->L; layer++) {
        level_t *level = b->levels ? &b->levels[layer] : &only_measured;
        level->x = below;
        if (kept)
            open_kept_level(b, layer, level);
        else
            open_passing_level(b, layer, passing, level);
        below = level->h;
    }
    for (int k = 0; pass == FASTRNN_BACKWARD && k < 2 && k + 1 < stack->L; k++)
        b->between[k] = take_rows(b, &b->workspace, stack->width).data;
}

/* ---- scratch of a run -------------------------------------------------------------------------------- */

void fastrnn_open_run(const plan_t *b, int k, fastrnn_run *run)
{
    const fastrnn_stack *stack = b->stack;
    const fastrnn_call *call = b->call;
    const fastrnn_layer *layer = &stack->layers[k];
    const level_t *level = &b->levels[k / stack->D];
    const int direction = k % stack->D, most = fastrnn_get_threads(), packed = b->map && b->map->packed;
    char *h_rows = level->h.data;
    run->layer = layer;
    run->item = b->item;
    run->T = b->steps, run->B = b->S, run->chunk = 0;
    run->offsets = (const fastrnn_size *)b->offsets;
    run->slots.T = call->T, run->slots.B = packed ? 1 : call->B;
    run->slots.source = b->map && !packed ? b->arrays.source : NULL;
    run->slots.order = run->slots.source ? b->arrays.order : NULL;
    run->slots.place = b->map ? b->arrays.place : NULL;
    run->slots.repeat = b->map && b->map->repeat;
    run->weights = &call->weights[k];
    run->panels = (fastrnn_layer_panels){0};
    run->x = level->x, run->x_chunk = NULL;
    run->h_rows = h_rows ? h_rows + (size_t)(direction * layer->P) * b->item : NULL;
    run->ldh = h_rows ? level->h.row : layer->P;
    run->ring = !h_rows;
    run->h = run->kept = NULL;
    for (int part = 0; part < FASTRNN_MOST_INNER; part++)
        run->inner[part] = run->inner_rows[part] = NULL;
    run->threads = call->threads > 0 && call->threads < most ? call->threads : most;
    run->poll = (fastrnn_poll){call->poll, call->poll_context};
}

void fastrnn_take_forward_scratch(const plan_t *b, fastrnn_arena *arena, fastrnn_forward_run *forward)
{
    fastrnn_run *run = &forward->run;
    const fastrnn_layer *layer = run->layer;
    run->chunk = largest(b->S, layer->forward_rows);
    const size_t chunk = (size_t)smallest(run->chunk, b->N);
    forward->sums = fastrnn_take(arena, (1 + chunk) * layer->sums_row);
    forward->bias = fastrnn_take(arena, (size_t)layer->AH * b->item);
    forward->unit = NULL;
    if (layer->projected || layer->shape.has_reset)
        forward->unit = fastrnn_take(arena, (size_t)(b->S * layer->H) * b->item);
    if (run->x.scattered)
        run->x_chunk = fastrnn_take(arena, chunk * (size_t)layer->I * b->item);
    if (run->ring) {
        run->chunk = (int64_t)chunk;
        run->h_rows = fastrnn_take(arena, 2 * chunk * (size_t)layer->P * b->item);
    }
}

void fastrnn_take_backward_scratch(const plan_t *b, fastrnn_arena *arena, fastrnn_backward_run *backward)
{
    fastrnn_run *run = &backward->run;
    const fastrnn_layer *layer = run->layer;
    const int64_t H = layer->H, P = layer->P, I = layer->I, DH = layer->DH;
    const int64_t chunk = smallest(b->N, largest(b->S, BACKWARD_ROWS));
    const int has_units = layer->projected || layer->shape.has_reset;
    const size_t item = b->item;
    run->chunk = chunk;
    backward->dbias = fastrnn_take(arena, (size_t)DH * item);
    backward->dgates = fastrnn_take(arena, (size_t)(chunk * DH) * item);
    backward->units = has_units ? fastrnn_take(arena, (size_t)(chunk * H) * item) : NULL;
    backward->dh_rows = layer->projected ? fastrnn_take(arena, (size_t)(chunk * P) * item) : NULL;
    backward->dunit = layer->projected ? fastrnn_take(arena, (size_t)(b->S * H) * item) : NULL;
    backward->h_prev = fastrnn_take(arena, (size_t)(chunk * P) * item);
    for (int part = 0; part < layer->shape.inner; part++)
        backward->inner_prev[part] = fastrnn_take(arena, (size_t)(b->S * H) * item);
    backward->panels_dgates = fastrnn_take(arena, fastrnn_panel_bytes(b->stack, 1, layer->AH, chunk));
    backward->panels_h = fastrnn_take(arena, fastrnn_panel_bytes(b->stack, 1, P, chunk));
    backward->panels_x = fastrnn_take(arena, fastrnn_panel_bytes(b->stack, 1, I, chunk));
    backward->panels_units = has_units ? fastrnn_take(arena, fastrnn_panel_bytes(b->stack, 1, H, chunk)) : NULL;
    if (run->x.scattered)
        run->x_chunk = fastrnn_take(arena, (size_t)(chunk * I) * item);
    if (backward->dy.scattered)
        backward->dy_chunk = fastrnn_take(arena, (size_t)(chunk * P) * item);
    if (backward->dx.scattered)
        backward->dx_chunk = fastrnn_take(arena, (size_t)(chunk * I) * item);
}

fastrnn_weights fastrnn_take_plain(const plan_t *b, fastrnn_arena *arena, const fastrnn_layer *layer,
                                   const fastrnn_weights *d)
{
    char *ih = fastrnn_take(arena, (size_t)(layer->G * layer->I) * b->item);
    char *hh = fastrnn_take(arena, (size_t)(layer->G * layer->P) * b->item);
    char *hr = layer->projected ? fastrnn_take(arena, (size_t)(layer->P * layer->H) * b->item) : NULL;
    return (fastrnn_weights){
        .size = sizeof *d,
        .weight_ih = d->weight_ih ? ih : NULL,
        .weight_hh = d->weight_hh ? hh : NULL,
        .weight_hr = d->weight_hr ? hr : NULL,
    };
}
