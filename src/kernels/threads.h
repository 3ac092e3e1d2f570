/* Threads: a pool of workers that sleep between calls, and the barrier of those that share one call. */
#ifndef FASTRNN_THREADS_H
#define FASTRNN_THREADS_H

#include <stdint.h>

/* One thread's place among those that run the same work. */
typedef struct fastrnn_team fastrnn_team;
typedef struct {
    int rank, size;
    fastrnn_team *team;
} fastrnn_member;

/* Run work(context, member) on `threads` threads, the caller being rank 0; returns when all are done.
 * On fewer, down to one, if another call has the pool or no thread can be made: work divides by member.size.
 * All of them treat denormals as zero meanwhile. */
void fastrnn_parallel(int threads, void (*work)(void *context, fastrnn_member me), void *context);

/* Wait for all members; what they wrote before is seen by all after. */
void fastrnn_barrier(fastrnn_member me);

/* Treat denormals as zero until the mode that was there before is put back: BPTT through a vanished
 * gradient is many times slower otherwise on some processors. */
uint64_t fastrnn_flush_denormals(void);
void fastrnn_restore_mode(uint64_t mode);

#endif
