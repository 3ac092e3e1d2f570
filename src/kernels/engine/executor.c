/* Calls: all layers and directions of a stack, forward and backward, over whatever steps of the batch are real.
 *
 * Forward gathers the real steps of x into packed rows (map.h), runs each layer and direction on them, and scatters
 * the packed rows of the top layer to y. Where the batch is full, or comes in packed rows, x and y are read and written
 * where they lie. Backward does the same in the opposite order. What forward keeps, it keeps in the tape, in the same
 * packed rows; where y holds the packed rows of the top layer, the tape does not hold them again. */
#include "dispatch.h"
#include "map.h"
#include "stack.h"

#include <stdio.h>
#include <string.h>

/* Rows of one chunk of BPTT: the depth of the products that make the gradients of the weights. */
enum { BACKWARD_ROWS = 512 };

typedef struct {
    uint64_t magic, hash;
    int64_t N, S, steps, top; /* top: whether the tape holds the rows of the top layer */
} tape_head;

#define TAPE_MAGIC UINT64_C(0x65706174746e7266)

/* What the tape holds of a layer and direction: h_0 (S, P), c_0 (S, H), gates (N, A*H), c (N, H). */
typedef struct {
    char *h_0, *c_0, *gates, *c;
} kept_t;

/* A matrix of packed rows; `row` in numbers. */
typedef struct {
    char *data;
    int64_t row;
} rows_t;

/* A call, and what follows from its batch. */
typedef struct {
    const fastrnn_stack *stack;
    const fastrnn_call *call;
    const fastrnn_map_head *map;
    fastrnn_map_arrays at; /* of the map */
    int64_t N, S, steps;
    size_t item;
    const int64_t *offsets;
    fastrnn_arena tape, workspace;
    rows_t x, y;     /* the packed rows of the stack's input and output; y.data is NULL where the tape has them */
    rows_t inner[2]; /* without a tape: what the layers below the top take turns in */
    size_t tape_used;
} batch_t;

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }
static int64_t smallest(int64_t a, int64_t b) { return a < b ? a : b; }

/* ---- the batch ------------------------------------------------------------------------------------- */

static batch_t open_batch(const fastrnn_stack *stack, const fastrnn_call *call)
{
    batch_t b = {.stack = stack, .call = call, .map = call->map, .item = stack->item};
    b.tape = fastrnn_open_arena(call->tape);
    b.workspace = fastrnn_open_arena(call->workspace);
    if (b.map) {
        b.at = fastrnn_map_view(b.map);
        b.N = b.map->N, b.S = b.map->S, b.steps = b.map->steps;
        b.offsets = b.at.offsets;
        return b;
    }
    b.N = call->T * call->B, b.S = call->B, b.steps = call->B ? call->T : 0;
    int64_t *offsets = fastrnn_take(&b.workspace, sizeof(int64_t) * (size_t)(b.steps + 1));
    if (offsets)
        for (int64_t t = 0; t <= b.steps; t++)
            offsets[t] = t * call->B;
    b.offsets = offsets;
    return b;
}

/* Whether the packed rows of `width` numbers lie in `s` one after the other, in memory as in order. */
static int is_direct(const batch_t *b, fastrnn_sequence s, int64_t width)
{
    if (b->map)
        return b->map->packed && s.row == width;
    return (b->call->B == 1 || s.row == width) && (b->call->T <= 1 || s.step == b->call->B * width);
}

static char *cell_of(const batch_t *b, fastrnn_sequence s, int64_t cell)
{
    const int64_t t = cell / b->call->B, row = cell % b->call->B;
    return (char *)s.data + (t * s.step + row * s.row) * (int64_t)b->item;
}

static const int64_t *source_of(const batch_t *b) { return b->map ? b->at.source : NULL; }

/* Packed rows of `width` numbers from a padded sequence. With repeated outputs, the gradient of a masked one is that
 * of the real one before it, in the order of the direction. */
static void gather(const batch_t *b, fastrnn_sequence s, int64_t width, char *to)
{
    const int64_t *source = source_of(b);
    const size_t bytes = (size_t)width * b->item;
    for (int64_t row = 0; row < b->N; row++)
        memcpy(to + (size_t)row * bytes, cell_of(b, s, source ? source[row] : row), bytes);
}

/* The other way; cells without a row become zero. */
static void scatter(const batch_t *b, const char *from, int64_t width, fastrnn_sequence s)
{
    const size_t bytes = (size_t)width * b->item;
    const int64_t cells = b->call->T * b->call->B;
    for (int64_t cell = 0; cell < cells; cell++) {
        const int64_t row = b->map ? b->at.place[cell] : cell;
        if (row >= 0)
            memcpy(cell_of(b, s, cell), from + (size_t)row * bytes, bytes);
        else
            memset(cell_of(b, s, cell), 0, bytes);
    }
}

