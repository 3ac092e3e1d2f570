/* Threads: a pool of workers that sleep between calls, the barrier of those that share a call, and how a call ends
 * early. */
#ifndef FASTRNN_THREADS_H
#define FASTRNN_THREADS_H

#include "fastrnn.h"

#include <stdatomic.h>
#include <stdint.h>

/* Why a call ended early, where it was not the caller's poll that wanted it: the process forked in the middle of the
 * call, and this is the child, in which the other members do not exist. */
#define FASTRNN_FORKED (-2)

/* Asked by the calling thread after so much work: a fraction of a millisecond of it, much longer than a look at the
 * clock takes. An answer other than 0 ends the call. */
#ifndef FASTRNN_POLL_FLOPS /* tests ask all the time */
#define FASTRNN_POLL_FLOPS 1000000
#endif
typedef struct {
    int (*ask)(void *context);
    void *context;
} fastrnn_poll;

/* What the members of one call share. It lies on the caller's stack. */
typedef struct {
    atomic_int arrived;    /* at the barrier */
    atomic_uint phase;     /* barriers passed */
    atomic_int unfinished; /* members, less the caller */
    atomic_int stop;       /* the poll's answer, once it is not 0 */
    int told[2];           /* `stop` as the last two turns of fastrnn_ended saw it */
    int64_t flops;         /* since the poll was asked; only rank 0 counts */
    fastrnn_poll poll;
} fastrnn_team;

/* One thread's place in a call. */
typedef struct {
    int rank, size;
    unsigned generation; /* of the process that began the call */
    fastrnn_team *team;
} fastrnn_member;

typedef void (*fastrnn_work)(void *context, const fastrnn_member *me);

/* Run work(context, me) on `threads` threads, the caller being rank 0, and return when all are done: 0, or why the
 * call ended early. There are fewer members, down to one, if another call has the pool or no thread can be made, so
 * work is divided by me->size. Denormals count as zero meanwhile. `poll` may be NULL. */
int fastrnn_parallel(int threads, fastrnn_work work, void *context, const fastrnn_poll *poll);

/* Wait for all members; what they wrote before is seen by all after. Returns at once in the child of a fork. */
void fastrnn_barrier(const fastrnn_member *me);

/* Ask the poll. */
void fastrnn_ask(fastrnn_team *team);

/* Whether the call shall end, given the work that the member is about to do. Members may learn of it at different
 * times: one that knows leaves its work undone, but still meets the others at every barrier. */
static inline int fastrnn_stopping(const fastrnn_member *me, int64_t flops)
{
    fastrnn_team *team = me->team;
    if (me->rank == 0 && (team->flops += flops) >= FASTRNN_POLL_FLOPS)
        fastrnn_ask(team);
    return atomic_load_explicit(&team->stop, memory_order_relaxed) != 0;
}

/* A barrier at which all members agree whether the call ends; turn 0, 1, 2, ... counts them. A member that is late
 * finds its answer unchanged: rank 0 can be one turn ahead, and writes to the other place then. */
int fastrnn_ended(const fastrnn_member *me, unsigned turn);

/* Treat denormals as zero until the mode that was there before is put back: on some processors BPTT through a
 * vanished gradient is many times slower otherwise. */
FASTRNN_API uint64_t fastrnn_current_mode(void);
FASTRNN_API uint64_t fastrnn_flush_denormals(void);
FASTRNN_API void fastrnn_restore_mode(uint64_t mode);

#endif
