/* A stack of layers: what follows from its specs, and where its panels lie. */
#ifndef FASTRNN_STACK_H
#define FASTRNN_STACK_H

#include "fastrnn.h"
#include "kernels.h"

struct fastrnn_stack {
    int L, D, has_c;
    int32_t dtype;
    size_t item;              /* bytes of a number */
    uint64_t hash;            /* of all that decides what panels look like */
    int64_t width;            /* the widest output of a layer, D*P */
    size_t panels[2];         /* bytes of the panels of all layers, of either pass */
    fastrnn_layer layers[];   /* [L*D] */
};

/* Width of the output of the top layer. */
static inline int64_t fastrnn_output_width(const fastrnn_stack *stack)
{
    return stack->D * stack->layers[stack->L * stack->D - 1].P;
}

/* Whether weights are row-major, their blocks in the order of the cell's gates. */
int fastrnn_is_plain(const fastrnn_weights *w, const fastrnn_layer *layer);

/* Where the block of each gate is found in the arrays: `order`, filled; or NULL where there is no gate order. */
const uint8_t *fastrnn_block_order(const fastrnn_weights *w, const fastrnn_layer *layer, uint8_t order[8]);

/* Those of layer k in `panels`, which have been found to match; pass 0 is forward, 1 backward. */
fastrnn_layer_panels fastrnn_panels_of(const fastrnn_stack *stack, const void *panels, int pass, int k);

/* FASTRNN_OK, or FASTRNN_WRONG_PANELS. */
fastrnn_status fastrnn_match_panels(const fastrnn_stack *stack, const void *panels, int pass);

/* Bytes of the panels of a matrix, the most over all instruction sets. */
size_t fastrnn_panel_bytes(const fastrnn_stack *stack, int blocks, int64_t units, int64_t K);

/* Parts of a block of memory, one after the other, each at a cache line. Without a base it only measures. */
typedef struct {
    char *base;
    size_t used;
} fastrnn_arena;

static inline fastrnn_arena fastrnn_open_arena(void *memory)
{
    const uintptr_t at = ((uintptr_t)memory + 63) & ~(uintptr_t)63;
    return (fastrnn_arena){memory ? (char *)at : NULL, 64}; /* the 64 that aligning may take, at the end */
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