/* ---- masked outputs that repeat ---------------------------------------------------------------------- */

/* One direction of a row at a time: `width` columns from `column` on. Forward in time, or against it. */
#define FOR_TIME(T, REVERSE, t) \
    for (int64_t step_ = 0, t = (REVERSE) ? (T) - 1 : 0; step_ < (T); step_++, t += (REVERSE) ? -1 : 1)

static void repeat_outputs(const batch_t *b, fastrnn_sequence y, int64_t column, int64_t width, int reverse)
{
    const size_t bytes = (size_t)width * b->item, from = (size_t)column * b->item;
    for (int64_t row = 0; row < b->call->B; row++) {
        const char *last = NULL;
        FOR_TIME(b->call->T, reverse, t)
        {
            const int64_t cell = t * b->call->B + row;
            char *at = cell_of(b, y, cell) + from;
            if (b->at.place[cell] >= 0)
                last = at;
            else if (last)
                memcpy(at, last, bytes);
        }
    }
}

/* Add the gradients of the outputs that repeat row `place` to its own, in packed rows. */
static void collect_gradients(const batch_t *b, fastrnn_sequence dy, int64_t column, int64_t width, int reverse,
                              char *rows, int64_t row_width)
{
    for (int64_t row = 0; row < b->call->B; row++) {
        int64_t last = -1;
        FOR_TIME(b->call->T, reverse, t)
        {
            const int64_t cell = t * b->call->B + row, place = b->at.place[cell];
            if (place >= 0) {
                last = place;
                continue;
            }
            if (last < 0)
                continue;
            const char *from = cell_of(b, dy, cell) + (size_t)column * b->item;
            char *to = rows + (size_t)(last * row_width + column) * b->item;
            for (int64_t k = 0; k < width; k++)
                if (b->item == sizeof(float))
                    ((float *)to)[k] += ((const float *)from)[k];
                else
                    ((double *)to)[k] += ((const double *)from)[k];
        }
    }
}

/* ---- states ------------------------------------------------------------------------------------------ */

/* The states (S, width) that segments of layer k begin with, from the given ones (L*D, B, width). */
static void begin_states(const batch_t *b, int k, const void *given, int64_t width, char *to)
{
    const size_t bytes = (size_t)width * b->item;
    const char *from = given ? (const char *)given + (size_t)(k * b->call->B) * bytes : NULL;
    if (!b->map && from) {
        if (to != from) /* the final state may lie where the initial one does */
            memmove(to, from, (size_t)b->S * bytes);
        return;
    }
    const int64_t *begin = b->map ? b->at.begin[b->stack->layers[k].reverse] : NULL;
    for (int64_t s = 0; s < b->S; s++)
        if (from && begin[s] >= 0)
            memcpy(to + (size_t)s * bytes, from + (size_t)begin[s] * bytes, bytes);
        else
            memset(to + (size_t)s * bytes, 0, bytes);
}

/* The final states (L*D, B, width) of rows, from those of the segments. */
static void end_states(const batch_t *b, int k, const char *from, const void *given, int64_t width, void *final)
{
    const size_t bytes = (size_t)width * b->item, at = (size_t)(k * b->call->B) * bytes;
    const int64_t *end = b->at.end[b->stack->layers[k].reverse];
    if (!final)
        return;
    for (int64_t row = 0; row < b->call->B; row++) {
        char *to = (char *)final + at + (size_t)row * bytes;
        if (end[row] >= 0)
            memcpy(to, from + (size_t)end[row] * bytes, bytes);
        else if (end[row] == FASTRNN_STATE_GIVEN && given)
            memmove(to, (const char *)given + at + (size_t)row * bytes, bytes);
        else
            memset(to, 0, bytes);
    }
}

/* Gradients of the states of segments (S, width) after their last step, from those of the rows. */
static void end_gradients(const batch_t *b, int k, const void *given, int64_t width, char *to)
{
    const size_t bytes = (size_t)width * b->item;
    const char *from = given ? (const char *)given + (size_t)(k * b->call->B) * bytes : NULL;
    if (!b->map) {
        if (from)
            memmove(to, from, (size_t)b->S * bytes);
        else
            memset(to, 0, (size_t)b->S * bytes);
        return;
    }
    const int64_t *end = b->at.end[b->stack->layers[k].reverse];
    memset(to, 0, (size_t)b->S * bytes);
    for (int64_t row = 0; from && row < b->call->B; row++)
        if (end[row] >= 0)
            memcpy(to + (size_t)end[row] * bytes, from + (size_t)row * bytes, bytes);
}

