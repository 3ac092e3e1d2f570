/* fastrnn's engine: recurrent layers, forward and backward, for programs in C and for the bindings of other runtimes.
 *
 * Shapes: T steps, B rows, N real row-steps, I inputs, H units, P width of h (H unless projected), G = gates*H,
 *         L layers, D directions (1 or 2), W = D*P the width of a layer's output
 *
 * C11. The engine allocates nothing but stacks, throws nothing and prints nothing. Every struct begins with its size:
 * set it with sizeof, and members that a later version adds at the end are zero for it. Sizes of maps, panels, tapes
 * and workspaces follow from specs, T, B and an upper bound of N only, never from data, threads or the processor, so
 * that a traced graph can hold them. Data needs the alignment of its element, maps and panels that of a uint64_t; the
 * engine aligns what lies inside. */
#ifndef FASTRNN_H
#define FASTRNN_H

#include <stddef.h>
#include <stdint.h>

#define FASTRNN_ABI 1
#define FASTRNN_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

enum { FASTRNN_F32 = 1, FASTRNN_F64 }; /* dtypes */
/* What panels are for: bits. For sizes of workspaces also whether gradients of weights have strides or a gate order. */
enum { FASTRNN_FORWARD = 1, FASTRNN_BACKWARD = 2, FASTRNN_STRIDED = 4 };
enum { FASTRNN_KEEP_NOTHING, FASTRNN_KEEP_ALL };            /* what a tape holds */
enum { FASTRNN_MOST_THREADS = 1024 };                       /* of one call */
enum { FASTRNN_MOST_STATES = 4, FASTRNN_MOST_VECTORS = 8 }; /* of a cell */
/* Options of a spec: bits. REVERSE: from the last step to the first, as the second of two directions always runs. */
enum { FASTRNN_BIAS_IH = 1, FASTRNN_BIAS_HH = 2, FASTRNN_PROJECTED = 4, FASTRNN_REVERSE = 8 };

typedef enum {
    FASTRNN_OK,
    FASTRNN_INVALID,      /* an argument is wrong; fastrnn_check says which */
    FASTRNN_UNSUPPORTED,  /* right, but not to be had from this engine */
    FASTRNN_WRONG_PANELS, /* panels of another instruction set or of other specs: pack again */
    FASTRNN_STOPPED       /* the poll ended the call, or a fork did: results are incomplete */
} fastrnn_status;

/* ---- what is computed ------------------------------------------------------------------------------ */

/* One layer in one direction. It holds no pointer to data. */
typedef struct {
    size_t size;
    const char *cell; /* "rnn_tanh", "rnn_relu", "lstm", "gru", "gru_reset_before" */
    int32_t dtype, reserved;
    int64_t I, H, P;
    uint64_t options;
} fastrnn_spec;

/* L*D specs, layer by layer, checked, and all that follows from them: immutable, to be used from any thread. */
typedef struct fastrnn_stack fastrnn_stack;
FASTRNN_API fastrnn_status fastrnn_stack_new(const fastrnn_spec *specs, int L, int D, fastrnn_stack **out,
                                             char error[256]);
FASTRNN_API void fastrnn_stack_free(fastrnn_stack *stack);

/* ---- which steps are real, and where episodes begin ------------------------------------------------- */

/* A step is real if t < lengths[b] and mask[t, b]. A step that is not real is a deleted step: the state passes it
 * unchanged. reset[t, b] begins a new episode before step t, whose state is zero, whether or not the step is real; a
 * reset beyond the length of its row does not count. Either direction is cut at the same place. */
typedef struct {
    size_t size;
    int64_t T, B;
    const int64_t *lengths; /* (B,) 0 .. T, in any order, or NULL */
    const int64_t
        *batch_sizes;     /* (T,) falling, or NULL: x and y are packed rows (N, width), those of step t first rows */
    const uint8_t *mask;  /* (T, B) with the strides below, or NULL: all real */
    const uint8_t *reset; /* (T, B), or NULL: none */
    int64_t mask_step, mask_row, reset_step, reset_row;
    int32_t repeat_masked; /* y of a step that is not real: 0: zero, 1: the output before it in its row, if any */
} fastrnn_batch;

/* A batch is compiled into a map: flat memory without pointers. */
FASTRNN_API size_t fastrnn_map_size(int64_t T, int64_t B);        /* the most that any batch needs */
FASTRNN_API size_t fastrnn_packed_map_size(int64_t T, int64_t B); /* with batch_sizes: T*B may be far more than N */
FASTRNN_API fastrnn_status fastrnn_map(const fastrnn_batch *batch, void *map, char error[256]);
FASTRNN_API void fastrnn_map_counts(const void *map, int64_t *N, int64_t *S);

/* ---- weights --------------------------------------------------------------------------------------- */

/* Of one layer and direction. Gradients have the same form.
 *
 * Element (r, k) of weight_ih is weight_ih[r*ih_row + k*ih_column], and so on; all six strides 0: row-major. So Keras's
 * (I, G) kernels need no transposed copy. Block k of every matrix and bias is gate gate_order[k] of the cell. Weights that are not
 * row-major in the order of the cell are read through panels only, and not by a back end. */
typedef struct {
    size_t size;
    void *weight_ih;                    /* (G, I) */
    void *weight_hh;                    /* (G, P); NULL if the recurrence of the cell is diagonal */
    void *bias_ih;                      /* (G,) or NULL */
    void *bias_hh;                      /* (G,) or NULL */
    void *weight_hr;                    /* (P, H) or NULL */
    void *vector[FASTRNN_MOST_VECTORS]; /* (H,) parameters with one number for each unit, where the cell has such */
    int64_t ih_row, ih_column, hh_row, hh_column, hr_row, hr_column;
    const uint8_t *gate_order; /* a permutation of the cell's gates, or NULL: the same order */
} fastrnn_weights;

