/* What the compiled kernels offer to the executor: the cell table, and for each instruction set and precision one
 * table of functions.
 *
 * Shape letters:  T steps, B rows, N packed rows (the sum of all lengths), I inputs, H hidden units,
 *                 P width of the hidden state (H, or the projection size), G = gates*H,
 *                 A accumulators per unit: the sums that a cell wants of a unit; AH = A*H
 *
 * Every array is row-major and contiguous unless a leading dimension is named. Functions of a table take pointers to
 * its real type as void *. Kernels neither allocate, validate, raise nor print, and one row of the batch never reads
 * another.
 */
#ifndef FASTRNN_KERNELS_H
#define FASTRNN_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "fastrnn.h"
#include "threads.h"

typedef ptrdiff_t fastrnn_size; /* Py_ssize_t, without Python.h */

/* The cells; their equations are in cells/cells.h.
 * X(name, gates, accumulators, input, hidden, has_c, has_reset, stages)
 *
 * How the products of a cell meet its accumulators (the columns of gates are A blocks of H):
 *   input blocks  0 .. input-1 of W_ih feed accumulators of the same number; a further block (GRU's n)
 *                 feeds the last accumulator, so that it stays apart from W_hn h
 *   hidden blocks 0 .. hidden-1 of W_hh multiply h_prev; a further block (the other GRU's n) multiplies
 *                 r*h_prev, which is why that cell has a reset stage: two products a step
 * stages: 2 if some activations wait for others; they then have a loop of their own (loops.h) */
#define FASTRNN_CELL_LIST(X)                                                                                 \
    X(rnn_tanh, 1, 1, 1, 1, 0, 0, 1)                                                                          \
    X(rnn_relu, 1, 1, 1, 1, 0, 0, 1)                                                                          \
    X(lstm, 4, 4, 4, 4, 1, 0, 2)                                                                              \
    X(gru, 3, 4, 2, 3, 0, 0, 2)                                                                               \
    X(gru_reset_before, 3, 3, 3, 2, 0, 1, 1)

typedef struct {
    const char *name;
    int gates;        /* G/H: blocks of the weight matrices */
    int accumulators; /* A */
    int input_blocks, hidden_blocks;
    int has_c; /* the LSTM's second state */
    int has_reset;
    int stages;
} fastrnn_cell_shape;

#define FASTRNN_NUMBER_CELL(NAME, ...) fastrnn_cell_##NAME,
enum { FASTRNN_CELL_LIST(FASTRNN_NUMBER_CELL) FASTRNN_CELLS };
FASTRNN_API extern const fastrnn_cell_shape fastrnn_cell_shapes[FASTRNN_CELLS];

/* ---- a layer and direction -------------------------------------------------------------------------- */

/* What follows from a spec. */
typedef struct {
    int cell;
    fastrnn_cell_shape shape;
    fastrnn_size I, H, P, G, AH;
    int has_bias_ih, has_bias_hh, projected, reverse;
    size_t panels_at[2][4];    /* of fastrnn_layer_panels: bytes from the first panel of either pass */
    size_t sums_row;           /* bytes of a row of the fused engine's sums, the most over all instruction sets */
    fastrnn_size forward_rows; /* of projected sums that forward has at once */
} fastrnn_layer;

/* Panels of W_ih, W_hh and W_hr for one pass: by rows for forward, by columns for backward; and, for forward, the bias
 * as a row of sums. */
typedef struct {
    void *ih, *hh, *hr, *bias;
} fastrnn_layer_panels;

/* ---- runs ------------------------------------------------------------------------------------------ */

/* A matrix whose rows are the packed rows of a run: row k at data + k*row numbers. Or, if it is `scattered`, rows of a
 * sequence (T, B, width) as the caller has it, of which packed row k is cell (t, b): at data + t*step + b*row. */
typedef struct {
    void *data; /* NULL: none */
    fastrnn_size row, step;
    int scattered;
} fastrnn_rows;

/* Where packed rows lie in a scattered sequence. */
typedef struct {
    fastrnn_size T, B;
    const int64_t *source; /* (N,)   t*B + b of each packed row; NULL: rows are cells in order */
    const int64_t *place;  /* (T*B,) the packed row of each cell, or -1 */
    int repeat;            /* a cell without a row has the output of the real one before it */
} fastrnn_cells;

