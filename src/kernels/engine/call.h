/* A call of the executor: its batch, and where each layer reads, writes and keeps. Shared by batch.c, layout.c,
 * executor.c and check.c. */
#ifndef FASTRNN_CALL_H
#define FASTRNN_CALL_H

#include "dispatch.h"
#include "map.h"
#include "stack.h"

/* What backward needs of a layer and direction: the initial state, h (S, P), inner (S, H); then what the cell kept (N, KH),
 * and `inner` after each packed row (N, H). */
typedef struct {
    char *h, *inner[FASTRNN_MOST_INNER], *cell, *inner_rows[FASTRNN_MOST_INNER];
} kept_t;

/* Where a layer, all directions, reads and writes packed rows, and what it keeps. */
typedef struct {
    fastrnn_rows x; /* of layer 0 as the caller has it */
    fastrnn_rows h; /* the history, directions side by side; no data: a ring in the scratch of each run */
    kept_t kept[2];
} level_t;

/* The head of a tape. */
typedef struct {
    uint64_t magic, hash;
    int64_t N, S, steps, holds_top; /* whether it holds the history of the top layer */
} tape_head;

#define TAPE_MAGIC UINT64_C(0x65706174746e7266)

typedef struct {
    const fastrnn_stack *stack;
    const fastrnn_call *call;
    const fastrnn_map_head *map; /* NULL: all steps are real */
    fastrnn_map_arrays arrays;   /* of the map */
    int64_t N, S, steps;
    size_t item;
    const int64_t *offsets;
    fastrnn_rows x, y;             /* the caller's */
    level_t *levels;               /* [L] */
    fastrnn_arena tape, workspace; /* of the workspace: what no run has taken */
    char *between[2];              /* backward: gradients between layers take turns in these */
} plan_t;

static inline int is_kept(const fastrnn_call *call) { return call->keep != FASTRNN_KEEP_NOTHING; }

/* ---- batch.c --------------------------------------------------------------------------------------- */

void fastrnn_open_plan(plan_t *b, const fastrnn_stack *stack, const fastrnn_call *call);

/* Packed rows of `width` numbers in a sequence of the caller's. `exact`: nothing may lie between the rows. */
fastrnn_rows fastrnn_rows_of(const plan_t *b, fastrnn_sequence s, int64_t width, int exact);

/* Zeros in the cells of a padded sequence that no real step has. */
void fastrnn_clear_masked(const plan_t *b, fastrnn_sequence s, int64_t width);

/* The states (S, width) that the segments of layer k begin with, from the given ones (L*D, B, width). */
void fastrnn_begin_states(const plan_t *b, int k, const void *given, int64_t width, char *to);

/* The final states (L*D, B, width) of rows, from those of the segments. */
void fastrnn_end_states(const plan_t *b, int k, const char *from, const void *given, int64_t width, void *to_final);

/* The gradients of both, against that order. */
void fastrnn_end_gradients(const plan_t *b, int k, const void *given, int64_t width, char *to);
void fastrnn_begin_gradients(const plan_t *b, int k, const char *from, const void *dfinal, int64_t width, void *out);

/* ---- layout.c -------------------------------------------------------------------------------------- */

/* Place everything but the scratch of runs in tape and workspace; without memory, only measure. */
void fastrnn_lay_out(plan_t *b, int pass);

/* Place the scratch of a run; its sizes, and whether its rows are scattered, are known. */
void fastrnn_take_forward_scratch(const plan_t *b, fastrnn_arena *arena, fastrnn_forward_run *run);
void fastrnn_take_backward_scratch(const plan_t *b, fastrnn_arena *arena, fastrnn_backward_run *run);

/* Row-major matrices for the gradients that `d` wants, in the order of the cell's gates. */
fastrnn_weights fastrnn_take_plain(const plan_t *b, fastrnn_arena *arena, const fastrnn_layer *layer,
                                   const fastrnn_weights *d);

/* What forward and backward of layer k have in common. */
void fastrnn_open_run(const plan_t *b, int k, fastrnn_run *run);

#endif
