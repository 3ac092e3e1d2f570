/* Cells that use what the cell table (kernels.h) has room for, and no cell of the engine needs: parameters of the units,
 * three inner states, a tape of more than the accumulators, a diagonal recurrence. cells.c tests them. */
#ifndef FASTRNN_EQUATIONS
#define FASTRNN_MORE_ROWS(X)                   \
    X(peepholes, 4, 4, 4, 4, 4, 1, 3, 1, 0, 2) \
    X(diagonal, 1, 1, 1, 0, 1, 0, 1, 0, 0, 1)  \
    X(four_states, 3, 3, 3, 3, 5, 3, 1, 0, 0, 1)
#else

/* LSTM with peepholes (Gers & Schmidhuber, 2000)
 *   i, f = sigmoid(a_i + p_i c_prev, a_f + p_f c_prev)    g = tanh(a_g)    o = sigmoid(a_o + p_o c)
 *   c = f c_prev + i g                                    h = o tanh(c) */

GATES(peepholes)
{
    V c_prev = u->inner[C];
    V i = v_sigmoid(v_fma(u->vector[0], c_prev, u->a[0])), f = v_sigmoid(v_fma(u->vector[1], c_prev, u->a[1]));
    V g = v_tanh(u->a[2]);
    u->inner[C] = v_fma(f, c_prev, i * g);
    u->a[0] = i, u->a[1] = f, u->a[2] = g;
}

OUTPUT(peepholes)
{
    V c = u->inner[C], o = v_sigmoid(v_fma(u->vector[2], c, u->a[3]));
    u->h = o * v_tanh(c);
    u->a[3] = o;
}

BACKWARD(peepholes)
{
    V i = u->a[0], f = u->a[1], g = u->a[2], o = u->a[3], c = u->inner[C], c_prev = u->inner_prev[C];
    V tanh_c = v_tanh(c), da_o = u->dh * tanh_c * d_sigmoid(o);
    V dc = v_fma(u->dh * o, d_tanh(tanh_c), u->dinner[C]) + da_o * u->vector[2];
    u->da[0] = dc * g * d_sigmoid(i);
    u->da[1] = dc * c_prev * d_sigmoid(f);
    u->da[2] = dc * i * d_tanh(g);
    u->da[3] = da_o;
    u->dvector[0] = u->da[0] * c_prev;
    u->dvector[1] = u->da[1] * c_prev;
    u->dvector[2] = da_o * c;
    u->dinner[C] = dc * f + u->da[0] * u->vector[0] + u->da[1] * u->vector[1];
    u->dh = v_set(0);
    u->unprojected = o * tanh_c;
}

/* IndRNN (Li et al., 2018) with tanh
 *   h = tanh(a + v h_prev) */

OUTPUT(diagonal)
{
    u->h = v_tanh(v_fma(u->vector[0], u->h_prev, u->a[0]));
    u->a[0] = u->h;
}

BACKWARD(diagonal)
{
    V da = u->dh * d_tanh(u->a[0]);
    u->da[0] = da;
    u->dvector[0] = da * u->h_prev;
    u->dh = da * u->vector[0];
}

/* Made up
 *   i, f = sigmoid(a_i, a_f)    z = tanh(a_z)
 *   c = f c_prev + i z    n = f n_prev + i    m = v m_prev + c    h = tanh(m + n h_prev) */

enum { N = C + 1, M };

OUTPUT(four_states)
{
    V i = v_sigmoid(u->a[0]), f = v_sigmoid(u->a[1]), z = v_tanh(u->a[2]);
    u->inner[C] = v_fma(f, u->inner[C], i * z);
    u->inner[N] = v_fma(f, u->inner[N], i);
    u->inner[M] = v_fma(u->vector[0], u->inner[M], u->inner[C]);
    u->h = v_tanh(v_fma(u->inner[N], u->h_prev, u->inner[M]));
    u->a[0] = i, u->a[1] = f, u->a[2] = z, u->a[3] = i * z, u->a[4] = u->h;
}

BACKWARD(four_states)
{
    V i = u->a[0], f = u->a[1], z = u->a[2], iz = u->a[3];
    V ds = u->dh * d_tanh(u->a[4]), dm = u->dinner[M] + ds, dn = u->dinner[N] + ds * u->h_prev, dc = u->dinner[C] + dm;
    u->da[0] = (dc * z + dn) * d_sigmoid(i);
    u->da[1] = (dc * u->inner_prev[C] + dn * u->inner_prev[N]) * d_sigmoid(f);
    u->da[2] = dc * (i - iz * z);
    u->dvector[0] = dm * u->inner_prev[M];
    u->dinner[C] = dc * f;
    u->dinner[N] = dn * f;
    u->dinner[M] = dm * u->vector[0];
    u->dh = ds * u->inner[N];
}

#endif
