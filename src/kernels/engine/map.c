/* Which steps are real, and where episodes begin, compiled into a map (map.h). */
#include "map.h"

#include <stdio.h>
#include <string.h>

#define MAGIC UINT64_C(0x70616d6e6e727466)

typedef fastrnn_map_head head_t;

/* The arrays of a map, to be written. `row`, `length` and `rank` are by segment in the order in which they are found. */
typedef struct {
    int64_t *offsets, *source, *place, *begin[2], *end[2];
    int64_t *row, *length, *rank, *first; /* scratch */
} arrays_t;

size_t fastrnn_map_size(int64_t T, int64_t B)
{
    /* offsets; source and place; begin, begin, row, length, rank by segment; end, end, first by row */
    return sizeof(head_t) + sizeof(int64_t) * (size_t)(T + 1 + 7 * T * B + 3 * B);
}

size_t fastrnn_packed_map_size(int64_t T, int64_t B)
{
    return sizeof(head_t) + sizeof(int64_t) * (size_t)(T + 1 + 4 * B); /* offsets; begin, begin, end, end by row */
}

static arrays_t lay_out(const head_t *head)
{
    const int64_t T = head->T, B = head->B, cells = head->packed ? 0 : T * B, segments = head->packed ? B : cells;
    int64_t *at = (int64_t *)((char *)head + sizeof(head_t));
    arrays_t a = {.offsets = at};
    at += T + 1;
    a.source = at, at += cells;
    a.place = at, at += cells;
    a.begin[0] = at, at += segments;
    a.begin[1] = at, at += segments;
    a.end[0] = at, at += B;
    a.end[1] = at, at += B;
    a.row = at, at += cells;
    a.length = at, at += cells;
    a.rank = at, at += cells;
    a.first = at;
    return a;
}

fastrnn_map_arrays fastrnn_map_view(const void *map)
{
    const arrays_t a = lay_out(map);
    return (fastrnn_map_arrays){a.offsets, a.source, a.place, {a.begin[0], a.begin[1]}, {a.end[0], a.end[1]}};
}

void fastrnn_map_counts(const void *map, int64_t *N, int64_t *S)
{
    const head_t *head = map;
    *N = head->N;
    *S = head->S;
}

/* Cut row b into segments: place[t, b] becomes the number of its segment, or -1. Segments are numbered as they are
 * found. begin and end are by that number, too. */
static void cut_row(const fastrnn_batch *batch, head_t *head, arrays_t *a, int64_t b)
{
    const int64_t B = batch->B, length = batch->lengths ? batch->lengths[b] : batch->T;
    int64_t segment = -1, last = FASTRNN_STATE_GIVEN; /* at hand; the last one, as `end` has it */
    int64_t first = FASTRNN_STATE_GIVEN, last_found = -1; /* of the row's first episode; the last with a real step */
    int cut = 0, first_episode = 1;                   /* whether the episode begins afresh; whether it is the first */
    for (int64_t t = 0; t < batch->T; t++) {
        if (t < length && batch->reset && batch->reset[t * batch->reset_step + b * batch->reset_row]) {
            segment = -1, cut = 1, last = FASTRNN_STATE_FRESH;
            if (t > 0) {
                if (first_episode && first < 0)
                    first = FASTRNN_STATE_FRESH; /* backward in time nothing of this row is in its first episode */
                first_episode = 0;
                last_found = -1; /* what came before does not begin with the state given at the end */
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
            a->begin[0][segment] = cut ? FASTRNN_STATE_FRESH : b;
            a->begin[1][segment] = FASTRNN_STATE_FRESH;
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

/* rank[segment]: its place in the order of falling length, equal ones as they were found. offsets, from the lengths. */
static void sort_segments(head_t *head, arrays_t *a)
{
    const int64_t T = head->T;
    int64_t *offsets = a->offsets, alive = head->S;
    memset(offsets, 0, sizeof(int64_t) * (size_t)(T + 1));
    for (int64_t s = 0; s < head->S; s++) {
        offsets[a->length[s]]++; /* how many have just this length */
        if (a->length[s] > head->steps)
            head->steps = a->length[s];
    }
    /* Where the ranks of each length begin: after those of all longer ones. */
    for (int64_t length = head->steps, before = 0; length >= 1; length--) {
        const int64_t count = offsets[length];
        offsets[length] = before;
        before += count;
    }
    for (int64_t s = 0; s < head->S; s++)
        a->rank[s] = offsets[a->length[s]]++;
    /* Now offsets[length] counts the segments of at least that length: those alive at step length-1. */
    offsets[0] = 0;
    for (int64_t step = 1; step <= head->steps; step++) {
        alive = offsets[step];
        offsets[step] = offsets[step - 1] + alive;
    }
}

/* Numbers of segments as they were found become ranks; place and source become packed rows. */
static void renumber(const head_t *head, arrays_t *a)
{
    const int64_t cells = head->T * head->B, S = head->S;
    int64_t *moved = a->source; /* of begin, one direction after the other; T*B >= S */
    for (int direction = 0; direction < 2; direction++) {
        for (int64_t s = 0; s < S; s++)
            moved[a->rank[s]] = a->begin[direction][s];
        memcpy(a->begin[direction], moved, sizeof(int64_t) * (size_t)S);
        for (int64_t b = 0; b < head->B; b++)
            if (a->end[direction][b] >= 0)
                a->end[direction][b] = a->rank[a->end[direction][b]];
    }
    int64_t *next = a->length; /* the step that each segment is at */
    memset(next, 0, sizeof(int64_t) * (size_t)S);
    for (int64_t cell = 0; cell < cells; cell++) {
        const int64_t segment = a->place[cell];
        if (segment < 0)
            continue;
        const int64_t packed = a->offsets[next[segment]++] + a->rank[segment];
        a->place[cell] = packed;
        a->source[packed] = cell;
    }
}

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
    *head = (head_t){.magic = MAGIC, .T = batch->T, .B = batch->B, .packed = batch->batch_sizes != NULL,
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
