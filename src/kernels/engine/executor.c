/* Calls: all layers and directions of a stack, forward and backward, over whatever steps of the batch are real.
 *
 * A layer and direction is one run, over packed rows (map.h). Between layers they lie one after the other. Where the
 * caller's x, y, dx and dy do too, they are read and written where they lie; else each run gathers and scatters them
 * chunk by chunk. What forward keeps, it keeps in the tape, in packed rows. */
#include "call.h"

#include <string.h>

static int dispatch_forward(const plan_t *b, const fastrnn_forward_run *run)
{
    const fastrnn_backend *backend = fastrnn_current_backend();
    const int precision = b->stack->dtype == FASTRNN_F64;
    return backend ? backend->forward[precision](run) : fastrnn_current_isa()->table[precision]->run_forward(run);
}

static int dispatch_backward(const plan_t *b, const fastrnn_backward_run *run)
{
    const fastrnn_backend *backend = fastrnn_current_backend();
    const int precision = b->stack->dtype == FASTRNN_F64;
    return backend ? backend->backward[precision](run) : fastrnn_current_isa()->table[precision]->run_backward(run);
}

/* dropout: to = from * mask, scaled */
static void apply_mask(const plan_t *b, int layer, int64_t width, const void *from, void *to)
{
    const int64_t count = b->N * width;
    const uint8_t *mask = b->call->x_masks + (size_t)((layer - 1) * count);
    if (b->item == sizeof(float)) {
        const float scale = (float)b->call->x_scale, *x = from;
        for (int64_t k = 0; k < count; k++)
            ((float *)to)[k] = x[k] * scale * (float)(mask[k] != 0);
    } else {
        const double scale = b->call->x_scale, *x = from;
        for (int64_t k = 0; k < count; k++)
            ((double *)to)[k] = x[k] * scale * (double)(mask[k] != 0);
    }
}

/* The live state of layer k: where the final one is wanted, if the segments are the rows. */
static char *live_state(const plan_t *b, int k, void *wanted, int64_t width, fastrnn_arena *scratch)
{
    const size_t bytes = (size_t)(b->S * width) * b->item;
    return wanted && !b->map ? (char *)wanted + (size_t)k * bytes : fastrnn_take(scratch, bytes);
}

/* Columns of one direction. */
static fastrnn_rows columns_of(const plan_t *b, fastrnn_rows rows, int direction, int64_t width)
{
    if (rows.data)
        rows.data = (char *)rows.data + (size_t)(direction * width) * b->item;
    return rows;
}

/* Part 0 of the state is h, the others are inner. */
static int64_t width_of_part(const fastrnn_layer *layer, int part) { return part ? layer->H : layer->P; }

/* ---- forward ----------------------------------------------------------------------------------------- */

static void **live_of(fastrnn_run *run, int part) { return part ? &run->inner[part - 1] : &run->h; }

/* One part of the live state of layer k, which begins as the initial one. */
static void *begin_part(const plan_t *b, int k, int part, fastrnn_arena *scratch)
{
    const int64_t width = width_of_part(&b->stack->layers[k], part);
    char *live = live_state(b, k, b->call->final_state[part], width, scratch);
    fastrnn_begin_states(b, k, b->call->state[part], width, live);
    return live;
}

static int forward_direction(const plan_t *b, int k)
{
    const fastrnn_call *call = b->call;
    const int direction = k % b->stack->D;
    const level_t *level = &b->levels[k / b->stack->D];
    const kept_t *kept = &level->kept[direction];
    fastrnn_arena scratch = b->workspace;
    fastrnn_forward_run forward;
    fastrnn_run *run = &forward.run;
    const fastrnn_layer *layer = &b->stack->layers[k];
    fastrnn_open_run(b, k, run);
    forward.y = (fastrnn_rows){NULL, 0, 0, 0};
    if (k / b->stack->D + 1 == b->stack->L && b->y.scattered)
        forward.y = columns_of(b, b->y, direction, layer->P);
    for (int part = 0; part <= layer->shape.inner; part++)
        *live_of(run, part) = begin_part(b, k, part, &scratch);
    if (is_kept(call)) {
        run->kept = kept->cell;
        memcpy(kept->h, run->h, (size_t)(b->S * layer->P) * b->item);
        for (int part = 0; part < layer->shape.inner; part++) {
            memcpy(kept->inner[part], run->inner[part], (size_t)(b->S * layer->H) * b->item);
            run->inner_rows[part] = kept->inner_rows[part];
        }
    }
    fastrnn_take_forward_scratch(b, &scratch, &forward);
    if (fastrnn_is_fused() && call->panels)
        run->panels = fastrnn_panels_of(b->stack, call->panels, 0, k);
    const int stopped = b->N ? dispatch_forward(b, &forward) : 0;
    for (int part = 0; b->map && part <= layer->shape.inner; part++)
        fastrnn_end_states(b, k, *live_of(run, part), call->state[part], width_of_part(layer, part),
                           call->final_state[part]);
    return stopped;
}