/* Panels are weights and biases in the layout of one instruction set. Their header names that instruction set and holds
 * a hash of the specs. */
FASTRNN_API size_t fastrnn_panels_size(const fastrnn_stack *stack, int passes);
FASTRNN_API fastrnn_status fastrnn_pack(const fastrnn_stack *stack, const fastrnn_weights *weights, int passes,
                                        void *panels);

/* ---- calls ----------------------------------------------------------------------------------------- */

/* (T, B, width), the last axis contiguous: element (t, b, k) is data[t*step + b*row + k]. Packed rows (N, width) have
 * row strides only. */
typedef struct {
    void *data;
    int64_t step, row;
} fastrnn_sequence;

/* One call, forward or backward. NULL: not given, or not wanted. */
typedef struct {
    size_t size;
    const void *map; /* NULL: T x B, all real */
    int64_t T, B;
    int32_t keep;
    int32_t threads;                /* at most; 0: the process's setting */
    const fastrnn_weights *weights; /* [L*D] */
    /* Of the two passes; may be the same. Forward needs none: without, it multiplies the weights as they are, which is
     * faster than packing them for a few steps of a few rows. */
    const void *panels, *panels_backward;
    fastrnn_sequence x, y; /* y.data NULL: final states only */
    /* h, then c and what other parts the state of the cell has: (L*D, B, P), the others (L*D, B, H). */
    const void *state[FASTRNN_MOST_STATES]; /* NULL: zeros */
    void *final_state[FASTRNN_MOST_STATES]; /* may be those of `state` */
    const uint8_t *x_masks;                 /* (L-1, N, W): dropout on the inputs of the layers above the first */
    double x_scale;                         /* what the inputs are multiplied with where the mask is not 0 */
    void *tape, *workspace;
    size_t tape_size, workspace_size;
    fastrnn_sequence dy, dx;                       /* backward: dy.data NULL: zeros */
    const void *dfinal_state[FASTRNN_MOST_STATES]; /* NULL: zeros */
    void *dstate[FASTRNN_MOST_STATES];             /* may be those of `dfinal_state` */
    const fastrnn_weights *dweights;               /* [L*D]; only members that are not NULL are computed */
    int (*poll)(void *context); /* asked now and then by the calling thread; other than 0 ends the call */
    void *poll_context;
} fastrnn_call;

/* S_at_most: segments, the episodes of the rows with a real step: B without a map, and N_at_most if nothing is known.
 * `scattered`: whether the rows of y do not lie in the order of a full time-major batch: with a map, or batch-major. */
FASTRNN_API size_t fastrnn_tape_size(const fastrnn_stack *stack, int64_t T, int64_t B, int64_t N_at_most,
                                     int64_t S_at_most, int scattered);
FASTRNN_API size_t fastrnn_workspace_size(const fastrnn_stack *stack, int64_t T, int64_t B, int64_t N_at_most,
                                          int64_t S_at_most, int passes);

/* What one call wants: at most the sizes above. `tape` may be NULL. */
FASTRNN_API void fastrnn_call_sizes(const fastrnn_stack *stack, const fastrnn_call *call, int pass, size_t *tape,
                                    size_t *workspace);

/* Whether the call can be made; what is wrong with it. Forward and backward check nothing themselves. */
FASTRNN_API fastrnn_status fastrnn_check(const fastrnn_stack *stack, const fastrnn_call *call, int pass,
                                         char error[256]);
FASTRNN_API fastrnn_status fastrnn_forward(const fastrnn_stack *stack, const fastrnn_call *call);

/* The gradients of what fastrnn_forward computed with keep = FASTRNN_KEEP_ALL: x, y, state, weights, map, masks and
 * tape must be those of that call, unchanged. A tape may be used again. */
FASTRNN_API fastrnn_status fastrnn_backward(const fastrnn_stack *stack, const fastrnn_call *call);

/* ---- the process ----------------------------------------------------------------------------------- */

FASTRNN_API int fastrnn_abi(void);

/* Engines have names: "x86_v4" (AVX-512), "x86_v3" (AVX2, FMA), "neon": fused kernels for that instruction set. In a
 * process with a back end for products, which Python brings, there are "blas" and "baseline" besides.
 *
 * The environment is read once, when the library is loaded: FASTRNN_ISA names the engine (default: the last of
 * fastrnn_engines, the widest), FASTRNN_NUM_THREADS is the most threads of a call (default: the cores that the process
 * may run on). Where either is wrong, fastrnn_check_settings says so, as does fastrnn_stack_new, until one that is
 * right has been set. */
FASTRNN_API const char *fastrnn_engine(void);                    /* the one in use; NULL: there is none */
FASTRNN_API int fastrnn_engines(const char *names[], int most);  /* how many there are; `names` gets the first `most` */
FASTRNN_API fastrnn_status fastrnn_use_engine(const char *name); /* not while a call runs; pack again after it */
FASTRNN_API int fastrnn_get_threads(void);
FASTRNN_API fastrnn_status fastrnn_set_threads(int most); /* 1 .. FASTRNN_MOST_THREADS, from the next call on */
FASTRNN_API fastrnn_status fastrnn_check_settings(char error[256]);

#ifdef __cplusplus
}
#endif
#endif
