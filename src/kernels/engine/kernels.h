/* The interface between the executor and the compiled kernels: the cell table, the structs of a run, and one table of
 * functions for each instruction set and precision.
 *
 * Shape letters:  T steps, B rows, N packed rows, I inputs, H hidden units, P width of h (H unless projected),
 *                 G = gates*H, A accumulators of a unit, AH = A*H, KH = kept*H, DH = (A + vectors)*H.
 *                 In a run, rows are segments (map.h): B counts them, and T is the length of the longest.
 *
 * Arrays are row-major, and contiguous unless a leading dimension (ld) is named. Kernels take numbers as void *, in the
 * precision of their table. They neither allocate, validate, raise nor print. No row of the batch reads another.
 */
#ifndef FASTRNN_KERNELS_H
#define FASTRNN_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "fastrnn.h"
#include "threads.h"

typedef ptrdiff_t fastrnn_size; /* Py_ssize_t, without Python.h */

/* The cells; cells/cells.h has their equations.
 * X(name, gates, accumulators, input, hidden, kept, inner, vectors, projects, has_reset, stages)
 *
 *   gates         blocks of H rows in W_ih and W_hh
 *   accumulators  A: blocks of H columns in a row of sums. Block b of a weight matrix feeds accumulator b, with two
 *                 exceptions:
 *   input         blocks of W_ih that feed the accumulator of their number. One more block (the GRU's n) feeds the last
 *                 accumulator, because W_in x must stay apart from W_hn h.
 *   hidden        blocks of W_hh that multiply h_prev. One more block (n of the GRU with the reset before) multiplies
 *                 r*h_prev, in a second product of the step. 0: there is no W_hh, the recurrence is diagonal: a unit
 *                 reads its own h_prev and no other.
 *   kept          blocks of H columns in a row of the tape: what backward wants beside the states, activations as a
 *                 rule. 0: nothing but h.
 *   inner         parts of the state beside h, as c: a unit reads its own and no other
 *   vectors       parameters (H,), one number for each unit, as peepholes
 *   projects      h can be projected: the cell reads no h_prev, as only products do, and backward sets what is projected
 *   has_reset     between the two products of a step stands a reset stage, which makes r*h_prev
 *   stages        2: some activations wait for others, so the cell has two loops (loops.h) */
#define FASTRNN_CELLS_OF_THE_ENGINE(X)        \
    X(rnn_tanh, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1) \
    X(rnn_relu, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1) \
    X(lstm, 4, 4, 4, 4, 4, 1, 0, 1, 0, 2)     \
    X(gru, 3, 4, 2, 3, 4, 0, 0, 0, 0, 2)      \
    X(gru_reset_before, 3, 3, 3, 2, 3, 0, 0, 0, 1, 1)

/* A build can have cells of its own: FASTRNN_MORE_CELLS names a header with their rows, and, for cells.h, which defines
 * FASTRNN_EQUATIONS, their equations. The tests add cells that use all that this table has room for. */
#ifdef FASTRNN_MORE_CELLS
#include FASTRNN_MORE_CELLS
#define FASTRNN_CELL_LIST(X) FASTRNN_CELLS_OF_THE_ENGINE(X) FASTRNN_MORE_ROWS(X)
#else
#define FASTRNN_CELL_LIST(X) FASTRNN_CELLS_OF_THE_ENGINE(X)
#endif

enum { FASTRNN_MOST_BLOCKS = 8, FASTRNN_MOST_INNER = FASTRNN_MOST_STATES - 1 };

typedef struct {
    const char *name;
    int gates;        /* G/H: blocks of the weight matrices */
    int accumulators; /* A */
    int input_blocks, hidden_blocks;
    int kept, inner, vectors;
    int projects, has_reset, stages;
} fastrnn_cell_shape;

#define FASTRNN_NUMBER_CELL(NAME, ...) fastrnn_cell_##NAME,
enum { FASTRNN_CELL_LIST(FASTRNN_NUMBER_CELL) FASTRNN_CELLS };
FASTRNN_API extern const fastrnn_cell_shape fastrnn_cell_shapes[FASTRNN_CELLS];

/* ---- a layer and direction -------------------------------------------------------------------------- */