/* Gradients of the given states (L*D, B, width), from those of the segments; that of a row whose state passes through. */
static void begin_gradients(const batch_t *b, int k, const char *from, const void *dfinal, int64_t width, void *out)
{
    const size_t bytes = (size_t)width * b->item, at = (size_t)(k * b->call->B) * bytes;
    const int64_t *begin = b->at.begin[b->stack->layers[k].reverse], *end = b->at.end[b->stack->layers[k].reverse];
    for (int64_t row = 0; row < b->call->B; row++) {
        char *to = (char *)out + at + (size_t)row * bytes;
        if (end[row] != FASTRNN_STATE_GIVEN || !dfinal)
            memset(to, 0, bytes);
        else
            memmove(to, (const char *)dfinal + at + (size_t)row * bytes, bytes);
    }
    for (int64_t s = 0; s < b->S; s++)
        if (begin[s] >= 0)
            memcpy((char *)out + at + (size_t)begin[s] * bytes, from + (size_t)s * bytes, bytes);
}

/* Where the rows of a layer lie, and what it keeps. */
typedef struct {
    kept_t kept;
    rows_t x, y;
} place_t;

/* ---- one layer, one direction ------------------------------------------------------------------------ */

static void open_run(const batch_t *b, int k, const place_t *place, fastrnn_run *run)
{
    const fastrnn_layer *layer = &b->stack->layers[k];
    const fastrnn_weights *w = b->call->weights ? &b->call->weights[k] : NULL;
    const int threads = b->call->threads, most = fastrnn_get_threads();
    const rows_t x = place->x, y = place->y;
    *run = (fastrnn_run){
        .cell = layer->cell,
        .reverse = layer->reverse,
        .projected = layer->projected,
        .T = b->steps,
        .B = b->S,
        .I = layer->I,
        .H = layer->H,
        .P = layer->P,
        .ldy = y.row,
        .offsets = (const fastrnn_size *)b->offsets,
        .x = x.data,
        .y = y.data ? y.data + (size_t)(k % b->stack->D * layer->P) * b->item : NULL,
        .weight_ih = w ? w->weight_ih : NULL,
        .weight_hh = w ? w->weight_hh : NULL,
        .weight_hr = w ? w->weight_hr : NULL,
        .bias_ih = w && layer->has_bias_ih ? w->bias_ih : NULL,
        .bias_hh = w && layer->has_bias_hh ? w->bias_hh : NULL,
        .threads = threads > 0 && threads < most ? threads : most,
        .poll = {b->call->poll, b->call->poll_context},
    };
}

static int run_layer(const batch_t *b, fastrnn_run *run, int backward)
{
    const fastrnn_backend *backend = fastrnn_current_backend();
    const int precision = b->stack->dtype == FASTRNN_F64;
    const fastrnn_table *table = fastrnn_current_isa()->table[precision];
    if (backend)
        return backward ? backend->backward[precision](run) : backend->forward[precision](run);
    return backward ? table->run_backward(run) : table->run_forward(run);
}

/* Scratch of forward: as much as any engine wants. */
static void take_forward_scratch(const batch_t *b, fastrnn_arena *arena, const fastrnn_layer *layer, fastrnn_run *run)
{
    run->chunk = largest(b->S, layer->forward_rows);
    run->sums = fastrnn_take(arena, (size_t)(1 + smallest(run->chunk, b->N)) * layer->sums_row);
    run->bias = fastrnn_take(arena, (size_t)layer->AH * b->item);
    run->unit = NULL;
    if (layer->projected || layer->shape.has_reset)
        run->unit = fastrnn_take(arena, (size_t)(b->S * layer->H) * b->item);
}

static void take_backward_scratch(const batch_t *b, fastrnn_arena *arena, const fastrnn_layer *layer,
                                  fastrnn_run *run)
{
    const int64_t H = layer->H, P = layer->P, AH = layer->AH;
    const int64_t chunk = smallest(b->N, largest(b->S, BACKWARD_ROWS));
    const int has_units = layer->projected || layer->shape.has_reset;
    const size_t item = b->item;
    run->chunk = chunk;
    run->bias = fastrnn_take(arena, (size_t)AH * item);
    run->dgates = fastrnn_take(arena, (size_t)(chunk * AH) * item);
    run->units = has_units ? fastrnn_take(arena, (size_t)(chunk * H) * item) : NULL;
    run->dh_kept = layer->projected ? fastrnn_take(arena, (size_t)(chunk * P) * item) : NULL;
    run->dunit = layer->projected ? fastrnn_take(arena, (size_t)(b->S * H) * item) : NULL;
    run->h_prev = fastrnn_take(arena, (size_t)(chunk * P) * item);
    run->c_prev = layer->shape.has_c ? fastrnn_take(arena, (size_t)(b->S * H) * item) : NULL;
    run->panels_dgates = fastrnn_take(arena, fastrnn_panel_bytes(b->stack, 1, AH, chunk));
    run->panels_h = fastrnn_take(arena, fastrnn_panel_bytes(b->stack, 1, P, chunk));
    run->panels_x = fastrnn_take(arena, fastrnn_panel_bytes(b->stack, 1, layer->I, chunk));
    run->panels_units = has_units ? fastrnn_take(arena, fastrnn_panel_bytes(b->stack, 1, H, chunk)) : NULL;
}