/* One layer in one direction: what forward and backward have in common.
 *
 *   offsets (T+1,)   rows of step t are offsets[t] .. offsets[t+1]-1, longest sequences first, so the rows of any step
 *                    are a prefix of the batch
 *   chunk            steps are taken in chunks of at most so many rows (but at least a step)
 *   h_rows           the history of h, row by row: what a step reads as h_prev. It is y where y holds packed rows
 *                    itself; else it lies in the tape, or, `ring`, in two buffers of `chunk` rows that chunks take in
 *                    turn, and rows are scattered to y at the end of each chunk */
typedef struct {
    const fastrnn_layer *layer;
    size_t item; /* bytes of the real type */
    fastrnn_size T, B, chunk;
    const fastrnn_size *offsets;
    fastrnn_cells cells;
    const fastrnn_weights *weights;
    fastrnn_layer_panels panels; /* fused engine; all NULL in forward: weights are multiplied as they are */
    fastrnn_rows x;              /* (N, I) */
    void *x_chunk;               /* (chunk, I)  scratch where x is scattered */
    void *h_rows;                /* (N, ldh)    or 2 times (chunk, ldh) */
    fastrnn_size ldh;
    int ring;
    void *h;                     /* (B, P)      forward: the initial state, at the end the final; backward: the initial */
    void *c;                     /* (B, H)      the same */
    void *gates;                 /* (N, AH)     kept for backward, or NULL; may be h_rows where A is 1 */
    void *c_rows;                /* (N, H)      kept for backward, or NULL */
    int threads;                 /* at most */
    fastrnn_poll poll;
} fastrnn_run;

typedef struct {
    fastrnn_run run;
    fastrnn_rows y; /* scattered, or none: then h_rows is all that is wanted */
    /* scratch */
    void *sums; /* 1 + chunk rows of layer->sums_row bytes, the first for the bias; BLAS: (chunk, AH) */
    void *bias; /* (AH,)   BLAS */
    void *unit; /* (B, H)  o tanh(c) before projection, or r*h_prev */
} fastrnn_forward_run;

typedef struct {
    fastrnn_run run;
    fastrnn_rows dy, dx; /* (N, P), (N, I), or none */
    int add_to_dx;
    void *dh; /* (B, P)  gradient of the final state, at the end of the initial */
    void *dc; /* (B, H)  the same */
    void *dbias;          /* (AH,)  by accumulator, added to */
    fastrnn_weights dweights; /* matrices that are wanted */
    /* scratch */
    void *dy_chunk, *dx_chunk; /* (chunk, P), (chunk, I)  where dy and dx are scattered */
    void *dgates;         /* (chunk, AH) */
    void *units;          /* (chunk, H)  o tanh(c), or r*h_prev */
    void *dh_rows;        /* (chunk, P)  gradient of the projected state */
    void *dunit;          /* (B, H)      gradient of o tanh(c) */
    void *h_prev;         /* (chunk, P)  BLAS: the state each row started its step from */
    void *c_prev;         /* (B, H)      BLAS */
    void *panels_dgates;  /* fused engine: AH columns of chunk rows */
    void *panels_h, *panels_x, *panels_units; /* P, I and H columns */
} fastrnn_backward_run;

/* Rows first .. first+n-1 of scattered `rows`, one after the other in `to` (n, width). For a gradient, of cells that
 * repeat an output too: their sum goes to the row that they repeat. */
FASTRNN_API void fastrnn_gather(const fastrnn_run *run, const fastrnn_rows *rows, fastrnn_size width, fastrnn_size first,
                                fastrnn_size n, int is_gradient, void *to);

/* The other way, from rows of `from` (n, ld); for an output, to cells that repeat it, too. */
FASTRNN_API void fastrnn_scatter(const fastrnn_run *run, const fastrnn_rows *rows, fastrnn_size width, fastrnn_size first,
                                 fastrnn_size n, int is_output, const void *from, fastrnn_size ld);

/* How many steps the chunk after the first `done` steps takes, in the order of forward or against it. */
FASTRNN_API fastrnn_size fastrnn_next_chunk(const fastrnn_run *run, fastrnn_size done, int from_end);

/* A matrix to pack: element (r, k) at data + r*row + k*column numbers. Its rows, if `order` is given, are blocks of
 * `block` rows, and block b is found at order[b]. */
typedef struct {
    const void *data;
    fastrnn_size row, column, block;
    const uint8_t *order;
} fastrnn_source;

/* ---- kernels --------------------------------------------------------------------------------------- */

