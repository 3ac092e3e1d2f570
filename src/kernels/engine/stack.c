/* Specs are checked and become a stack; weights are packed and become panels. */
#include "stack.h"
#include "dispatch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAGIC UINT64_C(0x6c6e61706e747266)
#define LARGEST INT64_C(0x7fffffff) /* BLAS takes its sizes as 32-bit integers */

/* The header of panels. It names the engine, not the instruction set: "blas" shares its instruction set with a fused
 * engine and has no panels. */
typedef struct {
    uint64_t magic, hash;
    char engine[16];
    int32_t abi, passes;
    int64_t begin; /* bytes from the header to the first panel */
} panels_head;

/* ---- specs ----------------------------------------------------------------------------------------- */

static int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }

static int find_cell(const char *name)
{
    for (int k = 0; k < FASTRNN_CELLS; k++)
        if (!strcmp(name, fastrnn_cell_shapes[k].name))
            return k;
    return -1;
}

static fastrnn_status read_spec(const fastrnn_spec *spec, fastrnn_layer *layer, char *error)
{
    const int cell = spec->cell ? find_cell(spec->cell) : -1;
    if (cell < 0) {
        snprintf(error, 256, "cell is \"%.40s\", which there is not", spec->cell ? spec->cell : "NULL");
        return FASTRNN_INVALID;
    }
    const fastrnn_cell_shape shape = fastrnn_cell_shapes[cell];
    const int64_t widest = largest(largest(shape.accumulators + shape.vectors, shape.gates), shape.kept);
    const int projected = (spec->options & FASTRNN_PROJECTED) != 0;
    if (spec->I < 1 || spec->H < 1 || spec->P < 1 || spec->I > LARGEST || spec->P > LARGEST ||
        spec->H > LARGEST / widest) {
        snprintf(
            error, 256,
            "I, H, P are %lld, %lld, %lld, expected at least 1 and at most %lld, blocks of the cell times H included",
            (long long)spec->I, (long long)spec->H, (long long)spec->P, (long long)LARGEST);
        return FASTRNN_INVALID;
    }
    if (projected ? !shape.projects : spec->P != spec->H) {
        snprintf(error, 256, projected ? "%s cannot be projected" : "%s is not projected, but P is not H", shape.name);
        return FASTRNN_INVALID;
    }
    if (spec->options & ~(uint64_t)(FASTRNN_BIAS_IH | FASTRNN_BIAS_HH | FASTRNN_PROJECTED | FASTRNN_REVERSE)) {
        snprintf(error, 256, "options are %llx, which this version does not know", (unsigned long long)spec->options);
        return FASTRNN_UNSUPPORTED;
    }
    *layer = (fastrnn_layer){
        .cell = cell,
        .shape = shape,
        .I = spec->I,
        .H = spec->H,
        .P = spec->P,
        .G = shape.gates * spec->H,
        .AH = shape.accumulators * spec->H,
        .KH = shape.kept * spec->H,
        .DH = (shape.accumulators + shape.vectors) * spec->H,
        .has_bias_ih = (spec->options & FASTRNN_BIAS_IH) != 0,
        .has_bias_hh = (spec->options & FASTRNN_BIAS_HH) != 0,
        .projected = projected,
        .reverse = (spec->options & FASTRNN_REVERSE) != 0,
    };
    return FASTRNN_OK;
}

static fastrnn_status check_neighbours(const fastrnn_stack *stack, const fastrnn_spec *specs, char *error)
{
    const fastrnn_layer *layers = stack->layers;
    for (int k = 0; k < stack->L * stack->D; k++) {
        const fastrnn_layer *first = &layers[k / stack->D * stack->D], *below = first - stack->D;
        if (specs[k].dtype != stack->dtype || layers[k].shape.inner != stack->inner || layers[k].P != first->P ||
            layers[k].I != first->I || (k >= stack->D && layers[k].I != stack->D * below->P)) {
            snprintf(error, 256, "spec %d does not fit those before it", k);
            return FASTRNN_INVALID;
        }
    }
    return FASTRNN_OK;
}

