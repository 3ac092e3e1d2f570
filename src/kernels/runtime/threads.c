/* The pool. A call wakes as many workers as it wants, and no others. A worker spins for some microseconds after a call,
 * because the next often follows at once, then sleeps. The child of a fork has no workers: it begins a pool of its own,
 * and a call that the fork cut in two unwinds there. */
#define _GNU_SOURCE
#include "threads.h"
#include "checks.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
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
enum { FLUSH = 0x8040 }; /* flush to zero, denormals are zero */
uint64_t fastrnn_current_mode(void) { return _mm_getcsr(); }
void fastrnn_restore_mode(uint64_t mode) { _mm_setcsr((unsigned)mode); }
#elif defined(__aarch64__)
enum { FLUSH = 1 << 24 };
uint64_t fastrnn_current_mode(void)
{
    uint64_t mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
void fastrnn_restore_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
enum { FLUSH = 0 };
uint64_t fastrnn_current_mode(void) { return 0; }
void fastrnn_restore_mode(uint64_t mode) { (void)mode; }
#endif

uint64_t fastrnn_flush_denormals(void)
{
    const uint64_t mode = fastrnn_current_mode();
    fastrnn_restore_mode(mode | FLUSH);
    return mode;
}

enum {
    BARRIER_SPINS = 500, /* some microseconds, then let others run: a member may have lost its core */
    IDLE_SPINS = 1000    /* some ten microseconds, then sleep */
};

/* A worker's own place, so that one can be woken alone. */
typedef struct {
    _Alignas(64) atomic_uint ticket; /* counts the calls that want this worker */
    atomic_int asleep;
    unsigned first; /* the ticket when the worker was made */
    pthread_mutex_t lock;
    pthread_cond_t wake;
} seat_t;

static struct {
    pthread_mutex_t in_use; /* held by the call that has the pool */
    atomic_uint generation; /* forks that lie between this process and the first */
    int workers;
    seat_t seats[FASTRNN_MOST_THREADS - 1]; /* of rank 1, 2, ... */
    /* the call at hand */
    int size;
    fastrnn_work work;
    void *context;
    fastrnn_team *team;
} pool = {.in_use = PTHREAD_MUTEX_INITIALIZER};

/* Whether the call was begun before a fork by the process that is now this one's parent. */
static int is_stale(const fastrnn_member *me)
{
    return me->size > 1 && me->generation != atomic_load_explicit(&pool.generation, memory_order_relaxed);
}

void fastrnn_barrier(const fastrnn_member *me)
{
    FASTRNN_ASSERT(me->rank >= 0 && me->rank < me->size);
    if (me->size == 1 || is_stale(me))
        return;
    fastrnn_team *team = me->team;
    const unsigned phase = atomic_load_explicit(&team->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&team->arrived, 1, memory_order_acq_rel) == me->size - 1) {
        atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&team->phase, phase + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&team->phase, memory_order_acquire) == phase && !is_stale(me); spins++) {
        if (spins < BARRIER_SPINS)
            PAUSE();
        else
            sched_yield();
    }
}

void fastrnn_ask(fastrnn_team *team)
{
    team->flops = 0;
    const int answer = team->poll.ask ? team->poll.ask(team->poll.context) : 0;
    if (answer)
        atomic_store_explicit(&team->stop, answer, memory_order_relaxed);
}

int fastrnn_ended(const fastrnn_member *me, unsigned turn)
{
    int *told = &me->team->told[turn % 2];
    if (me->rank == 0)
        *told = fastrnn_stopping(me, 0);
    fastrnn_barrier(me);
    return *told;
}

static void take_part(fastrnn_work work, void *context, const fastrnn_member *me)
{
    const uint64_t mode = fastrnn_flush_denormals();
    work(context, me);
    fastrnn_restore_mode(mode);
}

