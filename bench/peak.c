/* The limits of one core: independent multiply-adds in registers, and reading memory of a given size.
 * Compiled and called by peak.py, which takes the time. */
#include <stddef.h>

#ifdef __AVX512F__
#define BYTES 64
#define CHAINS 24
#elif defined(__AVX__)
#define BYTES 32
#define CHAINS 12
#else
#define BYTES 16
#define CHAINS 24
#endif
typedef float F __attribute__((vector_size(BYTES)));
typedef double D __attribute__((vector_size(BYTES)));
#define KEEP(x) __asm__ volatile("" : "+" REGISTER(x))
#if defined(__x86_64__)
#define REGISTER(x) "x"(x)
#else
#define REGISTER(x) "w"(x)
#endif

/* Returns the floating-point operations done. */
#define DEFINE_FMA(NAME, V)                                                                                  \
    size_t NAME(size_t repeats)                                                                              \
    {                                                                                                        \
        V sum[CHAINS] = {{0}}, a = {0}, b = {0};                                                             \
        KEEP(a);                                                                                             \
        KEEP(b);                                                                                             \
        for (int j = 0; j < CHAINS; j++) /* or the compiler sees that all chains are the same */             \
            KEEP(sum[j]);                                                                                    \
        for (size_t k = 0; k < repeats; k++)                                                                 \
            _Pragma("GCC unroll 24") for (int j = 0; j < CHAINS; j++) sum[j] = sum[j] * a + b;               \
        for (int j = 0; j < CHAINS; j++)                                                                     \
            KEEP(sum[j]);                                                                                    \
        return repeats * CHAINS * 2 * sizeof(V) / sizeof(a[0]);                                              \
    }
DEFINE_FMA(fma_f32, F)
DEFINE_FMA(fma_f64, D)

/* Read `size` bytes, a multiple of 512, from an aligned address, `repeats` times. */
void read_bytes(const char *p, size_t size, size_t repeats)
{
    for (size_t k = 0; k < repeats; k++)
        for (size_t i = 0; i < size; i += 8 * BYTES)
            _Pragma("GCC unroll 8") for (int j = 0; j < 8; j++)
            {
                F x = *(const F *)(p + i + j * BYTES);
                KEEP(x);
            }
}