/* What follows from a spec: one layer in one direction. */
typedef struct {
    int cell;
    fastrnn_cell_shape shape;
    fastrnn_size I, H, P, G, AH;
    fastrnn_size KH, DH; /* numbers in a row of the tape, and of dgates */
    int has_bias_ih, has_bias_hh, projected, reverse;
    size_t panels_at[2][4];    /* [pass][ih, hh, hr, bias]: bytes from the first panel of that pass */
    size_t sums_row;           /* bytes of a row of sums in the fused engine: the most that an instruction set needs */
    fastrnn_size forward_rows; /* packed rows of a chunk in forward, at most */
} fastrnn_layer;

/* Panels of a layer for one pass. Forward has panels of the rows of W_ih, W_hh and W_hr, and the combined bias as a row
 * of sums. Backward has panels of their columns. */
typedef struct {
    void *ih, *hh, *hr, *bias;
} fastrnn_layer_panels;

/* ---- runs ------------------------------------------------------------------------------------------ */

/* A matrix with one row for each packed row. Packed row k is at data + k*row. If the matrix is `scattered`, it has the
 * layout of the caller's sequence instead: packed row k is slot (t, b) of the batch, at data + t*step + b*row. */
typedef struct {
    void *data;             /* NULL: none */
    fastrnn_size row, step; /* strides, in numbers */
    int scattered;
} fastrnn_rows;

/* The slots (t, b) of the caller's batch, and the packed rows of those that are real steps. */
typedef struct {
    fastrnn_size T, B;
    const int64_t *source; /* (N,)   t*B + b of each packed row; NULL: packed rows are in the order of slots */
    const int64_t *order;  /* (N,)   the packed rows of each step, in the order of their slots; NULL as `source` */
    const int64_t *place;  /* (T*B,) the packed row of each slot, or -1 */
    int repeat;            /* a slot that is not real repeats the output of the real one before it */
} fastrnn_slots;

/* One layer in one direction: what forward and backward have in common.
 *
 *   offsets (T+1,)   packed rows of step t are offsets[t] .. offsets[t+1]-1. Segments are sorted by length, longest
 *                    first, so those alive at a step are the first ones.
 *   chunk            most packed rows of a chunk of steps; a chunk has at least one step
 *   h_rows           the history: h after each packed row, where the next step reads h_prev. It is y itself if y holds
 *                    packed rows. Else it is in the tape, or, `ring`, in two buffers of `chunk` rows that chunks use
 *                    alternately; each chunk of it is then scattered to y. */
typedef struct {
    const fastrnn_layer *layer;
    size_t item; /* bytes of a number */
    fastrnn_size T, B, chunk;
    const fastrnn_size *offsets;
    fastrnn_slots slots;
    const fastrnn_weights *weights;
    fastrnn_layer_panels panels; /* fused engine; NULL in forward: products read the weights themselves (unpacked.h) */
    fastrnn_rows x;              /* (N, I) */
    void *x_chunk;               /* (chunk, I)  scratch: gathered rows of a scattered x */
    void *h_rows;                /* (N, ldh), or (2, chunk, ldh) */
    fastrnn_size ldh;
    int ring;
    void *h;                         /* (B, P)  forward: in initial state, out final state; backward: initial state */
    void *inner[FASTRNN_MOST_INNER]; /* (B, H)  the same */
    void *kept;                      /* (N, KH) tape, or NULL */
    void *inner_rows[FASTRNN_MOST_INNER]; /* (N, H)  `inner` after each packed row: tape, or NULL */
    int threads;                          /* at most */
    fastrnn_poll poll;
} fastrnn_run;

typedef struct {
    fastrnn_run run;
    fastrnn_rows y; /* scattered; no data: y is the history, or is not wanted */
    /* scratch */
    void *sums; /* fused: (1 + chunk) rows of layer->sums_row bytes, the bias row first; BLAS: (chunk, AH) */
    void *bias; /* BLAS: (AH,) */
    void *unit; /* (B, H)  what the second product of a step multiplies: o tanh(c) of a projection, or r*h_prev */
} fastrnn_forward_run;

