/* Which instruction sets this processor has, the shapes of the cells, a clock. */
#include "dispatch.h"
#include "fastrnn.h"
#include <time.h>

#define ISA(NAME, BYTES)                                                   \
    {                                                                      \
#NAME, BYTES / 4, { &fastrnn_##NAME##_f32, &fastrnn_##NAME##_f64 } \
    }
#define DECLARE(NAME) extern const fastrnn_table fastrnn_##NAME##_f32, fastrnn_##NAME##_f64
DECLARE(baseline);
#if defined(FASTRNN_HAVE_X86)
DECLARE(x86_v3);
DECLARE(x86_v4);
#elif defined(FASTRNN_HAVE_NEON)
DECLARE(neon); /* of every 64-bit ARM processor */
#endif

#define SHAPE(NAME, ...) {#NAME, __VA_ARGS__},
/* What the arrays of a unit have room for, and what loops take for granted. */
#define CHECK_CELL(NAME, GATES, A, INPUT, HIDDEN, KEPT, INNER, VECTORS, PROJECTS, HAS_RESET, STAGES)                \
    _Static_assert(GATES <= FASTRNN_MOST_BLOCKS && A <= FASTRNN_MOST_BLOCKS && KEPT <= FASTRNN_MOST_BLOCKS, #NAME); \
    _Static_assert(INNER <= FASTRNN_MOST_INNER && VECTORS <= FASTRNN_MOST_VECTORS, #NAME);                          \
    _Static_assert(!PROJECTS || (KEPT && HIDDEN), #NAME ": backward of a projection reads no h");                   \
    _Static_assert(!HAS_RESET || (KEPT == 3 && VECTORS == 0), #NAME ": the reset stage has rows of r, z, n");
FASTRNN_CELL_LIST(CHECK_CELL)

const fastrnn_cell_shape fastrnn_cell_shapes[FASTRNN_CELLS] = {FASTRNN_CELL_LIST(SHAPE)};

int fastrnn_available_isas(const fastrnn_isa *out[FASTRNN_MOST_ISAS])
{
    static const fastrnn_isa baseline = ISA(baseline, 16);
    int count = 0;
    out[count++] = &baseline;
#if defined(FASTRNN_HAVE_X86)
    static const fastrnn_isa x86_v3 = ISA(x86_v3, 32), x86_v4 = ISA(x86_v4, 64);
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        out[count++] = &x86_v3;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
        out[count++] = &x86_v4;
#elif defined(FASTRNN_HAVE_NEON)
    static const fastrnn_isa neon = ISA(neon, 16);
    out[count++] = &neon;
#endif
    return count;
}

double fastrnn_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

int fastrnn_abi(void) { return FASTRNN_ABI; }
