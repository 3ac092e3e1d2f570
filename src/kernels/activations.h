/* tanh and sigmoid, branch-free, within 2 ULP in both precisions (measured: tests/test_activations.py).
 *
 * Both stand on exp(t) = 2^n (1 + y) with y = expm1(r), r = t - n ln 2, |r| <= ln(2)/2. Keeping y apart
 * from the 1 is what saves the accuracy: 1 + exp(t) = (1 + 2^n) + 2^n y is then rounded once, and tanh
 * of a small argument is y itself, without cancellation.
 */
#include "coefficients.h"

#if defined(REAL_F32)
/* ln 2 in two parts; n times the first is exact. */
#define LN2_HIGH 0x1.63p-1f
#define LN2_LOW -0x1.bd0106p-13f
#define INV_LN2 0x1.715476p+0f
/* Adding this leaves round(x) plus the exponent's bias in the low bits. */
#define ROUND_MAGIC (0x1.8p+23f + 127.0f)
#define MANTISSA_BITS 23
/* sigmoid(x) is below the smallest normal number, and returned as zero, for -x beyond this. */
#define SIGMOID_ZERO 0x1.5d589ep+6f
/* Beyond these the results do not change. */
#define TANH_LIMIT 20.0f
#define SIGMOID_LIMIT 88.0f
#else
#define LN2_HIGH 0x1.62e42fee00000p-1
#define LN2_LOW 0x1.a39ef35793c76p-33
#define INV_LN2 0x1.71547652b82fep+0
#define ROUND_MAGIC (0x1.8p+52 + 1023.0)
#define MANTISSA_BITS 52
#define SIGMOID_ZERO 0x1.6232bdd7abcd2p+9
#define TANH_LIMIT 40.0
#define SIGMOID_LIMIT 708.5
#endif

#define expm1_parts NAME(expm1_parts_)
#define v_tanh NAME(v_tanh_)
#define v_sigmoid NAME(v_sigmoid_)
#define d_tanh NAME(d_tanh_)
#define d_sigmoid NAME(d_sigmoid_)

/* exp(t) = scale * (1 + y), |t| <= SIGMOID_LIMIT */
INLINE V expm1_parts(V t, V *scale)
{
    static const real p[] = NAME(EXPM1_P_);
    V n_biased = v_fma(t, v_set(INV_LN2), v_set(ROUND_MAGIC));
    V n = n_biased - v_set(ROUND_MAGIC);
    *scale = v_real(v_bits(n_biased) << MANTISSA_BITS);
    V r = v_fma(n, v_set(-LN2_HIGH), t);
    r = v_fma(n, v_set(-LN2_LOW), r);
    V sum = v_set(p[NAME(EXPM1_TERMS_) - 1]);
#pragma GCC unroll 16
    for (int k = NAME(EXPM1_TERMS_) - 2; k >= 0; k--)
        sum = v_fma(sum, r, v_set(p[k]));
    return v_fma(r * r, sum, r);
}

/* tanh(x) = sign(x) (1 - e) / (1 + e),  e = exp(-2|x|)
 * What rounding took from dividend and divisor (scale*y is exact, so both are known) is put back to
 * first order; for that 1/below, 1 <= below <= 2, need only be right to a few percent. */
INLINE V v_tanh(V x)
{
    VI sign = v_bits(x) & v_bits(v_set((real)-0.0));
    V t = v_max(v_set(-2 * TANH_LIMIT), v_real(v_bits(x) | v_bits(v_set((real)-0.0))) * 2), scale;
    V y = expm1_parts(t, &scale);
    V above = v_fma(-scale, y, 1 - scale), above_lost = v_fma(-scale, y, 1 - scale - above);
    V below = v_fma(scale, y, 1 + scale), below_lost = v_fma(scale, y, 1 + scale - below);
    V quotient = above / below;
    V correction = v_fma(-quotient, below_lost, above_lost);
    V inverse = v_fma(v_set((real)-0.5), below, v_set((real)1.457));
    return v_real(v_bits(v_fma(correction, inverse, quotient)) | sign);
}

/* sigmoid(x) = 1 / (1 + exp(-x))
 * Where 1 + scale is inexact (x < -16 in single precision), what it lost goes to y, which has room. */
INLINE V v_sigmoid(V x)
{
    V t = v_max(v_set(-SIGMOID_LIMIT), v_min(v_set(SIGMOID_LIMIT), -x)), scale;
    V y = expm1_parts(t, &scale);
    V sum = 1 + scale, lost = 1 - (sum - scale);
    V inverse_scale = v_real(2 * v_bits(v_set(1)) - v_bits(scale));
    V s = 1 / v_fma(scale, v_fma(lost, inverse_scale, y), sum);
    return v_real(v_bits(s) & ~(-x > v_set(SIGMOID_ZERO)));
}

/* Derivatives by the output. 1 - y^2 as a product keeps its accuracy where y is near one. */
INLINE V d_tanh(V y) { return (1 - y) * (1 + y); }
INLINE V d_sigmoid(V y) { return y * (1 - y); }
