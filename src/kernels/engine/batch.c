/* The batch of a call: where its packed rows lie, and how the states of segments follow from those of rows. */
#include "call.h"

#include <string.h>

void fastrnn_open_plan(plan_t *b, const fastrnn_stack *stack, const fastrnn_call *call)
{
    b->stack = stack;
    b->call = call;
    b->map = call->map;
    b->item = stack->item;
    b->levels = NULL;
    b->between[0] = b->between[1] = NULL;
    b->tape = fastrnn_open_arena(call->tape);
    b->workspace = fastrnn_open_arena(call->workspace);
    if (b->map) {
        b->arrays = fastrnn_map_view(b->map);
        b->N = b->map->N, b->S = b->map->S, b->steps = b->map->steps;
        b->offsets = b->arrays.offsets;
        return;
    }
    b->N = call->T * call->B, b->S = call->B, b->steps = call->B ? call->T : 0;
    int64_t *offsets = fastrnn_take(&b->workspace, sizeof(int64_t) * (size_t)(b->steps + 1));
    for (int64_t t = 0; offsets && t <= b->steps; t++)
        offsets[t] = t * call->B;
    b->offsets = offsets;
}

fastrnn_rows fastrnn_rows_of(const plan_t *b, fastrnn_sequence s, int64_t width, int exact)
{
    const int64_t T = b->call->T, B = b->call->B;
    const int packed = b->map && b->map->packed;
    const int even = packed || (!b->map && (B == 1 || T == 1 || s.step == B * s.row));
    const int64_t ld = B == 1 && !packed ? (T == 1 ? width : s.step) : s.row;
    /* BLAS takes no rows that overlap, repeat or go backwards, and 32 bits of distance. */
    if (even && (ld == width || (!exact && ld > width && ld <= INT32_MAX)))
        return (fastrnn_rows){s.data, ld, 0, 0};
    return (fastrnn_rows){s.data, s.row, packed ? s.row : s.step, 1}; /* packed rows are then the steps of one row */
}

void fastrnn_clear_masked(const plan_t *b, fastrnn_sequence s, int64_t width)
{
    if (b->map->packed)
        return;
    const size_t bytes = (size_t)width * b->item;
    for (int64_t t = 0, slot = 0; t < b->call->T; t++)
        for (int64_t row = 0; row < b->call->B; row++, slot++)
            if (b->arrays.place[slot] < 0)
                memset((char *)s.data + (size_t)(t * s.step + row * s.row) * b->item, 0, bytes);
}

/* States, and gradients of states, come in two forms: of the caller's rows (L*D, B, width), and of the segments of
 * layer k (S, width), which runs use. Without a map, segments are rows, and the final states are in place already. */

/* Initial states: of rows `given`, to segments `to`. */
void fastrnn_begin_states(const plan_t *b, int k, const void *given, int64_t width, char *to)
{
    const size_t bytes = (size_t)width * b->item;
    const char *from = given ? (const char *)given + (size_t)(k * b->call->B) * bytes : NULL;
    if (!b->map && from) {
        if (to != from) /* the caller may alias initial and final state */
            memmove(to, from, (size_t)b->S * bytes);
        return;
    }
    const int64_t *begin = b->map ? b->arrays.begin[b->stack->layers[k].reverse] : NULL;
    for (int64_t s = 0; s < b->S; s++)
        if (from && begin[s] >= 0)
            memcpy(to + (size_t)s * bytes, from + (size_t)begin[s] * bytes, bytes);
        else
            memset(to + (size_t)s * bytes, 0, bytes);
}

/* Final states: of segments `from`, to rows `to_final`. A row that has none passes its initial state `given` on, or
 * zero. */
void fastrnn_end_states(const plan_t *b, int k, const char *from, const void *given, int64_t width, void *to_final)
{
    const size_t bytes = (size_t)width * b->item, at = (size_t)(k * b->call->B) * bytes;
    const int64_t *end = b->arrays.end[b->stack->layers[k].reverse];
    if (!to_final)
        return;
    for (int64_t row = 0; row < b->call->B; row++) {
        char *to = (char *)to_final + at + (size_t)row * bytes;
        if (end[row] >= 0)
            memcpy(to, from + (size_t)end[row] * bytes, bytes);
        else if (end[row] == FASTRNN_STATE_GIVEN && given)
            memmove(to, (const char *)given + at + (size_t)row * bytes, bytes);
        else
            memset(to, 0, bytes);
    }
}

/* Gradients of final states: of rows `given`, to segments `to`. */
void fastrnn_end_gradients(const plan_t *b, int k, const void *given, int64_t width, char *to)
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
    const int64_t *end = b->arrays.end[b->stack->layers[k].reverse];
    memset(to, 0, (size_t)b->S * bytes);
    for (int64_t row = 0; from && row < b->call->B; row++)
        if (end[row] >= 0)
            memcpy(to + (size_t)end[row] * bytes, from + (size_t)row * bytes, bytes);
}

/* Gradients of initial states: of segments `from`, to rows `out`. Where a row's state passed through, so does the
 * gradient of its final state, `dfinal`. */
void fastrnn_begin_gradients(const plan_t *b, int k, const char *from, const void *dfinal, int64_t width, void *out)
{
    const size_t bytes = (size_t)width * b->item, at = (size_t)(k * b->call->B) * bytes;
    const int64_t *begin = b->arrays.begin[b->stack->layers[k].reverse],
                  *end = b->arrays.end[b->stack->layers[k].reverse];
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