static uint64_t mix(uint64_t hash, uint64_t value)
{
    hash = (hash ^ value) * UINT64_C(0x100000001b3);
    return hash ^ hash >> 29;
}

static void place_panels(fastrnn_stack *stack, fastrnn_layer *layer, int backward);

/* Rows of a chunk in forward: enough for the projection to run at its full rate, few enough that the recurrence finds
 * their sums in L2. */
enum { FORWARD_BYTES = 1 << 18, FORWARD_ROWS = 128 };

static void follow_sizes(fastrnn_stack *stack, fastrnn_layer *layer)
{
    const int64_t lanes = 64 / (int64_t)stack->item, fitting = FORWARD_BYTES / (layer->AH * (int64_t)stack->item);
    layer->sums_row = (size_t)(layer->shape.accumulators * ((layer->H + lanes - 1) / lanes * lanes)) * stack->item;
    layer->forward_rows = fitting > FORWARD_ROWS ? fitting : FORWARD_ROWS;
    place_panels(stack, layer, 0);
    place_panels(stack, layer, 1);
}

fastrnn_status fastrnn_stack_new(const fastrnn_spec *specs, int L, int D, fastrnn_stack **out, char error[256])
{
    *out = NULL;
    fastrnn_status status = fastrnn_check_settings(error);
    if (status != FASTRNN_OK)
        return status;
    if (L < 1 || D < 1 || D > 2 || (specs[0].dtype != FASTRNN_F32 && specs[0].dtype != FASTRNN_F64)) {
        snprintf(error, 256, "L, D, dtype are %d, %d, %d", L, D, (int)specs[0].dtype);
        return FASTRNN_INVALID;
    }
    fastrnn_stack *stack = calloc(1, sizeof *stack + sizeof(fastrnn_layer) * (size_t)(L * D));
    if (!stack) {
        snprintf(error, 256, "no memory for a stack of %d layers", L);
        return FASTRNN_UNSUPPORTED;
    }
    stack->L = L, stack->D = D, stack->dtype = specs[0].dtype;
    stack->item = stack->dtype == FASTRNN_F32 ? sizeof(float) : sizeof(double);
    stack->hash = mix(mix(stack->item, (uint64_t)L), (uint64_t)D);
    for (int k = 0; k < L * D && status == FASTRNN_OK; k++) {
        fastrnn_layer *layer = &stack->layers[k];
        status = read_spec(&specs[k], layer, error);
        layer->reverse |= k % D;
        stack->width = D * layer->P > stack->width ? D * layer->P : stack->width;
        stack->hash = mix(mix(mix(mix(stack->hash, (uint64_t)layer->cell), (uint64_t)layer->I), (uint64_t)layer->H),
                          (uint64_t)(2 * layer->P + layer->projected));
        if (status == FASTRNN_OK)
            follow_sizes(stack, layer);
    }
    stack->inner = stack->layers[0].shape.inner;
    if (status == FASTRNN_OK)
        status = check_neighbours(stack, specs, error);
    if (status == FASTRNN_OK)
        *out = stack;
    else
        free(stack);
    return status;
}

void fastrnn_stack_free(fastrnn_stack *stack) { free(stack); }

/* ---- panels ---------------------------------------------------------------------------------------- */

size_t fastrnn_panel_bytes(const fastrnn_stack *stack, int blocks, int64_t units, int64_t K)
{
    int64_t most = 0;
    const int64_t item = (int64_t)stack->item;
    for (int64_t bytes = 16; bytes <= 64; bytes *= 2) { /* of a vector; packed_size of product.h for each */
        const int64_t lanes = bytes / item;
        const int64_t size = (blocks * ((units + lanes - 1) / lanes) + 3) * (K * lanes + 64 / item);
        most = size > most ? size : most;
    }
    return (size_t)most * stack->item;
}

