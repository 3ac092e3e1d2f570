/* The cells: the equations. Their only other copy is fastrnn/reference.py.
 *
 * A cell computes one vector of units of one row, in registers; loops.h loads and stores. Names are those of
 * docs/math.md. A cell leaves members alone that it has no use for.
 *
 * Forward has one or two stages. GATES has the activations that wait for nothing, and c. OUTPUT has those that wait for
 * GATES, and h; a cell with one stage has OUTPUT alone. Each stage is a loop of its own over all rows of a group of
 * units, so that the processor overlaps many independent chains. What the first stage passes to the second is in `a` and
 * in `inner`, which the second leaves as it is. */
typedef struct {
    V a[FASTRNN_MOST_BLOCKS];       /* in: pre-activations, with bias and all products. Out: what the tape keeps. */
    V h_prev, h;                    /* h_prev: unless the cell projects. h is set by OUTPUT. */
    V inner[FASTRNN_MOST_INNER];    /* the rest of the state, c first. In: before the step. Out: after it. */
    V vector[FASTRNN_MOST_VECTORS]; /* parameters of the units */
} unit_forward_t;

/* Derivatives are functions of what the tape keeps. */
typedef struct {
    V a[FASTRNN_MOST_BLOCKS];
    V h_prev, h; /* h_prev: unless the cell projects. h: of a cell that keeps nothing else. */
    V inner[FASTRNN_MOST_INNER], inner_prev[FASTRNN_MOST_INNER];
    V vector[FASTRNN_MOST_VECTORS];
    V dh;                            /* in: gradient of h. Out: the part of that of h_prev that no product carries. */
    V dinner[FASTRNN_MOST_INNER];    /* in: gradients of `inner`. Out: of inner_prev. */
    V da[FASTRNN_MOST_BLOCKS];       /* gradients of the pre-activations */
    V dvector[FASTRNN_MOST_VECTORS]; /* this row's part of the gradients of `vector` */
    V unprojected;                   /* o tanh(c), which a projection multiplies */
} unit_backward_t;

enum { C }; /* inner[C] */

#define GATES(CELL) INLINE void CELL##_gates(unit_forward_t *u)
#define OUTPUT(CELL) INLINE void CELL##_output(unit_forward_t *u)
#define BACKWARD(CELL) INLINE void CELL##_backward(unit_backward_t *u)

/* Elman's cell (Elman, 1990)
 *   h = f(a),  a = W_ih x + b_ih + W_hh h_prev + b_hh,  f = tanh or relu
 * Its derivative is a function of h, so the tape keeps nothing else. */

OUTPUT(rnn_tanh) { u->h = v_tanh(u->a[0]); }

BACKWARD(rnn_tanh)
{
    u->da[0] = u->dh * d_tanh(u->h);
    u->dh = v_set(0);
}

OUTPUT(rnn_relu) { u->h = v_max(v_set(0), u->a[0]); }

BACKWARD(rnn_relu)
{
    u->da[0] = v_real(v_bits(u->dh) & (u->h > 0));
    u->dh = v_set(0);
}

/* LSTM (Hochreiter & Schmidhuber, 1997; forget gate: Gers et al., 2000)
 *   i, f, o = sigmoid(a_i, a_f, a_o)    g = tanh(a_g)
 *   c = f c_prev + i g                  h = o tanh(c) */

GATES(lstm)
{
    V i = v_sigmoid(u->a[0]), f = v_sigmoid(u->a[1]), g = v_tanh(u->a[2]), o = v_sigmoid(u->a[3]);
    u->inner[C] = v_fma(f, u->inner[C], i * g);
    u->a[0] = i, u->a[1] = f, u->a[2] = g, u->a[3] = o;
}

OUTPUT(lstm)
{
    V o = u->a[3];
    u->h = o * v_tanh(u->inner[C]);
}

BACKWARD(lstm)
{
    V i = u->a[0], f = u->a[1], g = u->a[2], o = u->a[3];
    V tanh_c = v_tanh(u->inner[C]); /* cheaper to compute again than to keep in the tape */
    V dc = v_fma(u->dh * o, d_tanh(tanh_c), u->dinner[C]);
    u->da[0] = dc * g * d_sigmoid(i);
    u->da[1] = dc * u->inner_prev[C] * d_sigmoid(f);
    u->da[2] = dc * i * d_tanh(g);
    u->da[3] = u->dh * tanh_c * d_sigmoid(o);
    u->dinner[C] = dc * f;
    u->dh = v_set(0);
    u->unprojected = o * tanh_c;
}

/* GRU with the reset gate after the product, as in cuDNN and PyTorch
 *   r, z = sigmoid(a_r, a_z)    n = tanh(a_x + r a_h),  a_x = W_in x + b_in,  a_h = W_hn h_prev + b_hn
 *   h = (1 - z) n + z h_prev
 * `a` comes in as a_r, a_z, a_h, a_x and goes out as r, z, a_h, n. */

GATES(gru)
{
    V r = v_sigmoid(u->a[0]), z = v_sigmoid(u->a[1]), a_n = v_fma(r, u->a[2], u->a[3]);
    u->a[0] = r, u->a[1] = z, u->a[3] = a_n;
}

OUTPUT(gru)
{
    V z = u->a[1], n = v_tanh(u->a[3]);
    u->h = v_fma(z, u->h_prev - n, n);
    u->a[3] = n;
}

BACKWARD(gru)
{
    V r = u->a[0], z = u->a[1], a_h = u->a[2], n = u->a[3];
    V da_x = u->dh * (1 - z) * d_tanh(n);
    u->da[0] = da_x * a_h * d_sigmoid(r);
    u->da[1] = u->dh * (u->h_prev - n) * d_sigmoid(z);
    u->da[2] = da_x * r;
    u->da[3] = da_x;
    u->dh = u->dh * z;
}

/* GRU with the reset gate before the product (Cho et al., 2014)
 *   r, z = sigmoid(a_r, a_z)    n = tanh(W_in x + b_in + W_hn (r h_prev) + b_hn)
 *   h = (1 - z) n + z h_prev
 * The reset stage runs first: it makes r, z and r h_prev, whose product with W_hn completes a_n. */

INLINE void reset_stage_forward(V a[], V h_prev, V *rh)
{
    a[0] = v_sigmoid(a[0]);
    a[1] = v_sigmoid(a[1]);
    *rh = a[0] * h_prev;
}

OUTPUT(gru_reset_before)
{
    V z = u->a[1], n = v_tanh(u->a[2]);
    u->h = v_fma(z, u->h_prev - n, n);
    u->a[2] = n;
}

BACKWARD(gru_reset_before)
{
    V z = u->a[1], n = u->a[2];
    u->da[0] = v_set(0); /* the reset stage writes it, once it has the gradient of r h_prev */
    u->da[1] = u->dh * (u->h_prev - n) * d_sigmoid(z);
    u->da[2] = u->dh * (1 - z) * d_tanh(n);
    u->dh = u->dh * z;
}

INLINE void reset_stage_backward(const V a[], V h_prev, V *drh, V *dh, V da[])
{
    V r = a[0];
    da[0] = *drh * h_prev * d_sigmoid(r);
    *dh = v_fma(*drh, r, *dh);
    *drh = r * h_prev;
}

#ifdef FASTRNN_MORE_CELLS
#define FASTRNN_EQUATIONS
#include FASTRNN_MORE_CELLS
#endif
