/* What the compiled kernels offer to the Cython loops: one table of cells per instruction set.
 *
 * Shape letters:  n rows of the batch that are alive at this time step
 *                 H hidden units
 *                 A accumulators per unit: the blocks of H columns in a row of `gates`
 *
 * Every array is row-major. The kernels are elementwise over (n, H): they neither allocate,
 * validate, raise nor print, and one row never reads another.
 */
#ifndef FASTRNN_KERNELS_H
#define FASTRNN_KERNELS_H

#include <stddef.h>
#include <stdint.h>

typedef ptrdiff_t fastrnn_size; /* Py_ssize_t, without Python.h */

enum { FASTRNN_RNN_TANH, FASTRNN_RNN_RELU, FASTRNN_LSTM, FASTRNN_GRU, FASTRNN_GRU_RESET_BEFORE, FASTRNN_CELLS };

/* How the products of a cell meet its accumulators. The columns of gates are A blocks of H.
 *
 *   input blocks  0 .. input_blocks-1 of W_ih feed accumulators of the same number; a further
 *                 block (GRU's n) feeds the last accumulator, so that it stays apart from W_hn h
 *   hidden blocks 0 .. hidden_blocks-1 of W_hh multiply h_prev; a further block (the other GRU's n)
 *                 multiplies r*h_prev, which is why that cell has a reset stage
 */
typedef struct {
    int gates;         /* G/H: blocks of the weight matrices */
    int accumulators;  /* A */
    int input_blocks;
    int hidden_blocks;
    int has_c;         /* the LSTM's second state */
    int has_reset;     /* two products a step, with the reset stage between them */
} fastrnn_cell_shape;

#define FASTRNN_DECLARE(REAL, SUFFIX)                                                                        \
    typedef struct {                                                                                         \
        /* One forward step, after the products.                                                             \
         *   gates   (n, A*H)  in: pre-activations; out: what backward wants saved, if keep != 0             \
         *   h       (n, H)    in: h_prev; out: h                                                            \
         *   c       (n, H)    in: c_prev; out: c (LSTM)                                                     \
         *   y       (n, ldy)  out: a copy of h, or NULL                                                     \
         *   c_kept  (n, H)    out: a copy of c, or NULL */                                                  \
        void (*forward)(fastrnn_size n, fastrnn_size H, REAL *gates, int keep, REAL *h, REAL *c, REAL *y,    \
                        fastrnn_size ldy, REAL *c_kept);                                                     \
        /* One backward step, before the products.                                                           \
         *   gates   (n, A*H)  saved by forward; not written                                                 \
         *   h_prev  (n, H)    c, c_prev (n, H; LSTM)                                                        \
         *   dgates  (n, A*H)  out: gradient of the pre-activations                                          \
         *   dh      (n, H)    in: gradient of h; out: the part of dh_prev that no product carries           \
         *   dc      (n, H)    in: gradient of c; out: of c_prev (LSTM)                                      \
         *   h       (n, H)    out: h again, for a projection's weight gradient, or NULL (LSTM) */           \
        void (*backward)(fastrnn_size n, fastrnn_size H, const REAL *gates, const REAL *h_prev,              \
                         const REAL *c, const REAL *c_prev, REAL *dgates, REAL *dh, REAL *dc, REAL *h);      \
        /* The reset stage of GRU_RESET_BEFORE.                                                              \
         *   reset_forward:  gates (n, A*H) blocks r, z become activations; rh (n, H) out: r*h_prev          \
         *   reset_backward: drh (n, H) in: gradient of r*h_prev, out: r*h_prev itself;                      \
         *                   dgates block r out; dh (n, H) gains drh*r */                                    \
        void (*reset_forward)(fastrnn_size n, fastrnn_size H, REAL *gates, const REAL *h_prev, REAL *rh);    \
        void (*reset_backward)(fastrnn_size n, fastrnn_size H, const REAL *gates, const REAL *h_prev,        \
                               REAL *drh, REAL *dgates, REAL *dh);                                           \
    } fastrnn_cell_##SUFFIX;                                                                                 \
    typedef struct {                                                                                         \
        fastrnn_cell_##SUFFIX cell[FASTRNN_CELLS];                                                           \
        /* out[k] += sum over the n rows of a (n, m), in row order */                                        \
        void (*add_rows)(fastrnn_size n, fastrnn_size m, const REAL *a, REAL *out);                          \
        /* y[k] = activation(x[k]), k < n: for tests and for layers that are no recurrent cell */            \
        void (*tanh)(fastrnn_size n, const REAL *x, REAL *y);                                                \
        void (*sigmoid)(fastrnn_size n, const REAL *x, REAL *y);                                             \
    } fastrnn_table_##SUFFIX;

FASTRNN_DECLARE(float, f32)
FASTRNN_DECLARE(double, f64)

typedef struct {
    const char *name; /* as FASTRNN_ISA spells it */
    int lanes_f32;
    const fastrnn_table_f32 *f32;
    const fastrnn_table_f64 *f64;
} fastrnn_isa;

extern const fastrnn_cell_shape fastrnn_cell_shapes[FASTRNN_CELLS];

/* Instruction sets that were compiled in and that this processor has, widest last; returns their number. */
#define FASTRNN_MOST_ISAS 3
int fastrnn_available_isas(const fastrnn_isa *out[FASTRNN_MOST_ISAS]);

/* Treat denormals as zero until the mode that was there before is put back: BPTT through a vanished
 * gradient is many times slower otherwise on some processors. */
uint64_t fastrnn_flush_denormals(void);
void fastrnn_restore_mode(uint64_t mode);

/* A clock that only goes forward. */
double fastrnn_seconds(void);

#endif
