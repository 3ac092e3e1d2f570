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

/* One layer in one direction, forward or back. All pointers are to the run's real type.
 *
 *   offsets (T+1,)   rows of step t are offsets[t] .. offsets[t+1]-1, longest sequences first, so the
 *                    rows of any step are a prefix of the batch
 *   h (B, P), c (B, H)   the live state: initial when a call begins, final when it ends. A row that has
 *                    ended (or, in reverse, not begun) is simply not touched, which is all that lengths need
 */
typedef struct {
    int cell, reverse, projected, accumulate_dx;
    fastrnn_size T, B, I, H, P, chunk, ldy, lddy;
    const fastrnn_size *offsets;
    const void *x;         /* (N, I) */
    const void *weight_ih; /* (G, I) */
    const void *weight_hh; /* (G, P) */
    const void *weight_hr; /* (P, H)       projected */
    const void *bias_ih;   /* (G,)         or NULL */
    const void *bias_hh;   /* (G,)         or NULL */
    void *h;               /* (B, P)       live; in backward: the initial state, only read */
    void *c;               /* (B, H)       live; in backward: the initial state, only read */
    void *y;               /* (N, ldy)     forward: out; backward: as forward left it */
    void *sums;            /*              scratch of forward: of the size that sums_size gives; (chunk, AH) for
                            *              BLAS products, which need none where `gates` are kept */
    void *gates;           /* (N, AH)      kept for backward, or NULL; may be y where A is 1 */
    void *c_kept;          /* (N, H)       kept for backward, or NULL */
    void *bias;            /* (AH,)        backward: their gradient by accumulator, added to; in forward, scratch
                            *              for BLAS products */
    void *unit;            /* (B, H)       scratch: o tanh(c) before projection, or r*h_prev */
    /* backward only */
    const void *dy;        /* (N, lddy)    or NULL */
    void *dh;              /* (B, P)       live: gradient of the final state, then of the initial */
    void *dc;              /* (B, H)       live, the same */
    void *dgates;          /* (chunk, AH)  scratch */
    void *units;           /* (chunk, H)   scratch: o tanh(c), or r*h_prev */
    void *dh_kept;         /* (chunk, P)   scratch: gradient of the projected state */
    void *dunit;           /* (B, H)       scratch: gradient of o tanh(c) */
    void *dx;              /* (N, I)       or NULL */
    void *dweight_ih;      /* (G, I)       out */
    void *dweight_hh;      /* (G, P)       out */
    void *dweight_hr;      /* (P, H)       out */
    /* BLAS products only */
    void *h_prev;          /* (chunk, P)   scratch: the state each row started its step from */
    void *c_prev;          /* (B, H)       scratch */
    /* fused engine only: panels, of the sizes that packed_size gives */
    const void *packed_ih, *packed_hh, *packed_hr; /* W, for forward: pack_rows; all NULL: the weights as they are */
    const void *columns_ih, *columns_hh, *columns_hr; /* W, for backward: pack_columns */
    void *panels_dgates;   /* AH columns of chunk rows: scratch, as the next three */
    void *panels_h;        /* P columns: h_prev */
    void *panels_x;        /* I columns */
    void *panels_units;    /* H columns */
    int threads;           /* at most */
    fastrnn_poll poll;
} fastrnn_run;

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
     *   multiply      c (M, N) = a b, of element (r, k) of a at a[r*a_row + k*a_k], b in panels (K, N)
     *   sums_size     numbers in the scratch of a run forward whose chunks are of so many rows
     *   run_forward, run_backward  a whole run; as multiply, 0 or why it ended early (fastrnn_parallel) */
    fastrnn_size (*packed_size)(int blocks, fastrnn_size units, fastrnn_size K);
    void (*pack_rows)(int blocks, fastrnn_size units, fastrnn_size K, const void *w, void *panels);
    void (*pack_columns)(fastrnn_size units, fastrnn_size K, const void *w, void *panels);
    int (*multiply)(fastrnn_size M, fastrnn_size N, fastrnn_size K, const void *a, fastrnn_size a_row, fastrnn_size a_k,
                    const void *panels, void *c, int threads, const fastrnn_poll *poll);
    fastrnn_size (*sums_size)(int cell, fastrnn_size H, fastrnn_size rows);
    int (*run_forward)(fastrnn_run *run);
    int (*run_backward)(fastrnn_run *run);
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