typedef struct {
    fastrnn_run run;
    fastrnn_rows dy, dx;              /* (N, P), (N, I), or none */
    int add_to_dx;                    /* the other direction has already written dx */
    void *dh;                         /* (B, P)  in: gradient of the final state; out: of the initial one */
    void *dinner[FASTRNN_MOST_INNER]; /* (B, H)  the same */
    void *dbias;                      /* (DH,)   sums of the columns of dgates; starts as zeros */
    fastrnn_weights dweights;         /* matrices; NULL: not wanted */
    /* scratch */
    void *dy_chunk, *dx_chunk; /* (chunk, P), (chunk, I)  rows of a scattered dy or dx */
    void *dgates;              /* (chunk, DH)  gradients of the pre-activations, then what each row adds to those of the
                                *              vectors */
    void *units;               /* (chunk, H)   o tanh(c), or r*h_prev */
    void *dh_rows;             /* (chunk, P)   gradient of the projected h, for dW_hr */
    void *dunit;               /* (B, H)       gradient of o tanh(c) */
    void *h_prev;              /* (chunk, P)   BLAS: h before each row */
    void *inner_prev[FASTRNN_MOST_INNER];     /* (B, H)  BLAS: `inner` before a step */
    void *panels_dgates;                      /* fused: panels of the AH columns of gradients, chunk rows deep */
    void *panels_h, *panels_x, *panels_units; /* fused: the same of P, I and H columns */
} fastrnn_backward_run;

/* Copy rows of scattered `rows` to packed rows; packed row `first` is at `to`. These are number first .. first+n-1 in the
 * order of slots within each step, so all members together copy a whole chunk, and another member may copy the rows that
 * one has computed. `is_gradient`: add the gradient of each slot that repeats an output to the row whose output it
 * repeats. */
FASTRNN_API void fastrnn_gather(const fastrnn_run *run, const fastrnn_rows *rows, fastrnn_size width,
                                fastrnn_size first, fastrnn_size n, int is_gradient, void *to);

/* The other way round, from packed rows with leading dimension `ld`. `is_output`: also to the slots that repeat them. */
FASTRNN_API void fastrnn_scatter(const fastrnn_run *run, const fastrnn_rows *rows, fastrnn_size width,
                                 fastrnn_size first, fastrnn_size n, int is_output, const void *from, fastrnn_size ld);

/* Steps of the next chunk, once `done` steps are through; `from_end`: chunks go from the last step to the first. */
FASTRNN_API fastrnn_size fastrnn_next_chunk(const fastrnn_run *run, fastrnn_size done, int from_end);

/* A matrix to pack. Element (r, k) is at data + r*row + k*column. With an `order`, rows come in blocks of `block` rows,
 * and block b of the packed matrix is block order[b] of this one. */
typedef struct {
    const void *data;
    fastrnn_size row, column, block;
    const uint8_t *order;
} fastrnn_matrix;

/* ---- kernels --------------------------------------------------------------------------------------- */

/* The sums of a step, which are the accumulators of its rows. Those of block b, row r, from unit k on are at
 *     at[r*row + b*block + k*unit]
 * A matrix (n, AH) has block = H and unit = 1. The fused engine has all blocks of a vector of units side by side: there
 * block = lanes, unit = A, and k is a multiple of the lanes. */
typedef struct {
    void *at;
    fastrnn_size row, block, unit;
} fastrnn_sums;

/* The cell in one forward step, after the products: rows 0 .. n-1, units `unit` .. end-1. */
typedef struct {
    fastrnn_size n, H, unit, end;
    fastrnn_sums sums;  /*              in: pre-activations; out: scratch */
    void *kept;         /* (n, KH)      out: for the tape, or NULL */
    const void *h_prev; /* (n, ld_prev) in */
    void *h;            /* (n, ldh)     out; may alias h_prev */
    fastrnn_size ld_prev, ldh;
    void *inner[FASTRNN_MOST_INNER];          /* (n, H) in: before the step; out: after it */
    void *inner_kept[FASTRNN_MOST_INNER];     /* (n, H) out: `inner` for the tape, or NULL */
    const void *vector[FASTRNN_MOST_VECTORS]; /* (H,) */
    void *rh;                                 /* (n, H)       out of the reset stage: r*h_prev */
} fastrnn_cell_forward;

