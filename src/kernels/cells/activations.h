/* tanh and sigmoid, branch-free, within 2 ULP in both precisions (measured: tests/test_activations.py).
 *
 * Both are built on exp(t) = 2^n (1 + y), with y = expm1(r), r = t - n ln 2, |r| <= ln(2)/2. The 1 and y stay apart for
 * accuracy: 1 + exp(t) = (1 + 2^n) + 2^n y is rounded once, and tanh of a small argument comes from y without
 * cancellation.
 */
#include "coefficients.h"

#if defined(REAL_F32)
/* ln 2 in two parts; n times the first is exact. */
#define LN2_HIGH 0x1.63p-1f
#define LN2_LOW -0x1.bd0106p-13f
#define INV_LN2 0x1.715476p+0f
/* x + ROUND_MAGIC has round(x), plus the bias of the exponent, in its low bits. */
#define ROUND_MAGIC (0x1.8p+23f + 127.0f)
#define MANTISSA_BITS 23
/* Results do not change beyond these arguments: tanh is 1, and sigmoid(-limit) is below the smallest normal number,
 * which is flushed to zero. */
#define TANH_LIMIT 20.0f
#define SIGMOID_LIMIT 88.0f
#else
#define LN2_HIGH 0x1.62e42fee00000p-1
#define LN2_LOW 0x1.a39ef35793c76p-33
#define INV_LN2 0x1.71547652b82fep+0
#define ROUND_MAGIC (0x1.8p+52 + 1023.0)
#define MANTISSA_BITS 52
#define TANH_LIMIT 40.0
#define SIGMOID_LIMIT 708.5
#endif

/* exp(unit x) = scale (1 + y). Returns y; sum = 1 + scale; y_lost is the rounding error of y.
 * |unit x| <= SIGMOID_LIMIT, and unit is a power of two, of either sign.
 *
 * The polynomial is evaluated in pairs of terms (Horner's rule in r^2), which halves the chain of dependent operations:
 * a step of a small layer waits for that chain. Powers of `unit` go into the coefficients, which is exact.
 *
 * `large`: scale may be so large that 1 + scale is rounded; y then includes the rounding error. Without `large`, n is
 * small wherever exp(unit x) still matters, so in single precision one product with ln 2 is accurate enough. */
INLINE V exp_parts(V x, const real unit, const int large, V *scale, V *sum, V *y_lost)
{
    static const real p[] = PASTE(EXPM1_P_, SUFFIX);
    const int terms = PASTE(EXPM1_TERMS_, SUFFIX);
    V n_biased = v_fma(x, v_set(unit * INV_LN2), v_set(ROUND_MAGIC));
    V n = n_biased - v_set(ROUND_MAGIC), r;
    *scale = v_real(v_bits(n_biased) << MANTISSA_BITS);
    *sum = 1 + *scale;
    if (large || sizeof(real) == 8)
        r = v_fma(n, v_set(-LN2_LOW / unit), v_fma(n, v_set(-LN2_HIGH / unit), x));
    else
        r = v_fma(n, v_set(-(LN2_HIGH + LN2_LOW) / unit), x);
    V first = unit * r, r2 = r * r, sums = v_set(0);
    if (large) {
        V inverse_scale = v_real(2 * v_bits(v_set(1)) - v_bits(*scale));
        first = v_fma(1 - (*sum - *scale), inverse_scale, first);
    }
    /* clang-format off */
    UNROLL for (int k = (terms - 1) / 2 * 2; k >= 0; k -= 2) {
        const real power = (real)__builtin_powi(unit, k + 2);
        V pair = v_set(power * p[k]);
        if (k + 1 < terms)
            pair = v_fma(r, v_set(power * unit * p[k + 1]), pair);
        sums = k + 2 < terms ? v_fma(r2, sums, pair) : pair;
    }
    /* clang-format on */
    V y = v_fma(r2, sums, first);
    *y_lost = v_fma(r2, sums, first - y);
    return y;
}

/* tanh(x) = sign(x) (1 - e) / (1 + e),  e = exp(-2|x|)
 *
 * Double precision adds a first-order correction for the rounding errors of dividend and divisor. An FMA computes these
 * errors exactly, because it does not round scale*y. The correction needs 1/below (1 <= below <= 2) to a few percent
 * only: a line serves. */
INLINE V v_tanh(V x)
{
    const V sign = v_set((real)-0.0);
    V t = v_max(v_set(-TANH_LIMIT), v_real(v_bits(x) | v_bits(sign))), scale, sum, y_lost;
    V y = exp_parts(t, 2, 0, &scale, &sum, &y_lost);
    V above = v_fma(-scale, y, 1 - scale), below = v_fma(scale, y, sum), quotient = above / below;
    if (sizeof(real) == 8) {
        V above_lost = v_fma(-scale, y_lost, v_fma(-scale, y, 1 - scale - above));
        V below_lost = v_fma(scale, y_lost, v_fma(scale, y, sum - below));
        V inverse = v_fma(v_set((real)-0.5), below, v_set((real)1.457));
        quotient = v_fma(v_fma(-quotient, below_lost, above_lost), inverse, quotient);
    }
    return v_real(v_bits(quotient) | (v_bits(x) & v_bits(sign)));
}

/* sigmoid(x) = 1 / (1 + exp(-x))
 *
 * Results below the smallest normal number are zero, because kernels run with denormals flushed. Processors differ
 * in whether they round before they flush, but no quotient here is so close to the smallest normal number that it
 * shows. */
INLINE V v_sigmoid(V x)
{
    V bounded = v_max(v_set(-SIGMOID_LIMIT), v_min(v_set(SIGMOID_LIMIT), x)), scale, sum, unused;
    V y = exp_parts(bounded, -1, 1, &scale, &sum, &unused);
    return 1 / v_fma(scale, y, sum);
}

/* Derivatives as functions of the output. (1 - y)(1 + y) is accurate near y = 1, where 1 - y^2 cancels. */
INLINE V d_tanh(V y) { return (1 - y) * (1 + y); }
INLINE V d_sigmoid(V y) { return y * (1 - y); }
