/* Which instruction sets this processor has, the shapes of the cells, a clock. */
#include "kernels.h"
#include <time.h>

extern const fastrnn_isa fastrnn_isa_baseline;
#if defined(FASTRNN_HAVE_X86)
extern const fastrnn_isa fastrnn_isa_x86_v3, fastrnn_isa_x86_v4;
#elif defined(FASTRNN_HAVE_NEON)
extern const fastrnn_isa fastrnn_isa_neon; /* of every 64-bit ARM processor */
#endif

#define SHAPE(NAME, ...) {#NAME, __VA_ARGS__},
const fastrnn_cell_shape fastrnn_cell_shapes[FASTRNN_CELLS] = {FASTRNN_CELL_LIST(SHAPE)};

int fastrnn_available_isas(const fastrnn_isa *out[FASTRNN_MOST_ISAS])
{
    int count = 0;
    out[count++] = &fastrnn_isa_baseline;
#if defined(FASTRNN_HAVE_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        out[count++] = &fastrnn_isa_x86_v3;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("fma"))
        out[count++] = &fastrnn_isa_x86_v4;
#elif defined(FASTRNN_HAVE_NEON)
    out[count++] = &fastrnn_isa_neon;
#endif
    return count;
}

double fastrnn_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}