/* Where the sums of a step lie: those of block b of the units from k on, of row r, at
 *     at[r*row + b*block + k*unit]
 * In a matrix (n, AH) block is H and unit 1. The fused engine has all blocks of a vector of units side by side:
 * block is the lanes of a vector, unit is A, and k a multiple of the lanes. */
typedef struct {
    void *at;
    fastrnn_size row, block, unit;
} fastrnn_sums;

/* A cell's part of one forward step, after the products: n rows, the units from `unit` to `end`-1. */
typedef struct {
    fastrnn_size n, H, unit, end;
    fastrnn_sums sums;  /*              in: pre-activations; out: scratch */
    void *gates;        /* (n, A*H)     out: what backward wants saved, or NULL; may be where the sums are */
    const void *h_prev; /* (n, ld_prev) in */
    void *h;            /* (n, ldh)     out; may be h_prev */
    fastrnn_size ld_prev, ldh;
    void *c;            /* (n, H)       in: c_prev; out: c (LSTM) */
    void *c_kept;       /* (n, H)       out: a copy of c, or NULL */
    void *rh;           /* (n, H)       out, of the reset stage: r*h_prev */
} fastrnn_cell_forward;

/* A cell's part of one backward step, before the products. */
typedef struct {
    fastrnn_size n, H, unit, end;
    const void *gates;       /* (n, A*H)     saved by forward */
    const void *h_prev;      /* (n, ld_prev) */
    const void *c, *c_prev;  /* (n, H)       LSTM */
    const void *dy;          /* (n, lddy)    added to dh first, or NULL */
    fastrnn_size ld_prev, lddy;
    void *dgates;            /* (n, A*H)     out: gradient of the pre-activations */
    void *dh;                /* (n, H)       in: gradient of h; out: the part of dh_prev that no product carries */
    void *dc;                /* (n, H)       in: gradient of c; out: of c_prev (LSTM) */
    void *h;                 /* (n, H)       out: h again, for a projection's weight gradient, or NULL (LSTM) */
    void *drh;               /* (n, H)       reset stage; in: gradient of r*h_prev, out: r*h_prev itself */
} fastrnn_cell_backward;

/* The functions of a cell. The reset stage is that of gru_reset_before: forward, the sums of r and z become
 * activations, and rh is made; backward, it completes dgates and dh. NULL in other cells. */
typedef struct {
    void (*forward)(const fastrnn_cell_forward *step);
    void (*backward)(const fastrnn_cell_backward *step);
    void (*reset_forward)(const fastrnn_cell_forward *step);
    void (*reset_backward)(const fastrnn_cell_backward *step);
} fastrnn_cell;

/* One precision of one instruction set. */
typedef struct {
    const fastrnn_cell *cell; /* by cell number */
    /* out[k] += sum over the n rows of a (n, ld), in row order, for unit <= k < end */
    void (*add_rows)(fastrnn_size n, fastrnn_size ld, fastrnn_size unit, fastrnn_size end, const void *a, void *out);
    /* y[k] = activation(x[k]), k < n: for layers that are no recurrent cell, and for tests */
    void (*tanh)(fastrnn_size n, const void *x, void *y);
    void (*sigmoid)(fastrnn_size n, const void *x, void *y);

    /* The fused engine; NULL where there is none.
     *   packed_size   numbers in the panels of `blocks` blocks of `units` columns, K deep
     *   pack_rows     panels of w (blocks*units, K): for a product with its transpose
     *   pack_columns  panels of w (K, units)
     *   pack_bias     the combined bias of a layer, as a row of layer->sums_row bytes
 *   multiply      c (M, N) = a b, of element (r, k) of a at a[r*a_row + k*a_k], b in panels (K, N)
         *   run_forward, run_backward  a whole run; as multiply, 0 or why it ended early (fastrnn_parallel) */
    fastrnn_size (*packed_size)(int blocks, fastrnn_size units, fastrnn_size K);
    void (*pack_rows)(int blocks, fastrnn_size units, fastrnn_size K, const fastrnn_source *w, void *panels);
    void (*pack_columns)(fastrnn_size units, fastrnn_size K, const fastrnn_source *w, void *panels);
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

/* Instruction sets that were compiled in and that this processor has, widest last; returns their number. */
#define FASTRNN_MOST_ISAS 3 /* of one processor */
FASTRNN_API int fastrnn_available_isas(const fastrnn_isa *out[FASTRNN_MOST_ISAS]);

/* A clock that only goes forward. */
FASTRNN_API double fastrnn_seconds(void);

#endif
