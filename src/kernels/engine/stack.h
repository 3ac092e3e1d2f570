/* A stack: its layers, checked, and the layout of its panels. And the arena, which divides flat memory. */
#ifndef FASTRNN_STACK_H
#define FASTRNN_STACK_H

#include "fastrnn.h"
#include "kernels.h"

struct fastrnn_stack {
    int L, D, inner;
    int32_t dtype;
    size_t item;            /* bytes of a number */
    uint64_t hash;          /* of the specs, as far as panels and tapes depend on them */
    int64_t width;          /* D*P of the layer with the widest output */
    size_t panels[2];       /* bytes of the panels of all layers: forward, backward */
    fastrnn_layer layers[]; /* [L*D], the directions of a layer side by side */
};

/* Width of the output of the top layer. */
static inline int64_t fastrnn_output_width(const fastrnn_stack *stack)
{
    return stack->D * stack->layers[stack->L * stack->D - 1].P;
}

/* Whether gate_order, if there is one, is a permutation of the cell's gates. */
int fastrnn_has_valid_order(const fastrnn_weights *w, const fastrnn_layer *layer);

/* Whether weights are row-major, with the gates in the order of the cell. */
int fastrnn_is_plain(const fastrnn_weights *w, const fastrnn_layer *layer);

/* The inverse of w->gate_order: which block of the arrays each gate of the cell has. It is written to `order`, and
 * returned; NULL if w has no gate order. */
const uint8_t *fastrnn_block_order(const fastrnn_weights *w, const fastrnn_layer *layer, uint8_t order[8]);

/* The matrices of `w` with their strides; `order` is that of fastrnn_block_order. */
typedef struct {
    fastrnn_matrix ih, hh, hr;
} fastrnn_matrices;
fastrnn_matrices fastrnn_matrices_of(const fastrnn_weights *w, const fastrnn_layer *layer, const uint8_t *order);

/* The panels of layers[k]. `panels` must match (fastrnn_match_panels). */
fastrnn_layer_panels fastrnn_panels_of(const fastrnn_stack *stack, const void *panels, int backward, int k);

/* FASTRNN_OK, or FASTRNN_WRONG_PANELS: of another engine or stack, or not for this pass. */
fastrnn_status fastrnn_match_panels(const fastrnn_stack *stack, const void *panels, int backward);

/* Bytes of the panels of `blocks` blocks of `units` columns, K deep: the most that an instruction set needs. */
size_t fastrnn_panel_bytes(const fastrnn_stack *stack, int blocks, int64_t units, int64_t K);

/* Flat memory from which parts are taken one after the other, each at a cache line. An arena without a base has no
 * memory and only measures, so that sizes and addresses come from the same walk. */
typedef struct {
    char *base;
    size_t used;
} fastrnn_arena;

static inline fastrnn_arena fastrnn_open_arena(void *memory)
{
    const uintptr_t at = ((uintptr_t)memory + 63) & ~(uintptr_t)63;
    return (fastrnn_arena){memory ? (char *)at : NULL, 64}; /* aligning the base takes up to 64 bytes */
}

static inline void *fastrnn_take(fastrnn_arena *arena, size_t bytes)
{
    char *part = arena->base;
    bytes = (bytes + 63) & ~(size_t)63;
    arena->used += bytes;
    if (!part)
        return NULL;
    arena->base = part + bytes;
    return part;
}

#endif