fastrnn_status fastrnn_forward(const fastrnn_stack *stack, const fastrnn_call *call)
{
    plan_t b;
    fastrnn_open_plan(&b, stack, call);
    fastrnn_lay_out(&b, FASTRNN_FORWARD);
    if (is_kept(call))
        *(tape_head *)fastrnn_open_arena(call->tape).base = (tape_head){TAPE_MAGIC, stack->hash, b.N,
                                                                        b.S,        b.steps,     b.y.scattered};
    if (b.y.data && b.y.scattered && b.map)
        fastrnn_clear_masked(&b, call->y, fastrnn_output_width(stack));
    for (int layer = 0; layer < stack->L; layer++) {
        if (layer && call->x_masks && b.N)
            apply_mask(&b, layer, b.levels[layer].x.row, b.levels[layer - 1].h.data, b.levels[layer].x.data);
        for (int direction = 0; direction < stack->D; direction++)
            if (forward_direction(&b, layer * stack->D + direction))
                return FASTRNN_STOPPED;
    }
    return FASTRNN_OK;
}

/* ---- backward ---------------------------------------------------------------------------------------- */

/* Whether any gradient is wanted of what lies below layer `layer`. */
static int is_wanted_below(const plan_t *b, int layer)
{
    const fastrnn_call *call = b->call;
    if (call->dx.data)
        return 1;
    for (int part = 0; layer && part < FASTRNN_MOST_STATES; part++)
        if (call->dstate[part])
            return 1;
    for (int k = 0; call->dweights && k < layer * b->stack->D; k++) {
        const fastrnn_weights *d = &call->dweights[k];
        if (d->weight_ih || d->weight_hh || d->bias_ih || d->bias_hh || d->weight_hr)
            return 1;
        for (int j = 0; j < FASTRNN_MOST_VECTORS; j++)
            if (d->vector[j])
                return 1;
    }
    return 0;
}

/* Sums of the columns of dgates become gradients: of the two biases, by accumulator, and of the vectors. A cell with one
 * accumulator too many has the input's part of its last gate there. */
static void split_bias(const plan_t *b, const fastrnn_layer *layer, const char *by_accumulator,
                       const fastrnn_weights *d)
{
    const fastrnn_cell_shape shape = layer->shape;
    const size_t H = (size_t)layer->H * b->item;
    uint8_t blocks[FASTRNN_MOST_BLOCKS];
    const uint8_t *order = fastrnn_block_order(d, layer, blocks);
    for (int gate = 0; gate < shape.gates; gate++) {
        const size_t to = (size_t)(order ? order[gate] : gate) * H;
        const int of_input = gate < shape.input_blocks ? gate : shape.accumulators - 1;
        if (d->bias_hh)
            memcpy((char *)d->bias_hh + to, by_accumulator + (size_t)gate * H, H);
        if (d->bias_ih)
            memcpy((char *)d->bias_ih + to, by_accumulator + (size_t)of_input * H, H);
    }
    for (int k = 0; k < shape.vectors; k++)
        if (d->vector[k])
            memcpy(d->vector[k], by_accumulator + (size_t)(shape.accumulators + k) * H, H);
}

/* Copy a row-major gradient (rows, columns) to where the caller wants it, if it does. */
static void scatter_weights(const plan_t *b, const char *from, int64_t rows, int64_t columns, const fastrnn_matrix *to)
{
    for (int64_t r = 0; from && r < rows; r++) {
        const int64_t row = to->order ? to->order[r / to->block] * to->block + r % to->block : r;
        char *at = (char *)(uintptr_t)to->data + (size_t)(row * to->row) * b->item;
        for (int64_t k = 0; k < columns; k++, from += b->item)
            memcpy(at + (size_t)(k * to->column) * b->item, from, b->item);
    }
}

