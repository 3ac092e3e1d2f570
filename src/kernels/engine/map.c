/* Lengths, masks, resets and PyTorch's batch_sizes, compiled into a map (map.h). */
#include "map.h"

#include <stdio.h>
#include <string.h>

#define MAGIC UINT64_C(0x70616d6e6e727466)

typedef fastrnn_map_head head_t;

/* The arrays of a map, and scratch behind them. Segments are numbered twice: as they are found, row by row, and at last
 * by rank. Scratch has the first numbers. */
typedef struct {
    int64_t *offsets, *source, *order, *place, *begin[2], *end[2];
    int64_t *row, *length, *rank, *filled; /* scratch */
} arrays_t;

size_t fastrnn_map_size(int64_t T, int64_t B)
{
    /* T+1: offsets; T*B: source, order, place, and for each segment begin, begin, row, length, rank; B: end, end; T: filled */
    return sizeof(head_t) + sizeof(int64_t) * (size_t)(T + 1 + 8 * T * B + 2 * B + T);
}

size_t fastrnn_packed_map_size(int64_t T, int64_t B)
{
    return sizeof(head_t) + sizeof(int64_t) * (size_t)(T + 1 + 4 * B); /* offsets; begin, begin, end, end by row */
}

static arrays_t lay_out(const head_t *head)
{
    const int64_t T = head->T, B = head->B, slots = head->packed ? 0 : T * B, segments = head->packed ? B : slots;
    int64_t *at = (int64_t *)((char *)head + sizeof(head_t));
    arrays_t a = {.offsets = at};
    at += T + 1;
    a.source = at, at += slots;
    a.order = at, at += slots;
    a.place = at, at += slots;
    a.begin[0] = at, at += segments;
    a.begin[1] = at, at += segments;
    a.end[0] = at, at += B;
    a.end[1] = at, at += B;
    a.row = at, at += slots;
    a.length = at, at += slots;
    a.rank = at, at += slots;
    a.filled = at;
    return a;
}

fastrnn_map_arrays fastrnn_map_view(const void *map)
{
    const arrays_t a = lay_out(map);
    return (fastrnn_map_arrays){a.offsets, a.source, a.order, a.place, {a.begin[0], a.begin[1]}, {a.end[0], a.end[1]}};
}

void fastrnn_map_counts(const void *map, int64_t *N, int64_t *S)
{
    const head_t *head = map;
    *N = head->N;
    *S = head->S;
}

/* Cut row b into segments, numbered as they are found. place[t, b] becomes the segment of the slot, or -1; begin and
 * end have the same numbers.
 *
 * A reset at t cuts either direction between t-1 and t: the state before step t is zero forward, that before step t-1
 * in reverse. A reset at t = 0 cuts forward alone. Forward, the first episode begins with the initial state, unless a
 * reset begins it, and the last one ends with the final state. In reverse, the last episode begins with the initial
 * state, and the first one ends with the final state. An episode without a real step has no segment; the final state is
 * then the initial one, or zero if the row was cut. */
static void cut_row(const fastrnn_batch *batch, head_t *head, arrays_t *a, int64_t b)
{
    const int64_t B = batch->B, length = batch->lengths ? batch->lengths[b] : batch->T;
    int64_t segment = -1;                /* of the present episode; -1: no real step yet */
    int64_t last = FASTRNN_STATE_GIVEN;  /* end[0][b]: the final state forward */
    int64_t first = FASTRNN_STATE_GIVEN; /* end[1][b]: the final state in reverse */
    int64_t last_found = -1;             /* the segment that begins with the initial state in reverse */
    int cut = 0, first_episode = 1;      /* the present episode begins with a reset; it is the row's first */
    for (int64_t t = 0; t < batch->T; t++) {
        if (t < length && batch->reset && batch->reset[t * batch->reset_step + b * batch->reset_row]) {
            segment = -1, cut = 1, last = FASTRNN_STATE_ZERO;
            if (t > 0) {
                if (first_episode && first < 0)
                    first = FASTRNN_STATE_ZERO; /* in reverse, the first episode has no real step */
                first_episode = 0;
                last_found = -1; /* an earlier segment is not in the last episode */
            }
        }
        const int real = t < length && (!batch->mask || batch->mask[t * batch->mask_step + b * batch->mask_row]);
        if (!real) {
            a->place[t * B + b] = -1;
            continue;
        }
        if (segment < 0) {
            segment = last = last_found = head->S++;
            a->row[segment] = b;
            a->length[segment] = 0;
            a->begin[0][segment] = cut ? FASTRNN_STATE_ZERO : b;
            a->begin[1][segment] = FASTRNN_STATE_ZERO;
            if (first_episode)
                first = segment;
        }
        a->place[t * B + b] = segment;
        a->length[segment]++;
        head->N++;
    }
    if (last_found >= 0)
        a->begin[1][last_found] = b;
    a->end[0][b] = last;
    a->end[1][b] = first;
}

/* Rank segments by falling length, equal ones in the order in which they were found; then make offsets. It is a
 * counting sort, with `offsets` as the counters. */