/* Panels of W_ih, W_hh, W_hr and the bias row follow each other, layer by layer, each at a cache line. */
static void place_panels(fastrnn_stack *stack, fastrnn_layer *layer, int backward)
{
    const fastrnn_cell_shape shape = layer->shape;
    const int64_t I = layer->I, H = layer->H, P = layer->P, G = layer->G;
    size_t parts[4] = {0};
    if (!backward) {
        parts[0] = fastrnn_panel_bytes(stack, shape.gates, H, I);
        parts[1] = shape.hidden_blocks ? fastrnn_panel_bytes(stack, shape.hidden_blocks, H, P) : 0;
        parts[1] += shape.has_reset ? fastrnn_panel_bytes(stack, 1, H, H) : 0;
        parts[2] = layer->projected ? fastrnn_panel_bytes(stack, 1, P, H) : 0;
        parts[3] = layer->sums_row;
    } else {
        parts[0] = fastrnn_panel_bytes(stack, 1, I, G);
        parts[1] = shape.hidden_blocks ? fastrnn_panel_bytes(stack, 1, P, G) : 0;
        parts[2] = layer->projected ? fastrnn_panel_bytes(stack, 1, H, P) : 0;
    }
    for (int part = 0; part < 4; part++) {
        layer->panels_at[backward][part] = stack->panels[backward];
        stack->panels[backward] += (parts[part] + 63) & ~(size_t)63;
    }
}

size_t fastrnn_panels_size(const fastrnn_stack *stack, int passes)
{
    return sizeof(panels_head) + 64 + (passes & FASTRNN_FORWARD ? stack->panels[0] : 0) +
           (passes & FASTRNN_BACKWARD ? stack->panels[1] : 0);
}

fastrnn_layer_panels fastrnn_panels_of(const fastrnn_stack *stack, const void *panels, int backward, int k)
{
    const panels_head *head = panels;
    const size_t *at = stack->layers[k].panels_at[backward];
    char *first = (char *)(uintptr_t)panels + head->begin;
    if (backward && head->passes & FASTRNN_FORWARD)
        first += stack->panels[0];
    return (fastrnn_layer_panels){first + at[0], first + at[1], first + at[2], first + at[3]};
}

fastrnn_status fastrnn_match_panels(const fastrnn_stack *stack, const void *panels, int backward)
{
    const panels_head *head = panels;
    const int matches = head && head->magic == MAGIC && head->abi == FASTRNN_ABI && head->hash == stack->hash &&
                        head->passes & (backward ? FASTRNN_BACKWARD : FASTRNN_FORWARD) &&
                        !strncmp(head->engine, fastrnn_engine(), sizeof head->engine) &&
                        ((uintptr_t)panels + (uintptr_t)head->begin) % 64 == 0;
    return matches ? FASTRNN_OK : FASTRNN_WRONG_PANELS;
}

/* A weight matrix with `columns` columns. Strides that are both 0 stand for row-major. */
static fastrnn_matrix matrix_of(const void *data, int64_t columns, int64_t row, int64_t column, int64_t H,
                                const uint8_t *order)
{
    const int plain = !row && !column;
    return (fastrnn_matrix){data, plain ? columns : row, plain ? 1 : column, H, order};
}

fastrnn_matrices fastrnn_matrices_of(const fastrnn_weights *w, const fastrnn_layer *layer, const uint8_t *order)
{
    return (fastrnn_matrices){
        .ih = matrix_of(w->weight_ih, layer->I, w->ih_row, w->ih_column, layer->H, order),
        .hh = matrix_of(w->weight_hh, layer->P, w->hh_row, w->hh_column, layer->H, order),
        .hr = matrix_of(w->weight_hr, layer->H, w->hr_row, w->hr_column, layer->P, NULL),
    };
}

int fastrnn_has_valid_order(const fastrnn_weights *w, const fastrnn_layer *layer)
{
    const int gates = layer->shape.gates;
    int seen = 0;
    for (int k = 0; w->gate_order && k < gates; k++)
        seen |= w->gate_order[k] < gates ? 1 << w->gate_order[k] : 0;
    return !w->gate_order || seen == (1 << gates) - 1;
}