/* The gradients that were made in the scratch, because the caller wants them in another form than row-major. */
static void give_plain(const plan_t *b, const fastrnn_layer *layer, const fastrnn_weights *plain,
                       const fastrnn_weights *d)
{
    uint8_t blocks[FASTRNN_MOST_BLOCKS];
    const fastrnn_matrices to = fastrnn_matrices_of(d, layer, fastrnn_block_order(d, layer, blocks));
    scatter_weights(b, plain->weight_ih, layer->G, layer->I, &to.ih);
    scatter_weights(b, plain->weight_hh, layer->G, layer->P, &to.hh);
    scatter_weights(b, plain->weight_hr, layer->P, layer->H, &to.hr);
}

static void zero_gradients(const plan_t *b, const fastrnn_layer *layer, const fastrnn_weights *d)
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

static void **gradient_of(fastrnn_backward_run *run, int part) { return part ? &run->dinner[part - 1] : &run->dh; }

/* The gradient of one part of the state of layer k, which begins as that of the final one. */
static void *end_part(const plan_t *b, int k, int part, fastrnn_arena *scratch)
{
    const int64_t width = width_of_part(&b->stack->layers[k], part);
    char *gradient = live_state(b, k, b->call->dstate[part], width, scratch);
    fastrnn_end_gradients(b, k, b->call->dfinal_state[part], width, gradient);
    return gradient;
}

static int backward_direction(const plan_t *b, int k, fastrnn_rows dy, fastrnn_rows dx)
{
    const fastrnn_call *call = b->call;
    const int direction = k % b->stack->D;
    const kept_t *kept = &b->levels[k / b->stack->D].kept[direction];
    fastrnn_arena scratch = b->workspace;
    fastrnn_backward_run backward = {.dx = dx, .add_to_dx = direction};
    fastrnn_run *run = &backward.run;
    const fastrnn_layer *layer = &b->stack->layers[k];
    fastrnn_open_run(b, k, run);
    backward.dy = columns_of(b, dy, direction, layer->P);
    const fastrnn_weights none = {0}, *d = call->dweights ? &call->dweights[k] : &none;
    const int plain = fastrnn_is_plain(d, layer);
    backward.dweights = plain ? *d : fastrnn_take_plain(b, &scratch, layer, d);
    run->h = kept->h, run->kept = kept->cell;
    for (int part = 0; part < layer->shape.inner; part++)
        run->inner[part] = kept->inner[part], run->inner_rows[part] = kept->inner_rows[part];
    for (int part = 0; part <= layer->shape.inner; part++)
        *gradient_of(&backward, part) = end_part(b, k, part, &scratch);
    fastrnn_take_backward_scratch(b, &scratch, &backward);
    if (fastrnn_is_fused())
        run->panels = fastrnn_panels_of(b->stack, call->panels_backward, 1, k);
    memset(backward.dbias, 0, (size_t)layer->DH * b->item);
    if (!b->N)
        zero_gradients(b, layer, &backward.dweights);
    else if (dispatch_backward(b, &backward))
        return 1;
    if (!plain)
        give_plain(b, layer, &backward.dweights, d);
    split_bias(b, layer, backward.dbias, d);
    for (int part = 0; b->map && part <= layer->shape.inner; part++)
        if (call->dstate[part])
            fastrnn_begin_gradients(b, k, *gradient_of(&backward, part), call->dfinal_state[part],
                                    width_of_part(layer, part), call->dstate[part]);
    return 0;
}

fastrnn_status fastrnn_backward(const fastrnn_stack *stack, const fastrnn_call *call)
{
    plan_t b;
    fastrnn_open_plan(&b, stack, call);
    const int64_t I = stack->layers[0].I;
    const fastrnn_rows bottom = fastrnn_rows_of(&b, call->dx, I, 0);
    fastrnn_rows dy = fastrnn_rows_of(&b, call->dy, fastrnn_output_width(stack), 0);
    fastrnn_lay_out(&b, FASTRNN_BACKWARD);
    if (call->dx.data && bottom.scattered && b.map)
        fastrnn_clear_masked(&b, call->dx, I);
    for (int layer = stack->L - 1; layer >= 0; layer--) {
        const int64_t width = b.levels[layer].x.row;
        fastrnn_rows dx = layer ? (fastrnn_rows){b.between[(layer - 1) % 2], width, 0, 0} : bottom;
        if (!is_wanted_below(&b, layer))
            dx.data = NULL;
        for (int direction = 0; direction < stack->D; direction++)
            if (backward_direction(&b, layer * stack->D + direction, dy, dx))
                return FASTRNN_STOPPED;
        if (!dx.data)
            break;
        if (layer && call->x_masks && b.N)
            apply_mask(&b, layer, width, dx.data, dx.data);
        dy = dx;
    }
    return FASTRNN_OK;
}