/* The cell in one backward step, before the products. */
typedef struct {
    fastrnn_size n, H, unit, end;
    const void *kept;       /* (n, KH)      tape */
    const void *h_prev, *h; /* (n, ld_prev), (n, ldh); h only of a cell that keeps nothing else */
    const void *inner[FASTRNN_MOST_INNER], *inner_prev[FASTRNN_MOST_INNER]; /* (n, H) after the step, and before it */
    const void *vector[FASTRNN_MOST_VECTORS];                               /* (H,) */
    const void *dy; /* (n, lddy)    added to dh first, or NULL */
    fastrnn_size ld_prev, ldh, lddy;
    void *dgates; /* (n, DH)      out: gradients of the pre-activations, and what the row adds to those of the
                              *              vectors */
    void *dh;     /* (n, H)       in: gradient of h; out: the part of dh_prev that no product carries */
    void *dinner[FASTRNN_MOST_INNER]; /* (n, H) in: gradients of `inner`; out: of inner_prev */
    void *unprojected;                /* (n, H)       out: o tanh(c), for dW_hr, or NULL */
    void *drh;                        /* (n, H)       reset stage, in: gradient of r*h_prev; out: r*h_prev, for dW_hn */
} fastrnn_cell_backward;

/* The functions of a cell. Only gru_reset_before has a reset stage; other cells have NULL there. In forward, the reset
 * stage turns the sums of r and z into activations and writes rh. In backward, it completes dgates and dh. */
typedef struct {
    void (*forward)(const fastrnn_cell_forward *step);
    void (*backward)(const fastrnn_cell_backward *step);
    void (*reset_forward)(const fastrnn_cell_forward *step);
    void (*reset_backward)(const fastrnn_cell_backward *step);
} fastrnn_cell;

/* One precision of one instruction set. */
typedef struct {
    const fastrnn_cell *cell; /* by cell number */
    /* out[k] += a[0, k] + ... + a[n-1, k], in that order, for unit <= k < end; a (n, ld) */
    void (*add_rows)(fastrnn_size n, fastrnn_size ld, fastrnn_size unit, fastrnn_size end, const void *a, void *out);
    /* y[k] = activation(x[k]), k < n; for dense layers and for tests */
    void (*tanh)(fastrnn_size n, const void *x, void *y);
    void (*sigmoid)(fastrnn_size n, const void *x, void *y);

    /* The fused engine; NULL where there is none.
     *   packed_size    numbers in the panels of `blocks` blocks of `units` columns, K deep
     *   pack_rows      panels of w (blocks*units, K), for products with its transpose
     *   pack_columns   panels of w (K, units)
     *   pack_bias      the combined bias of a layer as a row of sums, of layer->sums_row bytes; `order` as in a matrix
     *   multiply       c (M, N) = a b. Element (r, k) of a is a[r*a_row + k*a_k]; b (K, N) is in panels.
     *   run_forward, run_backward   a whole run
     * multiply and the runs return 0, or why the call ended early (fastrnn_parallel). */
    fastrnn_size (*packed_size)(int blocks, fastrnn_size units, fastrnn_size K);
    void (*pack_rows)(int blocks, fastrnn_size units, fastrnn_size K, const fastrnn_matrix *w, void *panels);
    void (*pack_columns)(fastrnn_size units, fastrnn_size K, const fastrnn_matrix *w, void *panels);
    void (*pack_bias)(const fastrnn_layer *layer, const fastrnn_weights *w, const uint8_t *order, void *row);
    int (*multiply)(fastrnn_size M, fastrnn_size N, fastrnn_size K, const void *a, fastrnn_size a_row, fastrnn_size a_k,
                    const void *panels, void *c, int threads, const fastrnn_poll *poll);
    int (*run_forward)(const fastrnn_forward_run *run);
    int (*run_backward)(const fastrnn_backward_run *run);
} fastrnn_table;

typedef struct {
    const char *name; /* as FASTRNN_ISA spells it */
    int lanes_f32;
    const fastrnn_table *table[2]; /* float32, float64 */
} fastrnn_isa;

/* The instruction sets that are compiled in and that this processor has, the widest last. Returns their number. */
#define FASTRNN_MOST_ISAS 3 /* of one processor */
FASTRNN_API int fastrnn_available_isas(const fastrnn_isa *out[FASTRNN_MOST_ISAS]);

/* A monotonic clock. */
FASTRNN_API double fastrnn_seconds(void);

#endif
