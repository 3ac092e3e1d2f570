/* The pool. Its workers spin for some microseconds after a call, because the next often follows at once,
 * then sleep. A process that forks leaves the pool to the parent: the child starts one of its own. */
#define _GNU_SOURCE
#include "threads.h"
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>

#if defined(__x86_64__) || defined(__i386__)
#include <xmmintrin.h>
#define PAUSE() _mm_pause()
#elif defined(__aarch64__)
#define PAUSE() __asm__ volatile("yield")
#else
#define PAUSE() ((void)0)
#endif

#if defined(__x86_64__)
uint64_t fastrnn_flush_denormals(void)
{
    unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040); /* flush to zero, denormals are zero */
    return mode;
}
void fastrnn_restore_mode(uint64_t mode) { _mm_setcsr((unsigned)mode); }
#elif defined(__aarch64__)
uint64_t fastrnn_flush_denormals(void)
{
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    __asm__ volatile("msr fpcr, %0" : : "r"(mode | (UINT64_C(1) << 24)));
    return mode;
}
void fastrnn_restore_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
uint64_t fastrnn_flush_denormals(void) { return 0; }
void fastrnn_restore_mode(uint64_t mode) { (void)mode; }
#endif

enum {
    MOST_THREADS = 256,
    BARRIER_SPINS = 500, /* some microseconds, then let others run: a member may have lost its core */
    IDLE_SPINS = 1000     /* some ten microseconds, then sleep */
};

struct fastrnn_team {
    atomic_int arrived;
    atomic_uint phase;
};

static struct {
    pthread_mutex_t in_use; /* held by the call that has the pool */
    pthread_mutex_t lock;   /* of what the workers sleep on */
    pthread_cond_t wake;
    atomic_uint call;     /* counts calls; a worker works once for each */
    atomic_int unfinished; /* members of the present call, less the caller */
    int workers, size;
    unsigned seen[MOST_THREADS]; /* by worker: the last call before it was made */
    void (*work)(void *context, fastrnn_member me);
    void *context;
    fastrnn_team team;
} pool = {.in_use = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

void fastrnn_barrier(fastrnn_member me)
{
    if (me.size == 1)
        return;
    fastrnn_team *team = me.team;
    const unsigned phase = atomic_load_explicit(&team->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == me.size - 1) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team->phase, phase + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&team->phase, memory_order_acquire) == phase; spins++) {
        if (spins < BARRIER_SPINS)
            PAUSE();
        else
            sched_yield();
    }
}

static void take_part(int rank)
{
    const uint64_t mode = fastrnn_flush_denormals();
    pool.work(pool.context, (fastrnn_member){rank, pool.size, &pool.team});
    fastrnn_restore_mode(mode);
}

static void *worker(void *argument)
{
    const int rank = (int)(intptr_t)argument;
    unsigned seen = pool.seen[rank];
    for (;;) {
        for (int spins = 0; spins < IDLE_SPINS && atomic_load_explicit(&pool.call, memory_order_acquire) == seen;
             spins++)
            PAUSE();
        if (atomic_load(&pool.call) == seen) {
            pthread_mutex_lock(&pool.lock);
            while (atomic_load(&pool.call) == seen)
                pthread_cond_wait(&pool.wake, &pool.lock);
            pthread_mutex_unlock(&pool.lock);
        }
        seen = atomic_load(&pool.call);
        if (rank < pool.size)
            take_part(rank);
        atomic_fetch_sub_explicit(&pool.unfinished, 1, memory_order_acq_rel);
    }
    return NULL;
}

static void forget_pool(void) /* in the child of a fork, which has none of the workers */
{
    pthread_mutex_init(&pool.in_use, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pool.workers = 0;
    atomic_store(&pool.unfinished, 0);
    atomic_store(&pool.team.arrived, 0);
}

static void watch_for_fork(void) { pthread_atfork(NULL, NULL, forget_pool); }

static int start_worker(int rank)
{
    pthread_t thread;
    pthread_attr_t attributes;
    pool.seen[rank] = atomic_load(&pool.call);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    const int failed = pthread_create(&thread, &attributes, worker, (void *)(intptr_t)rank);
    pthread_attr_destroy(&attributes);
    return !failed;
}

static void alone(void (*work)(void *context, fastrnn_member me), void *context)
{
    const uint64_t mode = fastrnn_flush_denormals();
    work(context, (fastrnn_member){0, 1, NULL});
    fastrnn_restore_mode(mode);
}

void fastrnn_parallel(int threads, void (*work)(void *context, fastrnn_member me), void *context)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    if (threads < 2 || pthread_mutex_trylock(&pool.in_use)) {
        alone(work, context);
        return;
    }
    pthread_once(&once, watch_for_fork);
    threads = threads < MOST_THREADS ? threads : MOST_THREADS;
    while (pool.workers < threads - 1 && start_worker(pool.workers + 1))
        pool.workers++;
    if (pool.workers == 0) {
        pthread_mutex_unlock(&pool.in_use);
        alone(work, context);
        return;
    }
    pool.size = threads <= pool.workers ? threads : pool.workers + 1;
    pool.work = work;
    pool.context = context;
    atomic_store(&pool.unfinished, pool.workers);
    pthread_mutex_lock(&pool.lock);
    atomic_fetch_add(&pool.call, 1);
    pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    take_part(0);
    for (int spins = 0; atomic_load_explicit(&pool.unfinished, memory_order_acquire) > 0; spins++) {
        if (spins < BARRIER_SPINS)
            PAUSE();
        else
            sched_yield();
    }
    pthread_mutex_unlock(&pool.in_use);
}
