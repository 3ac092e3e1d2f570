/* Gather and scatter: copies between packed rows and a sequence in the caller's layout. */
#include "kernels.h"

#include <string.h>

typedef struct {
    fastrnn_size t, b;
} slot_t;

/* The slot of a packed row. Most have the step `t` of the row before, which saves a division. */
static slot_t slot_of(const fastrnn_run *run, fastrnn_size row, fastrnn_size t)
{
    const fastrnn_size B = run->slots.B, slot = run->slots.source ? (fastrnn_size)run->slots.source[row] : row;
    const fastrnn_size rest = slot - t * B;
    return rest >= 0 && rest < B ? (slot_t){t, rest} : (slot_t){slot / B, slot % B};
}

static char *memory_of(const fastrnn_run *run, const fastrnn_rows *rows, slot_t at)
{
    return (char *)rows->data + (at.t * rows->step + at.b * rows->row) * (fastrnn_size)run->item;
}

/* Segments are sorted by length, so the packed rows of a step lie in the caller's memory in no order that a hardware
 * prefetcher could follow. They are copied in the order of the caller's memory instead: then it is the scratch, which L2
 * holds, that is accessed here and there. A ragged batch of 397 rows takes 5 % less (Zen 4). Each copy prefetches the row
 * that comes AHEAD copies later, since rows of a batch-major sequence lie far apart. */
enum { AHEAD = 8, LINE = 64, MOST_LINES = 16 };

static size_t lines_of(size_t bytes)
{
    const size_t lines = (bytes + LINE - 1) / LINE;
    return lines < MOST_LINES ? lines : MOST_LINES;
}

/* The packed row that is copied as number `k`. */
static fastrnn_size row_at(const fastrnn_run *run, fastrnn_size k)
{
    return run->slots.order ? (fastrnn_size)run->slots.order[k] : k;
}

static const char *row_ahead(const fastrnn_run *run, const fastrnn_rows *rows, fastrnn_size k, fastrnn_size end,
                             fastrnn_size t)
{
    return memory_of(run, rows, slot_of(run, row_at(run, k + AHEAD < end ? k + AHEAD : k), t));
}

/* Move to the next slot in the order of the direction, and say whether it repeats the output of the one before it. */
static int repeats(const fastrnn_run *run, slot_t *at)
{
    const fastrnn_slots *slots = &run->slots;
    at->t += run->layer->reverse ? -1 : 1;
    return at->t >= 0 && at->t < slots->T && slots->place[at->t * slots->B + at->b] < 0;
}

static void add_row(const fastrnn_run *run, const char *from, fastrnn_size width, char *to)
{
    if (run->item == sizeof(float))
        for (fastrnn_size k = 0; k < width; k++)
            ((float *)to)[k] += ((const float *)from)[k];
    else
        for (fastrnn_size k = 0; k < width; k++)
            ((double *)to)[k] += ((const double *)from)[k];
}

void fastrnn_gather(const fastrnn_run *run, const fastrnn_rows *rows, fastrnn_size width, fastrnn_size first,
                    fastrnn_size n, int is_gradient, void *to)
{
    const size_t bytes = (size_t)width * run->item, lines = lines_of(bytes);
    fastrnn_size t = 0;
    for (fastrnn_size k = first; k < first + n; k++) {
        const fastrnn_size row = row_at(run, k);
        char *out = (char *)to + (row - first) * (fastrnn_size)bytes;
        slot_t at = slot_of(run, row, t);
        t = at.t;
        const char *ahead = row_ahead(run, rows, k, first + n, t);
        for (size_t line = 0; line < lines; line++)
            __builtin_prefetch(ahead + line * LINE, 0);
        memcpy(out, memory_of(run, rows, at), bytes);
        while (is_gradient && run->slots.repeat && repeats(run, &at))
            add_row(run, memory_of(run, rows, at), width, out);
    }
}

void fastrnn_scatter(const fastrnn_run *run, const fastrnn_rows *rows, fastrnn_size width, fastrnn_size first,
                     fastrnn_size n, int is_output, const void *from, fastrnn_size ld)
{
    const size_t bytes = (size_t)width * run->item, lines = lines_of(bytes);
    fastrnn_size t = 0;
    for (fastrnn_size k = first; k < first + n; k++) {
        const fastrnn_size row = row_at(run, k);
        const char *in = (const char *)from + (row - first) * ld * (fastrnn_size)run->item;
        slot_t at = slot_of(run, row, t);
        t = at.t;
        const char *ahead = row_ahead(run, rows, k, first + n, t);
        for (size_t line = 0; line < lines; line++)
            __builtin_prefetch(ahead + line * LINE, 1);
        memcpy(memory_of(run, rows, at), in, bytes);
        while (is_output && run->slots.repeat && repeats(run, &at))
            memcpy(memory_of(run, rows, at), in, bytes);
    }
}

fastrnn_size fastrnn_next_chunk(const fastrnn_run *run, fastrnn_size done, int from_end)
{
    const fastrnn_size *offsets = run->offsets, edge = run->T - done;
    fastrnn_size steps = 1;
    if (from_end)
        while (steps < edge && offsets[edge] - offsets[edge - steps - 1] <= run->chunk)
            steps++;
    else
        while (done + steps < run->T && offsets[done + steps + 1] - offsets[done] <= run->chunk)
            steps++;
    return steps;
}