int fastrnn_is_plain(const fastrnn_weights *w, const fastrnn_layer *layer)
{
    for (int k = 0; w->gate_order && k < layer->shape.gates; k++)
        if (w->gate_order[k] != k)
            return 0;
    const fastrnn_matrices at = fastrnn_matrices_of(w, layer, NULL);
    return at.ih.row == layer->I && at.hh.row == layer->P && at.hr.row == layer->H && at.ih.column == 1 &&
           at.hh.column == 1 && at.hr.column == 1;
}

const uint8_t *fastrnn_block_order(const fastrnn_weights *w, const fastrnn_layer *layer, uint8_t order[8])
{
    if (!w->gate_order)
        return NULL;
    for (int k = 0; k < layer->shape.gates; k++)
        order[w->gate_order[k]] = (uint8_t)k;
    return order;
}

static void pack_layer(const fastrnn_stack *stack, const fastrnn_layer *layer, const fastrnn_weights *w, int backward,
                       fastrnn_layer_panels to)
{
    const fastrnn_table *table = fastrnn_current_isa()->table[stack->dtype == FASTRNN_F64];
    const fastrnn_cell_shape shape = layer->shape;
    const int64_t H = layer->H, I = layer->I, P = layer->P;
    uint8_t blocks[FASTRNN_MOST_BLOCKS];
    const uint8_t *order = fastrnn_block_order(w, layer, blocks);
    const fastrnn_matrices at = fastrnn_matrices_of(w, layer, order);
    if (backward) {
        table->pack_columns(I, layer->G, &at.ih, to.ih);
        if (shape.hidden_blocks)
            table->pack_columns(P, layer->G, &at.hh, to.hh);
        if (layer->projected)
            table->pack_columns(H, P, &at.hr, to.hr);
        return;
    }
    table->pack_bias(layer, w, order, to.bias);
    table->pack_rows(shape.gates, H, I, &at.ih, to.ih);
    if (shape.hidden_blocks)
        table->pack_rows(shape.hidden_blocks, H, P, &at.hh, to.hh);
    if (shape.has_reset) { /* the last gate has panels of its own */
        const int64_t last = order ? order[shape.hidden_blocks] : shape.hidden_blocks;
        fastrnn_matrix reset = at.hh;
        reset.data = (const char *)at.hh.data + (size_t)(last * H * at.hh.row) * stack->item, reset.order = NULL;
        table->pack_rows(1, H, H, &reset,
                         (char *)to.hh + (size_t)table->packed_size(shape.hidden_blocks, H, P) * stack->item);
    }
    if (layer->projected)
        table->pack_rows(1, P, H, &at.hr, to.hr);
}

fastrnn_status fastrnn_pack(const fastrnn_stack *stack, const fastrnn_weights *weights, int passes, void *panels)
{
    for (int k = 0; k < stack->L * stack->D; k++)
        if (!fastrnn_has_valid_order(&weights[k], &stack->layers[k]))
            return FASTRNN_INVALID;
    panels_head *head = panels;
    const uintptr_t after = (uintptr_t)panels + sizeof *head;
    *head = (panels_head){.magic = MAGIC, .hash = stack->hash, .abi = FASTRNN_ABI, .passes = passes};
    strncpy(head->engine, fastrnn_engine(), sizeof head->engine - 1);
    head->begin = (int64_t)(((after + 63) & ~(uintptr_t)63) - (uintptr_t)panels);
    if (!fastrnn_is_fused())
        return FASTRNN_OK;
    const uint64_t mode = fastrnn_flush_denormals(); /* the bias row has the bits of one that a run makes itself */
    for (int backward = 0; backward < 2; backward++)
        if (passes & (backward ? FASTRNN_BACKWARD : FASTRNN_FORWARD))
            for (int k = 0; k < stack->L * stack->D; k++) {
                const fastrnn_layer_panels to = fastrnn_panels_of(stack, panels, backward, k);
                pack_layer(stack, &stack->layers[k], &weights[k], backward, to);
            }
    fastrnn_restore_mode(mode);
    return FASTRNN_OK;
}
