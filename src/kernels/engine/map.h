/* The map: a compiled batch. Rows are cut into segments, and segments are sorted by length.
 *
 * A segment is the real steps of one episode of one row. Longest first, the segments that have a step k are the first
 * n_k, and packed row offsets[k] + s is step k of segment s. Kernels see packed rows only. So lengths, masks and resets
 * are one mechanism, and every cell, direction and engine has all three. */
#ifndef FASTRNN_MAP_H
#define FASTRNN_MAP_H

#include "fastrnn.h"

/* Entries of begin and end that are not a number: the state passes through from the caller's; the state is zero. */
enum { FASTRNN_STATE_GIVEN = -1, FASTRNN_STATE_ZERO = -2 };

/* The header of a map. Arrays of int64_t follow it (lay_out in map.c). */
typedef struct {
    uint64_t magic;
    int64_t T, B;
    int64_t N;      /* packed rows: real steps of all rows */
    int64_t S;      /* segments; each has at least one step */
    int64_t steps;  /* of the longest segment */
    int64_t packed; /* x and y are packed rows, so there are no slots: `source`, `order`, `place` are unused */
    int64_t repeat; /* a slot that is not real repeats the output before it */
} fastrnn_map_head;

/* A slot is a place (t, b) in the caller's batch, numbered t*B + b. begin and end have an entry for each direction. */
typedef struct {
    const int64_t *offsets;  /* (steps+1,) the first packed row of each step */
    const int64_t *source;   /* (N,)   the slot of each packed row */
    const int64_t *order;    /* (N,)   the packed rows of each step, by slot */
    const int64_t *place;    /* (T*B,) the packed row of each slot, or -1 */
    const int64_t *begin[2]; /* (S,)   the row whose initial state a segment begins with, or ZERO */
    const int64_t *end[2];   /* (B,)   the segment whose last state is the final state of a row, or GIVEN, or ZERO */
} fastrnn_map_arrays;

fastrnn_map_arrays fastrnn_map_view(const void *map);

#endif
