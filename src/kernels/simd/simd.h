/* The vector vocabulary of the kernels, for one instruction set and one precision (variant.c).
 *
 * Arithmetic uses the compiler's vector operators. Only what they cannot express is written for each instruction set:
 * FMA, minimum, masked loads and stores.
 *
 *   real, V, VI        a number, a vector of LANES numbers, a vector of LANES integers of the same size
 *   v_set(x)           x in all lanes           v_bits / v_real   reinterpret V as VI and back
 *   v_fma(a, b, c)     a*b + c, rounded once where FASTRNN_FUSED is defined
 *   v_min(limit, x)    the smaller of the two, x where x is NaN; v_max alike
 *   v_load(p, m)       the first m lanes, zero in the others; one plain load if m == LANES
 *   v_store(p, m, x)   the first m lanes
 */
#ifndef FASTRNN_SIMD_H
#define FASTRNN_SIMD_H
#include <string.h>
#if defined(FASTRNN_X86_V3) || defined(FASTRNN_X86_V4)
#include <immintrin.h>
#define FASTRNN_FUSED /* the instruction set has FMA: variant.c compiles the fused engine */
#elif defined(FASTRNN_NEON)
#include <arm_neon.h>
#define FASTRNN_FUSED
#elif defined(FASTRNN_WIDE) /* tests/native: vectors and tiles of x86_v4 for any compiler and processor */
#define FASTRNN_FUSED
#endif
/* Load x into a register once. Otherwise gcc makes the load a memory operand of every instruction that uses x. */
#if defined(FASTRNN_X86_V4)
#define V_IN_REGISTER(x) __asm__("" : "+v"(x))
#elif defined(FASTRNN_X86_V3)
#define V_IN_REGISTER(x) __asm__("" : "+x"(x))
#else
#define V_IN_REGISTER(x) (void)0
#endif
#define INLINE static inline __attribute__((always_inline, unused))
#define UNROLL _Pragma("GCC unroll 32")
#if defined(FASTRNN_X86_V4) || defined(FASTRNN_WIDE)
#define VECTOR_BYTES 64
#elif defined(FASTRNN_X86_V3)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
#endif

#if defined(REAL_F32)
#define real float
#define real_int int32_t
#define V v_f32
#define VI vi_f32
#define VU vu_f32
#define SUFFIX f32
#elif defined(REAL_F64)
#define real double
#define real_int int64_t
#define V v_f64
#define VI vi_f64
#define VU vu_f64
#define SUFFIX f64
#else
#error "set REAL_F32 or REAL_F64"
#endif

#define LANES ((fastrnn_size)(VECTOR_BYTES / sizeof(real)))
#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)

typedef real V __attribute__((vector_size(VECTOR_BYTES)));
typedef real_int VI __attribute__((vector_size(VECTOR_BYTES)));
/* The same without alignment, for the caller's memory. */
typedef real VU __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(real)), may_alias));

#define v_bits(x) ((VI)(x))
#define v_real(x) ((V)(x))

INLINE fastrnn_size least(fastrnn_size a, fastrnn_size b) { return a < b ? a : b; }
INLINE fastrnn_size greatest(fastrnn_size a, fastrnn_size b) { return a > b ? a : b; }

INLINE V v_set(real x) { return x - (V){0}; }

INLINE V v_select(VI mask, V yes, V no) { return v_real((mask & v_bits(yes)) | (~mask & v_bits(no))); }

#if defined(FASTRNN_X86_V4) && defined(REAL_F32)
INLINE V v_fma(V a, V b, V c) { return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE V v_min(V limit, V x) { return (V)_mm512_min_ps((__m512)limit, (__m512)x); }
INLINE V v_max(V limit, V x) { return (V)_mm512_max_ps((__m512)limit, (__m512)x); }
#define PART(m) ((__mmask16)((1u << (m)) - 1))
#define V_LOAD_PART(p, m) ((V)_mm512_maskz_loadu_ps(PART(m), p))
#define V_STORE_PART(p, m, x) _mm512_mask_storeu_ps(p, PART(m), (__m512)(x))
#elif defined(FASTRNN_X86_V4)
INLINE V v_fma(V a, V b, V c) { return (V)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c); }
INLINE V v_min(V limit, V x) { return (V)_mm512_min_pd((__m512d)limit, (__m512d)x); }
INLINE V v_max(V limit, V x) { return (V)_mm512_max_pd((__m512d)limit, (__m512d)x); }
#define PART(m) ((__mmask8)((1u << (m)) - 1))
#define V_LOAD_PART(p, m) ((V)_mm512_maskz_loadu_pd(PART(m), p))
#define V_STORE_PART(p, m, x) _mm512_mask_storeu_pd(p, PART(m), (__m512d)(x))
#elif defined(FASTRNN_X86_V3) && defined(REAL_F32)
INLINE V v_fma(V a, V b, V c) { return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE V v_min(V limit, V x) { return (V)_mm256_min_ps((__m256)limit, (__m256)x); }
INLINE V v_max(V limit, V x) { return (V)_mm256_max_ps((__m256)limit, (__m256)x); }
#define PART(m) ((__m256i)((VI){0, 1, 2, 3, 4, 5, 6, 7} < (real_int)(m)))
#define V_LOAD_PART(p, m) ((V)_mm256_maskload_ps(p, PART(m)))
#define V_STORE_PART(p, m, x) _mm256_maskstore_ps(p, PART(m), (__m256)(x))
#elif defined(FASTRNN_X86_V3)
INLINE V v_fma(V a, V b, V c) { return (V)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c); }
INLINE V v_min(V limit, V x) { return (V)_mm256_min_pd((__m256d)limit, (__m256d)x); }
INLINE V v_max(V limit, V x) { return (V)_mm256_max_pd((__m256d)limit, (__m256d)x); }
#define PART(m) ((__m256i)((VI){0, 1, 2, 3} < (real_int)(m)))
#define V_LOAD_PART(p, m) ((V)_mm256_maskload_pd(p, PART(m)))
#define V_STORE_PART(p, m, x) _mm256_maskstore_pd(p, PART(m), (__m256d)(x))
#elif defined(FASTRNN_NEON) && defined(REAL_F32)
INLINE V v_fma(V a, V b, V c) { return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#elif defined(FASTRNN_NEON)
INLINE V v_fma(V a, V b, V c) { return (V)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b); }
#elif defined(FASTRNN_WIDE)
INLINE V v_fma(V a, V b, V c)
{
    for (fastrnn_size k = 0; k < LANES; k++)
        c[k] = sizeof(real) == 4 ? (real)__builtin_fmaf(a[k], b[k], c[k]) : (real)__builtin_fma(a[k], b[k], c[k]);
    return c;
}
#else
INLINE V v_fma(V a, V b, V c) { return a * b + c; }
#endif
#ifndef V_LOAD_PART
INLINE V v_min(V limit, V x) { return v_select(x > limit, limit, x); }
INLINE V v_max(V limit, V x) { return v_select(x < limit, limit, x); }
#endif

INLINE V v_load(const real *p, fastrnn_size m)
{
    if (m == LANES)
        return (V) * (const VU *)p;
#ifdef V_LOAD_PART
    return V_LOAD_PART(p, m);
#else
    V x = {0};
    memcpy(&x, p, (size_t)m * sizeof(real));
    return x;
#endif
}

INLINE void v_store(real *p, fastrnn_size m, V x)
{
    if (m == LANES) {
        *(VU *)p = (VU)x;
        return;
    }
#ifdef V_STORE_PART
    V_STORE_PART(p, m, x);
#else
    memcpy(p, &x, (size_t)m * sizeof(real));
#endif
}