/* ---- tape -------------------------------------------------------------------------------------------- */

/* An RNN keeps its outputs only: they lie in y or in the tape. */
static int keeps_gates(const fastrnn_stack *stack, const fastrnn_layer *layer)
{
    return layer->shape.accumulators > 1 || stack->D > 1;
}

static kept_t take_kept(const batch_t *b, fastrnn_arena *tape, int k)
{
    const fastrnn_layer *layer = &b->stack->layers[k];
    kept_t kept = {.h_0 = fastrnn_take(tape, (size_t)(b->S * layer->P) * b->item)};
    if (layer->shape.has_c) {
        kept.c_0 = fastrnn_take(tape, (size_t)(b->S * layer->H) * b->item);
        kept.c = fastrnn_take(tape, (size_t)(b->N * layer->H) * b->item);
    }
    if (keeps_gates(b->stack, layer))
        kept.gates = fastrnn_take(tape, (size_t)(b->N * layer->AH) * b->item);
    return kept;
}

/* Where layer k reads and writes, and what it keeps, in the tape. Forward, backward and the tape's size come from here:
 * b->tape.used is how far the tape has been walked. */
static place_t walk_tape(batch_t *b, int k)
{
    const fastrnn_stack *stack = b->stack;
    fastrnn_arena tape = b->tape;
    place_t place = {.x = b->x};
    fastrnn_take(&tape, sizeof(tape_head));
    for (int layer = 0, at = 0; layer < stack->L && at <= k; layer++) {
        const int64_t width = stack->D * stack->layers[at].P;
        if (layer) {
            place.x = place.y;
            if (b->call->x_masks)
                place.x = (rows_t){fastrnn_take(&tape, (size_t)(b->N * place.y.row) * b->item), place.y.row};
        }
        if (layer + 1 == stack->L && b->y.data)
            place.y = b->y;
        else
            place.y = (rows_t){fastrnn_take(&tape, (size_t)(b->N * width) * b->item), width};
        for (int direction = 0; direction < stack->D && at <= k; direction++, at++)
            place.kept = take_kept(b, &tape, at);
    }
    b->tape_used = tape.used;
    return place;
}

/* The same without a tape. Where y has the right form, it takes turns with one more array. */
static place_t walk_inner(const batch_t *b, int k)
{
    const fastrnn_stack *stack = b->stack;
    const int layer = k / stack->D;
    place_t place = {.x = b->x, .y = b->y};
    for (int l = 0; l <= layer; l++) {
        if (l)
            place.x = place.y;
        if (l + 1 < stack->L) {
            const int64_t width = stack->D * stack->layers[l * stack->D].P;
            const int use_y = (stack->L - 1 - l) % 2 == 0 && b->y.row == width;
            place.y = use_y ? b->y : (rows_t){b->inner[(stack->L - 1 - l) % 2 == 0].data, width};
        } else {
            place.y = b->y;
        }
    }
    return place;
}

/* ---- forward ----------------------------------------------------------------------------------------- */

static int is_kept(const fastrnn_call *call) { return call->keep != FASTRNN_KEEP_NOTHING; }

/* What a forward call has in its workspace for all layers; the rest is scratch of one run at a time. */
static void open_forward(batch_t *b)
{
    const fastrnn_stack *stack = b->stack;
    const fastrnn_call *call = b->call;
    const int64_t I = stack->layers[0].I, W = stack->D * stack->layers[stack->L * stack->D - 1].P;
    const size_t rows = (size_t)b->N * b->item;
    b->x = (rows_t){call->x.data, I};
    if (!is_direct(b, call->x, I))
        b->x.data = fastrnn_take(&b->workspace, rows * (size_t)I);
    b->y = (rows_t){call->y.data, W};
    if (!call->y.data || !is_direct(b, call->y, W))
        b->y.data = is_kept(call) ? NULL : fastrnn_take(&b->workspace, rows * (size_t)W);
    if (is_kept(call))
        return;
    for (int k = 0; k < 2 && k + 1 < stack->L; k++)
        if (k == 0 || b->y.row != stack->width)
            b->inner[k].data = fastrnn_take(&b->workspace, rows * (size_t)stack->width);
}

