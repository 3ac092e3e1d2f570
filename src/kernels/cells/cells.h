/* The cells: the equations. Their only other copy is fastrnn/reference.py.
 *
 * A cell computes one vector of units of one row, in registers; loops.h loads and stores. Names are those of
 * docs/math.md. Derivatives are functions of the output.
 *
 *   a    the accumulators. In: pre-activations, with bias and all products. Out: activations, as the tape keeps them.
 *   da   gradients of the pre-activations, in the same order
 *   h    forward, in: h_prev; out: h. Backward, out: o tanh(c), for dW_hr.
 *   c    in: c_prev; out: c. Backward reads c and c_prev.
 *   dh   in: gradient of h; out: the part of the gradient of h_prev that no product carries
 *   dc   in: gradient of c; out: gradient of c_prev
 *
 * Forward has one or two stages. GATES has the activations that wait for nothing, and c. OUTPUT has those that wait for
 * GATES, and h; a cell with one stage has OUTPUT alone. Each stage is a loop of its own over all rows of a group of
 * units, so that the processor overlaps many independent chains.
 *
 * A cell leaves arguments alone that it has no use for.
 */
#define UNUSED __attribute__((unused))
#define GATES(CELL) INLINE void CELL##_gates(V a[], UNUSED V *c)
#define OUTPUT(CELL) INLINE void CELL##_output(V a[], UNUSED V c, V *h)
#define BACKWARD(CELL)                                                                                       \
    INLINE void CELL##_backward(const V a[], UNUSED V h_prev, UNUSED V c, UNUSED V c_prev, V *dh,     \
                                       UNUSED V *dc, UNUSED V *h, V da[])

/* Elman's cell (Elman, 1990)
 *   h = f(a),  a = W_ih x + b_ih + W_hh h_prev + b_hh,  f = tanh or relu */

OUTPUT(rnn_tanh)
{
    a[0] = v_tanh(a[0]);
    *h = a[0];
}

BACKWARD(rnn_tanh)
{
    da[0] = *dh * d_tanh(a[0]);
    *dh = v_set(0);
}

OUTPUT(rnn_relu)
{
    a[0] = v_max(v_set(0), a[0]);
    *h = a[0];
}

BACKWARD(rnn_relu)
{
    da[0] = v_real(v_bits(*dh) & (a[0] > 0));
    *dh = v_set(0);
}

/* LSTM (Hochreiter & Schmidhuber, 1997; forget gate: Gers et al., 2000)
 *   i, f, o = sigmoid(a_i, a_f, a_o)    g = tanh(a_g)
 *   c = f c_prev + i g                  h = o tanh(c) */

GATES(lstm)
{
    V i = v_sigmoid(a[0]), f = v_sigmoid(a[1]), g = v_tanh(a[2]), o = v_sigmoid(a[3]);
    *c = v_fma(f, *c, i * g);
    a[0] = i, a[1] = f, a[2] = g, a[3] = o;
}

OUTPUT(lstm)
{
    V o = a[3];
    *h = o * v_tanh(c);
}

BACKWARD(lstm)
{
    V i = a[0], f = a[1], g = a[2], o = a[3];
    V tanh_c = v_tanh(c); /* cheaper to compute again than to keep in the tape */
    *h = o * tanh_c;
    V d_c = v_fma(*dh * o, d_tanh(tanh_c), *dc);
    da[0] = d_c * g * d_sigmoid(i);
    da[1] = d_c * c_prev * d_sigmoid(f);
    da[2] = d_c * i * d_tanh(g);
    da[3] = *dh * tanh_c * d_sigmoid(o);
    *dc = d_c * f;
    *dh = v_set(0);
}

/* GRU with the reset gate after the product, as in cuDNN and PyTorch
 *   r, z = sigmoid(a_r, a_z)    n = tanh(a_x + r a_h),  a_x = W_in x + b_in,  a_h = W_hn h_prev + b_hn
 *   h = (1 - z) n + z h_prev
 * a comes in as a_r, a_z, a_h, a_x and goes out as r, z, a_h, n. */

GATES(gru)
{
    V r = v_sigmoid(a[0]), z = v_sigmoid(a[1]), a_n = v_fma(r, a[2], a[3]);
    a[0] = r, a[1] = z, a[3] = a_n;
}

OUTPUT(gru)
{
    V z = a[1], n = v_tanh(a[3]);
    *h = v_fma(z, *h - n, n);
    a[3] = n;
}

BACKWARD(gru)
{
    V r = a[0], z = a[1], a_h = a[2], n = a[3];
    V da_x = *dh * (1 - z) * d_tanh(n);
    da[0] = da_x * a_h * d_sigmoid(r);
    da[1] = *dh * (h_prev - n) * d_sigmoid(z);
    da[2] = da_x * r;
    da[3] = da_x;
    *dh = *dh * z;
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
    V z = a[1], n = v_tanh(a[2]);
    *h = v_fma(z, *h - n, n);
    a[2] = n;
}

BACKWARD(gru_reset_before)
{
    V z = a[1], n = a[2];
    da[0] = v_set(0); /* the reset stage writes it, once it has the gradient of r h_prev */
    da[1] = *dh * (h_prev - n) * d_sigmoid(z);
    da[2] = *dh * (1 - z) * d_tanh(n);
    *dh = *dh * z;
}

INLINE void reset_stage_backward(const V a[], V h_prev, V *drh, V *dh, V da[])
{
    V r = a[0];
    da[0] = *drh * h_prev * d_sigmoid(r);
    *dh = v_fma(*drh, r, *dh);
    *drh = r * h_prev;
}