static void sort_segments(head_t *head, arrays_t *a)
{
    const int64_t T = head->T;
    int64_t *offsets = a->offsets, alive = head->S;
    memset(offsets, 0, sizeof(int64_t) * (size_t)(T + 1));
    for (int64_t s = 0; s < head->S; s++) {
        offsets[a->length[s]]++; /* offsets[length]: segments of just that length */
        if (a->length[s] > head->steps)
            head->steps = a->length[s];
    }
    /* offsets[length]: the first rank of that length, which follows all longer segments */
    for (int64_t length = head->steps, before = 0; length >= 1; length--) {
        const int64_t count = offsets[length];
        offsets[length] = before;
        before += count;
    }
    for (int64_t s = 0; s < head->S; s++)
        a->rank[s] = offsets[a->length[s]]++;
    /* offsets[length]: segments of at least that length, which are those alive at step length-1 */
    offsets[0] = 0;
    for (int64_t step = 1; step <= head->steps; step++) {
        alive = offsets[step];
        offsets[step] = offsets[step - 1] + alive;
    }
}

/* Number segments by rank, and turn place from segments to packed rows; with source and order. */
static void renumber(const head_t *head, arrays_t *a)
{
    const int64_t slots = head->T * head->B, S = head->S;
    int64_t *moved = a->source; /* scratch for now; T*B >= S */
    for (int direction = 0; direction < 2; direction++) {
        for (int64_t s = 0; s < S; s++)
            moved[a->rank[s]] = a->begin[direction][s];
        memcpy(a->begin[direction], moved, sizeof(int64_t) * (size_t)S);
        for (int64_t b = 0; b < head->B; b++)
            if (a->end[direction][b] >= 0)
                a->end[direction][b] = a->rank[a->end[direction][b]];
    }
    int64_t *next = a->length; /* the next step of each segment */
    memset(next, 0, sizeof(int64_t) * (size_t)S);
    memcpy(a->filled, a->offsets, sizeof(int64_t) * (size_t)head->steps);
    for (int64_t slot = 0; slot < slots; slot++) {
        const int64_t segment = a->place[slot];
        if (segment < 0)
            continue;
        const int64_t step = next[segment]++, packed = a->offsets[step] + a->rank[segment];
        a->place[slot] = packed;
        a->source[packed] = slot;
        a->order[a->filled[step]++] = packed;
    }
}

/* Rows of PyTorch's packed sequences are sorted by length already: row b is segment b. */
static fastrnn_status from_batch_sizes(const fastrnn_batch *batch, head_t *head, arrays_t *a, char *error)
{
    if (batch->lengths || batch->mask || batch->reset) {
        snprintf(error, 256, "batch_sizes are given beside lengths, mask or reset");
        return FASTRNN_UNSUPPORTED;
    }
    head->repeat = 0; /* there are no masked outputs */
    head->S = batch->T ? batch->batch_sizes[0] : 0;
    a->offsets[0] = 0;
    for (int64_t t = 0; t < batch->T; t++) {
        const int64_t n = batch->batch_sizes[t], before = t ? batch->batch_sizes[t - 1] : batch->B;
        if (n < 1 || n > before) {
            snprintf(error, 256, "batch_sizes[%lld] is %lld, expected 1 <= size <= %lld, the one before or B",
                     (long long)t, (long long)n, (long long)before);
            return FASTRNN_INVALID;
        }
        a->offsets[t + 1] = a->offsets[t] + n;
    }
    head->steps = batch->T;
    head->N = a->offsets[batch->T];
    for (int direction = 0; direction < 2; direction++)
        for (int64_t b = 0; b < batch->B; b++) {
            a->end[direction][b] = b < head->S ? b : FASTRNN_STATE_GIVEN;
            if (b < head->S)
                a->begin[direction][b] = b;
        }
    return FASTRNN_OK;
}

fastrnn_status fastrnn_map(const fastrnn_batch *batch, void *map, char error[256])
{
    if (batch->T < 0 || batch->B < 0) {
        snprintf(error, 256, "T or B is negative");
        return FASTRNN_INVALID;
    }
    if (batch->lengths)
        for (int64_t b = 0; b < batch->B; b++)
            if (batch->lengths[b] < 0 || batch->lengths[b] > batch->T) {
                snprintf(error, 256, "lengths[%lld] is %lld, expected 0 <= length <= T = %lld", (long long)b,
                         (long long)batch->lengths[b], (long long)batch->T);
                return FASTRNN_INVALID;
            }
    head_t *head = map;
    *head = (head_t){.magic = MAGIC,
                     .T = batch->T,
                     .B = batch->B,
                     .packed = batch->batch_sizes != NULL,
                     .repeat = batch->repeat_masked != 0};
    arrays_t a = lay_out(head);
    if (batch->batch_sizes)
        return from_batch_sizes(batch, head, &a, error);
    for (int64_t b = 0; b < batch->B; b++)
        cut_row(batch, head, &a, b);
    sort_segments(head, &a);
    renumber(head, &a);
    return FASTRNN_OK;
}
