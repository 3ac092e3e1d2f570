/* The settings of the process: the engine in use and the most threads of a call. The environment sets both when the
 * library is loaded, so that programs in C and every binding of one process have the same. */
#if defined(__linux__)
#define _GNU_SOURCE
#include <sched.h>
#endif
#include "checks.h"
#include "dispatch.h"
#include "fastrnn.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MOST_ENGINES = FASTRNN_MOST_ISAS + 1 };

typedef struct {
    const char *name;
    const fastrnn_isa *isa; /* whose kernels it runs */
    int fused;              /* whether its products are its own, not those of the back end */
} engine_t;

static engine_t engines[MOST_ENGINES]; /* the default last */
static int engine_count;

static _Atomic(const fastrnn_backend *) registered;
static _Atomic(const engine_t *) in_use; /* NULL: none that the environment asks for */
static atomic_int most_threads;          /* 0: the environment asks for what cannot be */

/* What the environment says, as it was at the load. */
static struct {
    char engine[64], threads[64];
} given;

/* ---- the engine ------------------------------------------------------------------------------------- */

static int is_there(const engine_t *engine) { return engine->fused || atomic_load(&registered); }

/* NULL: there is none of that name; without a name, the default. */
static const engine_t *find_engine(const char *name)
{
    for (int k = engine_count - 1; k >= 0; k--)
        if (is_there(&engines[k]) && (!*name || !strcmp(name, engines[k].name)))
            return &engines[k];
    return NULL;
}

/* Where there are fused kernels, they come last, the widest at the end; without any, the back end does. */
static void list_engines(void)
{
    const fastrnn_isa *isas[FASTRNN_MOST_ISAS];
    const int count = fastrnn_available_isas(isas);
    const engine_t blas = {"blas", isas[count - 1], 0};
    if (count > 1)
        engines[engine_count++] = blas;
    for (int k = 0; k < count; k++)
        engines[engine_count++] = (engine_t){isas[k]->name, isas[k], isas[k]->table[0]->run_forward != NULL};
    if (count == 1)
        engines[engine_count++] = blas;
}

void fastrnn_register_backend(const fastrnn_backend *backend)
{
    FASTRNN_ASSERT(backend);
    atomic_store(&registered, backend);
    if (!atomic_load(&in_use)) /* the environment may ask for what is there only now */
        atomic_store(&in_use, find_engine(given.engine));
}

static const engine_t *current(void)
{
    const engine_t *engine = atomic_load_explicit(&in_use, memory_order_acquire);
    FASTRNN_ASSERT(engine); /* there are no stacks without */
    return engine;
}

const fastrnn_isa *fastrnn_current_isa(void) { return current()->isa; }
int fastrnn_is_fused(void) { return current()->fused; }
const fastrnn_backend *fastrnn_current_backend(void) { return fastrnn_is_fused() ? NULL : atomic_load(&registered); }

const char *fastrnn_engine(void)
{
    const engine_t *engine = atomic_load(&in_use);
    return engine ? engine->name : NULL;
}

int fastrnn_engines(const char *names[], int most)
{
    int count = 0;
    for (int k = 0; k < engine_count; k++) {
        if (!is_there(&engines[k]))
            continue;
        if (count < most)
            names[count] = engines[k].name;
        count++;
    }
    return count;
}

fastrnn_status fastrnn_use_engine(const char *name)
{
    const engine_t *engine = name && *name ? find_engine(name) : NULL;
    if (!engine)
        return FASTRNN_INVALID;
    atomic_store(&in_use, engine);
    return FASTRNN_OK;
}

/* ---- threads ---------------------------------------------------------------------------------------- */

/* The cores that this process may run on. */
static int count_cores(void)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
#if defined(__linux__)
    for (int most = CPU_SETSIZE; most <= 1 << 20; most *= 2) { /* the kernel may know of more cores than a set holds */
        cpu_set_t *set = CPU_ALLOC((size_t)most);
        const size_t size = CPU_ALLOC_SIZE((size_t)most);
        if (!set)
            break;
        const int failed = sched_getaffinity(0, size, set), too_small = failed && errno == EINVAL;
        if (!failed)
            cores = CPU_COUNT_S(size, set);
        CPU_FREE(set);
        if (!too_small)
            break;
    }
#endif
    if (cores > FASTRNN_MOST_THREADS)
        return FASTRNN_MOST_THREADS;
    return cores < 1 ? 1 : (int)cores;
}

/* 0: no number of threads. */
static int read_threads(const char *text)
{
    char *end;
    const long n = strtol(text, &end, 10);
    const int whole = end != text && !end[strspn(end, " \t\n\r")];
    return whole && n >= 1 && n <= FASTRNN_MOST_THREADS ? (int)n : 0;
}

fastrnn_status fastrnn_set_threads(int most)
{
    if (most < 1 || most > FASTRNN_MOST_THREADS)
        return FASTRNN_INVALID;
    atomic_store(&most_threads, most);
    return FASTRNN_OK;
}

int fastrnn_get_threads(void) { return atomic_load_explicit(&most_threads, memory_order_relaxed); }

/* ---- the environment -------------------------------------------------------------------------------- */

static void copy_variable(const char *name, char to[64])
{
    const char *value = getenv(name);
    snprintf(to, 64, "%s", value ? value : "");
}

__attribute__((constructor)) static void read_environment(void)
{
    copy_variable("FASTRNN_ISA", given.engine);
    copy_variable("FASTRNN_NUM_THREADS", given.threads);
    list_engines();
    atomic_store(&in_use, find_engine(given.engine));
    atomic_store(&most_threads, *given.threads ? read_threads(given.threads) : count_cores());
}

static fastrnn_status list_wrong_engine(char error[256])
{
    const char *names[MOST_ENGINES] = {"no engine"};
    const int count = fastrnn_engines(names, MOST_ENGINES);
    size_t used = 0;
    if (*given.engine)
        used += (size_t)snprintf(error, 256, "FASTRNN_ISA is '%s'; ", given.engine);
    used += (size_t)snprintf(error + used, 256 - used, "this machine has %s", names[0]);
    for (int k = 1; k < count; k++)
        used += (size_t)snprintf(error + used, 256 - used, ", %s", names[k]);
    return *given.engine ? FASTRNN_INVALID : FASTRNN_UNSUPPORTED;
}

fastrnn_status fastrnn_check_settings(char error[256])
{
    if (!atomic_load(&in_use))
        return list_wrong_engine(error);
    if (fastrnn_get_threads())
        return FASTRNN_OK;
    snprintf(error, 256, "FASTRNN_NUM_THREADS is '%s', expected an integer from 1 to %d", given.threads,
             FASTRNN_MOST_THREADS);
    return FASTRNN_INVALID;
}
