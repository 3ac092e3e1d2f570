/* Which instruction sets this processor has, the engine in use, the shapes of the cells, a clock. */
#include "dispatch.h"
#include "fastrnn.h"
#include <time.h>

#define ISA(NAME, BYTES) {#NAME, BYTES / 4, {&fastrnn_##NAME##_f32, &fastrnn_##NAME##_f64}}
#define DECLARE(NAME) extern const fastrnn_table fastrnn_##NAME##_f32, fastrnn_##NAME##_f64
DECLARE(baseline);
#if defined(FASTRNN_HAVE_X86)
DECLARE(x86_v3);
DECLARE(x86_v4);
#elif defined(FASTRNN_HAVE_NEON)
DECLARE(neon); /* of every 64-bit ARM processor */
#endif

#define SHAPE(NAME, ...) {#NAME, __VA_ARGS__},
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
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("fma"))
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

/* ---- the engine in use ------------------------------------------------------------------------------ */

static struct {
    const fastrnn_isa *isa;
    const fastrnn_backend *backend;
    int threads;
} current = {.threads = 1};

const fastrnn_isa *fastrnn_current_isa(void) { return current.isa; }
const fastrnn_backend *fastrnn_current_backend(void) { return current.backend; }
int fastrnn_is_fused(void) { return current.isa && !current.backend && current.isa->table[0]->run_forward; }

void fastrnn_use(const fastrnn_isa *isa, const fastrnn_backend *backend)
{
    current.isa = isa;
    current.backend = backend;
}

int fastrnn_most_threads(void) { return current.threads; }

int fastrnn_use_threads(int most)
{
    const int before = current.threads;
    current.threads = most;
    return before;
}

/* Without a choice, the widest instruction set there is. */
__attribute__((constructor)) static void choose_widest(void)
{
    const fastrnn_isa *there[FASTRNN_MOST_ISAS];
    current.isa = there[fastrnn_available_isas(there) - 1];
}

int fastrnn_abi(void) { return FASTRNN_ABI; }
const char *fastrnn_engine(void) { return current.isa->name; }