static void apply_mask(const batch_t *b, const uint8_t *mask, int64_t count, const char *from, char *to)
{
    const double scale = b->call->x_scale;
    if (b->item == sizeof(float)) {
        const float factor = (float)scale;
        for (int64_t k = 0; k < count; k++)
            ((float *)to)[k] = ((const float *)from)[k] * factor * (float)(mask[k] != 0);
    } else {
        for (int64_t k = 0; k < count; k++)
            ((double *)to)[k] = ((const double *)from)[k] * scale * (double)(mask[k] != 0);
    }
}

/* The mask of the inputs of a layer above the first. */
static const uint8_t *mask_of(const batch_t *b, int layer, int64_t width)
{
    return b->call->x_masks + (size_t)((layer - 1) * b->N * width);
}

/* The live state of layer k: where the final one is wanted, if the segments are the rows. */
static char *live_state(const batch_t *b, int k, void *final, int64_t width, fastrnn_arena *scratch)
{
    const size_t bytes = (size_t)(b->S * width) * b->item;
    return final && !b->map ? (char *)final + (size_t)k * bytes : fastrnn_take(scratch, bytes);
}

static int forward_direction(batch_t *b, int k, const place_t *place)
{
    const fastrnn_layer *layer = &b->stack->layers[k];
    const fastrnn_call *call = b->call;
    fastrnn_arena scratch = b->workspace;
    fastrnn_run run;
    open_run(b, k, place, &run);
    run.h = live_state(b, k, call->h_n, layer->P, &scratch);
    begin_states(b, k, call->h_0, layer->P, run.h);
    if (layer->shape.has_c) {
        run.c = live_state(b, k, call->c_n, layer->H, &scratch);
        begin_states(b, k, call->c_0, layer->H, run.c);
    }
    if (is_kept(call)) {
        memcpy(place->kept.h_0, run.h, (size_t)(b->S * layer->P) * b->item);
        if (run.c)
            memcpy(place->kept.c_0, run.c, (size_t)(b->S * layer->H) * b->item);
        run.gates = keeps_gates(b->stack, layer) ? place->kept.gates : place->y.data;
        run.c_kept = place->kept.c;
    }
    take_forward_scratch(b, &scratch, layer, &run);
    if (fastrnn_is_fused() && call->panels) {
        const fastrnn_layer_panels panels = fastrnn_panels_of(b->stack, call->panels, 0, k);
        run.packed_ih = panels.ih, run.packed_hh = panels.hh, run.packed_hr = panels.hr;
    }
    const int stopped = b->N ? run_layer(b, &run, 0) : 0;
    if (b->map) {
        end_states(b, k, run.h, call->h_0, layer->P, call->h_n);
        if (run.c)
            end_states(b, k, run.c, call->c_0, layer->H, call->c_n);
    }
    return stopped;
}

fastrnn_status fastrnn_forward(const fastrnn_stack *stack, const fastrnn_call *call)
{
    batch_t b = open_batch(stack, call);
    open_forward(&b);
    if (b.x.data != call->x.data)
        gather(&b, call->x, stack->layers[0].I, b.x.data);
    if (is_kept(call))
        *(tape_head *)b.tape.base = (tape_head){TAPE_MAGIC, stack->hash, b.N, b.S, b.steps, !b.y.data};
    place_t place = {0};
    for (int k = 0; k < stack->L * stack->D; k++) {
        const int layer = k / stack->D;
        const char *below = place.y.data;
        const int64_t width = place.y.row;
        place = is_kept(call) ? walk_tape(&b, k) : walk_inner(&b, k);
        if (layer && k % stack->D == 0 && call->x_masks && b.N)
            apply_mask(&b, mask_of(&b, layer, width), b.N * width, below, place.x.data);
        const int stopped = forward_direction(&b, k, &place);
        if (stopped)
            return FASTRNN_STOPPED;
    }
    if (!call->y.data || place.y.data == call->y.data)
        return FASTRNN_OK; /* y has been written, or is not wanted */
    scatter(&b, place.y.data, place.y.row, call->y);
    for (int direction = 0; b.map && b.map->repeat && direction < stack->D; direction++) {
        const int64_t P = place.y.row / stack->D;
        const int reverse = stack->layers[(stack->L - 1) * stack->D + direction].reverse;
        repeat_outputs(&b, call->y, direction * P, P, reverse);
    }
    return FASTRNN_OK;
}

/* ---- backward ---------------------------------------------------------------------------------------- */