static void *worker(void *argument)
{
    seat_t *seat = argument;
    const int rank = (int)(seat - pool.seats) + 1;
    for (unsigned ticket = seat->first;; ticket++) {
        for (int spins = 0; spins < IDLE_SPINS && atomic_load_explicit(&seat->ticket, memory_order_acquire) == ticket;
             spins++)
            PAUSE();
        if (atomic_load(&seat->ticket) == ticket) {
            pthread_mutex_lock(&seat->lock);
            atomic_store(&seat->asleep, 1); /* before the last look at the ticket: call_worker looks the other way */
            while (atomic_load(&seat->ticket) == ticket)
                pthread_cond_wait(&seat->wake, &seat->lock);
            atomic_store(&seat->asleep, 0);
            pthread_mutex_unlock(&seat->lock);
        }
        fastrnn_team *team = pool.team;
        const fastrnn_member me = {rank, pool.size, atomic_load(&pool.generation), team};
        take_part(pool.work, pool.context, &me);
        atomic_fetch_sub_explicit(&team->unfinished, 1, memory_order_acq_rel);
    }
    return NULL;
}

static void call_worker(seat_t *seat)
{
    atomic_fetch_add(&seat->ticket, 1);
    if (!atomic_load(&seat->asleep))
        return;
    pthread_mutex_lock(&seat->lock);
    pthread_cond_signal(&seat->wake);
    pthread_mutex_unlock(&seat->lock);
}

static void forget_pool(void) /* in the child of a fork */
{
    pthread_mutex_init(&pool.in_use, NULL);
    pool.workers = 0;
    atomic_fetch_add(&pool.generation, 1);
    if (pool.team)
        atomic_store(&pool.team->stop, FASTRNN_FORKED);
    pool.team = NULL;
}

static void watch_for_fork(void) { pthread_atfork(NULL, NULL, forget_pool); }

/* Signals are the business of the caller's threads, except for those that a fault of the worker itself raises. */
static void block_signals(sigset_t *before)
{
    static const int faults[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGABRT, SIGSYS};
    sigset_t blocked;
    sigfillset(&blocked);
    for (size_t k = 0; k < sizeof faults / sizeof *faults; k++)
        sigdelset(&blocked, faults[k]);
    pthread_sigmask(SIG_SETMASK, &blocked, before);
}

static int start_worker(seat_t *seat)
{
    pthread_t thread;
    pthread_attr_t attributes;
    sigset_t before;
    seat->first = atomic_load(&seat->ticket);
    atomic_store(&seat->asleep, 0);
    pthread_mutex_init(&seat->lock, NULL);
    pthread_cond_init(&seat->wake, NULL);
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    block_signals(&before);
    const int failed = pthread_create(&thread, &attributes, worker, seat);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attributes);
    return !failed;
}

/* Work on as many threads as can be had, and say how many that were; 1: nothing has been done. */
static int share(int threads, fastrnn_work work, void *context, fastrnn_team *team)
{
    const unsigned generation = atomic_load(&pool.generation);
    FASTRNN_ASSERT(threads > 1 && threads <= FASTRNN_MOST_THREADS);
    while (pool.workers < threads - 1 && start_worker(&pool.seats[pool.workers]))
        pool.workers++;
    const int size = threads <= pool.workers ? threads : pool.workers + 1;
    if (size == 1)
        return 1;
    pool.size = size;
    pool.work = work;
    pool.context = context;
    pool.team = team;
    atomic_store(&team->unfinished, size - 1);
    for (int rank = 1; rank < size; rank++)
        call_worker(&pool.seats[rank - 1]);
    const fastrnn_member me = {0, size, generation, team};
    take_part(work, context, &me);
    for (int spins = 0; atomic_load_explicit(&team->unfinished, memory_order_acquire) > 0 && !is_stale(&me); spins++) {
        if (spins < BARRIER_SPINS)
            PAUSE();
        else
            sched_yield();
    }
    return size;
}

int fastrnn_parallel(int threads, fastrnn_work work, void *context, const fastrnn_poll *poll)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    FASTRNN_ASSERT(threads >= 1);
    fastrnn_team team = {.poll = poll ? *poll : (fastrnn_poll){0}};
    int size = 1;
    if (threads > 1 && pthread_mutex_trylock(&pool.in_use) == 0) {
        const unsigned generation = atomic_load(&pool.generation);
        pthread_once(&once, watch_for_fork);
        size = share(threads < FASTRNN_MOST_THREADS ? threads : FASTRNN_MOST_THREADS, work, context, &team);
        if (generation != atomic_load(&pool.generation))
            return FASTRNN_FORKED; /* the lock is a new one, which nobody holds */
        pool.team = NULL;
        pthread_mutex_unlock(&pool.in_use);
    }
    if (size == 1)
        take_part(work, context, &(fastrnn_member){0, 1, 0, &team});
    return atomic_load(&team.stop);
}
