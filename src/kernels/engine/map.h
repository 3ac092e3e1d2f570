/* A compiled batch: rows cut into segments, the segments sorted by length.
 *
 * A segment is the real steps of one episode of one row. Sorted by length, longest first, the segments that are alive at
 * their k-th step are the first n_k: packed row offsets[k] + s is step k of segment s. Lengths, masks and resets are
 * therefore one thing to the kernels, which see packed rows only. */
#ifndef FASTRNN_MAP_H
#define FASTRNN_MAP_H

#include "fastrnn.h"

/* Where a state comes from, if not from a row of the given one or a segment. */
enum { FASTRNN_STATE_GIVEN = -1, FASTRNN_STATE_FRESH = -2 };

/* The head of a map. The arrays follow it, in this order, as int64_t. */
typedef struct {
    uint64_t magic;
    int64_t T, B, N;
    int64_t S;         /* segments with at least one real step */
    int64_t steps;     /* of the longest */
    int64_t packed;    /* x and y are packed rows themselves: there are no `source` and `place` */
    int64_t repeat;    /* of masked outputs */
} fastrnn_map_head;

typedef struct {
    const int64_t *offsets;  /* (steps+1,) packed rows of each step */
    const int64_t *source;   /* (N,)  t*B + b of each packed row */
    const int64_t *place;    /* (T*B,) the packed row of (t, b), or -1 */
    const int64_t *begin[2]; /* (S,)  by direction: the row whose given state a segment begins with, or FRESH */
    const int64_t *end[2];   /* (B,)  the segment whose last state is that of the row, or GIVEN, or FRESH */
} fastrnn_map_arrays;

fastrnn_map_arrays fastrnn_map_view(const void *map);

#endif