/* Whether any gradient is wanted of what lies below layer `layer`. */
static int is_wanted_below(const batch_t *b, int layer)
{
    const fastrnn_call *call = b->call;
    if (call->dx.data)
        return 1;
    if (layer && (call->dh_0 || call->dc_0))
        return 1;
    for (int k = 0; call->dweights && k < layer * b->stack->D; k++) {
        const fastrnn_weights *d = &call->dweights[k];
        if (d->weight_ih || d->weight_hh || d->bias_ih || d->bias_hh || d->weight_hr)
            return 1;
    }
    return 0;
}

/* Gradients by accumulator become those of the two biases. A cell with one accumulator too many has the input's part of
 * its last gate there. */
static void split_bias(const batch_t *b, const fastrnn_layer *layer, const char *by_accumulator,
                       const fastrnn_weights *d)
{
    const fastrnn_cell_shape shape = layer->shape;
    const size_t H = (size_t)layer->H * b->item, direct = (size_t)shape.input_blocks * H;
    if (d->bias_hh)
        memcpy(d->bias_hh, by_accumulator, (size_t)shape.gates * H);
    if (!d->bias_ih)
        return;
    memcpy(d->bias_ih, by_accumulator, direct);
    if (shape.gates > shape.input_blocks)
        memcpy((char *)d->bias_ih + direct, by_accumulator + (size_t)(shape.accumulators - 1) * H, H);
}

static void zero_gradients(const batch_t *b, const fastrnn_layer *layer, const fastrnn_weights *d)
{
    const struct {
        void *at;
        int64_t count;
    } arrays[] = {{d->weight_ih, layer->G * layer->I},
                  {d->weight_hh, layer->G * layer->P},
                  {d->bias_ih, layer->G},
                  {d->bias_hh, layer->G},
                  {d->weight_hr, layer->P * layer->H}};
    for (size_t k = 0; k < sizeof arrays / sizeof *arrays; k++)
        if (arrays[k].at)
            memset(arrays[k].at, 0, (size_t)arrays[k].count * b->item);
}

static int backward_direction(batch_t *b, int k, const place_t *place, rows_t dy, char *dx)
{
    const fastrnn_layer *layer = &b->stack->layers[k];
    const fastrnn_call *call = b->call;
    const fastrnn_weights none = {0}, *d = call->dweights ? &call->dweights[k] : &none;
    fastrnn_arena scratch = b->workspace;
    fastrnn_run run;
    open_run(b, k, place, &run);
    run.h = place->kept.h_0, run.c = place->kept.c_0;
    run.gates = keeps_gates(b->stack, layer) ? place->kept.gates : place->y.data;
    run.c_kept = place->kept.c;
    run.dy = dy.data ? dy.data + (size_t)(k % b->stack->D * layer->P) * b->item : NULL;
    run.lddy = dy.row;
    run.dx = dx;
    run.accumulate_dx = k % b->stack->D;
    run.dweight_ih = d->weight_ih, run.dweight_hh = d->weight_hh, run.dweight_hr = d->weight_hr;
    run.dh = live_state(b, k, call->dh_0, layer->P, &scratch);
    end_gradients(b, k, call->dh_n, layer->P, run.dh);
    if (layer->shape.has_c) {
        run.dc = live_state(b, k, call->dc_0, layer->H, &scratch);
        end_gradients(b, k, call->dc_n, layer->H, run.dc);
    }
    take_backward_scratch(b, &scratch, layer, &run);
    if (fastrnn_is_fused()) {
        const fastrnn_layer_panels panels = fastrnn_panels_of(b->stack, call->panels_backward, 1, k);
        run.columns_ih = panels.ih, run.columns_hh = panels.hh, run.columns_hr = panels.hr;
    }
    memset(run.bias, 0, (size_t)layer->AH * b->item);
    if (!b->N)
        zero_gradients(b, layer, d);
    else if (run_layer(b, &run, 1))
        return 1;
    split_bias(b, layer, run.bias, d);
    if (b->map && call->dh_0)
        begin_gradients(b, k, run.dh, call->dh_n, layer->P, call->dh_0);
    if (b->map && run.dc && call->dc_0)
        begin_gradients(b, k, run.dc, call->dc_n, layer->H, call->dc_0);
    return 0;
}

/* The gradient of y in packed rows, and where those of the layers' inputs lie. */
typedef struct {
    rows_t dy;
    char *dx, *between[2];
} gradients_t;

static gradients_t open_backward(batch_t *b)
{
    const fastrnn_stack *stack = b->stack;
    const fastrnn_call *call = b->call;
    const int64_t I = stack->layers[0].I, W = stack->D * stack->layers[stack->L * stack->D - 1].P;
    const size_t rows = (size_t)b->N * b->item;
    gradients_t d = {.dy = {call->dy.data, W}, .dx = call->dx.data};
    b->x = (rows_t){call->x.data, I};
    if (!is_direct(b, call->x, I))
        b->x.data = fastrnn_take(&b->workspace, rows * (size_t)I);
    b->y = (rows_t){is_direct(b, call->y, W) ? call->y.data : NULL, W};
    if (call->dy.data && !is_direct(b, call->dy, W))
        d.dy.data = fastrnn_take(&b->workspace, rows * (size_t)W);
    if (call->dx.data && !is_direct(b, call->dx, I))
        d.dx = fastrnn_take(&b->workspace, rows * (size_t)I);
    for (int k = 0; k < 2 && k + 1 < stack->L; k++)
        d.between[k] = fastrnn_take(&b->workspace, rows * (size_t)stack->width);
    return d;
}

fastrnn_status fastrnn_backward(const fastrnn_stack *stack, const fastrnn_call *call)
{
    batch_t b = open_batch(stack, call);
    gradients_t d = open_backward(&b);
    const int64_t I = stack->layers[0].I;
    if (b.x.data != call->x.data)
        gather(&b, call->x, I, b.x.data);
    if (d.dy.data != call->dy.data) {
        gather(&b, call->dy, d.dy.row, d.dy.data);
        for (int direction = 0; b.map && b.map->repeat && direction < stack->D; direction++) {
            const int64_t P = d.dy.row / stack->D;
            const int reverse = stack->layers[(stack->L - 1) * stack->D + direction].reverse;
            collect_gradients(&b, call->dy, direction * P, P, reverse, d.dy.data, d.dy.row);
        }
    }
    rows_t dy = d.dy;
    for (int layer = stack->L - 1; layer >= 0; layer--) {
        const int64_t width = layer ? stack->D * stack->layers[(layer - 1) * stack->D].P : I;
        char *dx = layer ? d.between[(layer - 1) % 2] : d.dx;
        if (!is_wanted_below(&b, layer))
            dx = NULL;
        for (int k = layer * stack->D; k < (layer + 1) * stack->D; k++) {
            const place_t place = walk_tape(&b, k);
            if (backward_direction(&b, k, &place, dy, dx))
                return FASTRNN_STOPPED;
        }
        if (!dx)
            break;
        if (layer && call->x_masks && b.N)
            apply_mask(&b, mask_of(&b, layer, width), b.N * width, dx, dx);
        dy = (rows_t){dx, width};
    }
    if (call->dx.data && d.dx != call->dx.data)
        scatter(&b, d.dx, I, call->dx);
    return FASTRNN_OK;
}

/* ---- sizes and checks -------------------------------------------------------------------------------- */

static batch_t measure(const fastrnn_stack *stack, const fastrnn_call *call, int64_t N, int64_t S)
{
    return (batch_t){
        .stack = stack,
        .call = call,
        .N = N,
        .S = S,
        .steps = call->T,
        .item = stack->item,
        .tape = fastrnn_open_arena(NULL),
        .workspace = fastrnn_open_arena(NULL),
    };
}

static size_t tape_size(const fastrnn_stack *stack, const fastrnn_call *call, int64_t N, int64_t S, int scattered)
{
    static char somewhere;
    batch_t b = measure(stack, call, N, S);
    b.y.data = scattered ? NULL : &somewhere;
    walk_tape(&b, stack->L * stack->D - 1);
    return b.tape_used;
}

size_t fastrnn_tape_size(const fastrnn_stack *stack, int64_t T, int64_t B, int64_t N_at_most, int64_t S_at_most,
                         int scattered)
{
    static const uint8_t masks; /* there may be masks */
    const fastrnn_call call = {.T = T, .B = B, .x_masks = stack->L > 1 ? &masks : NULL};
    return tape_size(stack, &call, N_at_most, S_at_most, scattered);
}

/* Whether the rows of y are not those of the top layer, which the tape has to hold then. */
static int is_scattered(const batch_t *b)
{
    const fastrnn_stack *stack = b->stack;
    const int64_t W = stack->D * stack->layers[stack->L * stack->D - 1].P;
    return !b->call->y.data || !is_direct(b, b->call->y, W);
}

/* The largest scratch that any of the layers wants, beside the states. */
static size_t scratch_size(const batch_t *b, int pass)
{
    size_t most = 0;
    for (int k = 0; k < b->stack->L * b->stack->D; k++) {
        const fastrnn_layer *layer = &b->stack->layers[k];
        fastrnn_arena arena = fastrnn_open_arena(NULL);
        fastrnn_run run;
        fastrnn_take(&arena, (size_t)(b->S * layer->P) * b->item);
        fastrnn_take(&arena, (size_t)(b->S * layer->H) * b->item);
        if (pass == FASTRNN_FORWARD)
            take_forward_scratch(b, &arena, layer, &run);
        else
            take_backward_scratch(b, &arena, layer, &run);
        most = arena.used > most ? arena.used : most;
    }
    return most;
}

size_t fastrnn_workspace_size(const fastrnn_stack *stack, int64_t T, int64_t B, int64_t N_at_most, int64_t S_at_most,
                              int passes)
{
    size_t most = 0;
    for (int pass = FASTRNN_FORWARD; pass <= FASTRNN_BACKWARD; pass *= 2) {
        fastrnn_call call = {.T = T, .B = B};
        batch_t b = measure(stack, &call, N_at_most, S_at_most);
        const size_t rows = (size_t)N_at_most * stack->item;
        if (!(passes & pass))
            continue;
        fastrnn_take(&b.workspace, sizeof(int64_t) * (size_t)(T + 1));
        fastrnn_take(&b.workspace, rows * (size_t)stack->layers[0].I);
        for (int k = 0; k < 2 + (stack->L > 1); k++)
            fastrnn_take(&b.workspace, rows * (size_t)stack->width);
        if (pass == FASTRNN_BACKWARD)
            fastrnn_take(&b.workspace, rows * (size_t)stack->layers[0].I);
        const size_t size = b.workspace.used + scratch_size(&b, pass);
        most = size > most ? size : most;
    }
    return most;
}

void fastrnn_call_sizes(const fastrnn_stack *stack, const fastrnn_call *call, int pass, size_t *tape, size_t *workspace)
{
    fastrnn_call sizes = *call;
    sizes.tape = sizes.workspace = NULL;
    batch_t b = open_batch(stack, &sizes);
    if (tape)
        *tape = tape_size(stack, &sizes, b.N, b.S, is_scattered(&b));
    if (pass == FASTRNN_FORWARD)
        open_forward(&b);
    else
        open_backward(&b);
    *workspace = b.workspace.used + scratch_size(&b, pass);
}

static fastrnn_status fail(char *error, fastrnn_status status, const char *what)
{
    snprintf(error, 256, "%s", what);
    return status;
}

static fastrnn_status check_backward(const fastrnn_stack *stack, const batch_t *b, char *error)
{
    const fastrnn_call *call = b->call;
    const tape_head *head = (const tape_head *)b->tape.base;
    if (call->keep == FASTRNN_KEEP_NOTHING || !head || head->magic != TAPE_MAGIC || head->hash != stack->hash)
        return fail(error, FASTRNN_INVALID, "tape is not one that forward filled for this stack");
    if (head->N != b->N || head->S != b->S || head->steps != b->steps || head->top != is_scattered(b))
        return fail(error, FASTRNN_INVALID, "tape is of another batch, or y lies in another way than in forward");
    if (fastrnn_is_fused() && fastrnn_match_panels(stack, call->panels_backward, 1) != FASTRNN_OK)
        return fail(error, FASTRNN_WRONG_PANELS, "panels_backward are of another engine or stack, or are not for backward");
    return FASTRNN_OK;
}

fastrnn_status fastrnn_check(const fastrnn_stack *stack, const fastrnn_call *call, int pass, char error[256])
{
    const int backward = pass == FASTRNN_BACKWARD;
    size_t tape, workspace;
    if (call->T < 0 || call->B < 0)
        return fail(error, FASTRNN_INVALID, "T or B is negative");
    const batch_t b = open_batch(stack, &(fastrnn_call){.map = call->map, .T = call->T, .B = call->B});
    if (b.map && (b.map->T != call->T || b.map->B != call->B))
        return fail(error, FASTRNN_INVALID, "map is of another T or B");
    if (b.N && !call->x.data)
        return fail(error, FASTRNN_INVALID, "x is NULL");
    if (!call->weights)
        return fail(error, FASTRNN_INVALID, "weights are NULL");
    if (call->x_masks && stack->L == 1)
        return fail(error, FASTRNN_INVALID, "x_masks are given, but there is one layer");
    fastrnn_call_sizes(stack, call, pass, &tape, &workspace);
    if ((call->keep != FASTRNN_KEEP_NOTHING || backward) && (!call->tape || call->tape_size < tape))
        return fail(error, FASTRNN_INVALID, "tape is NULL or too small");
    if (!call->workspace || call->workspace_size < workspace)
        return fail(error, FASTRNN_INVALID, "workspace is NULL or too small");
    if (backward) {
        batch_t whole = open_batch(stack, call);
        return check_backward(stack, &whole, error);
    }
    if (fastrnn_is_fused() && call->panels && fastrnn_match_panels(stack, call->panels, 0) != FASTRNN_OK)
        return fail(error, FASTRNN_WRONG_PANELS, "panels are of another engine or stack, or are not for forward");
    return FASTRNN_OK;
}
