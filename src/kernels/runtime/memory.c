/* A training step wants the same dozen arrays as the step before. From the system each of their pages would cost a page
 * fault, and all of them together half the time of a small step: so freed blocks are kept, up to a limit. */
#define _GNU_SOURCE
#include "memory.h"
#include "checks.h"
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__GLIBC__)
#include <malloc.h>
#endif

enum { MOST_SPARE_BLOCKS = 32, LINE = 64, HUGE_PAGE = 1 << 21 };

static struct {
    pthread_mutex_t lock;
    int count;
    size_t bytes;
    fastrnn_block blocks[MOST_SPARE_BLOCKS]; /* the latest last */
} spare = {.lock = PTHREAD_MUTEX_INITIALIZER};

/* A fork while another thread has the lock would leave it locked in the child for ever. */
static void lock_spare(void) { pthread_mutex_lock(&spare.lock); }
static void unlock_spare(void) { pthread_mutex_unlock(&spare.lock); }
__attribute__((constructor)) static void watch_for_fork(void)
{
    pthread_atfork(lock_spare, unlock_spare, unlock_spare);
}

static fastrnn_block remove_spare(int which)
{
    FASTRNN_ASSERT(which >= 0 && which < spare.count);
    const fastrnn_block block = spare.blocks[which];
    spare.bytes -= block.size;
    spare.count--;
    for (int k = which; k < spare.count; k++)
        spare.blocks[k] = spare.blocks[k + 1];
    return block;
}

/* A matrix that is read at every step wants few address translations: large blocks are made of huge pages. */
static fastrnn_block allocate(size_t size)
{
    const size_t unit = size < HUGE_PAGE / 2 ? LINE : HUGE_PAGE;
    fastrnn_block block = {NULL, 0};
    if (size > SIZE_MAX - unit)
        return block;
    size = (size + unit - 1) / unit * unit;
    if (posix_memalign(&block.start, unit, size))
        return (fastrnn_block){NULL, 0};
    block.size = size;
#if defined(MADV_HUGEPAGE)
    if (unit == HUGE_PAGE)
        (void)madvise(block.start, size, MADV_HUGEPAGE);
#endif
    return block;
}

fastrnn_block fastrnn_take_block(size_t size)
{
    int best = -1;
    fastrnn_block block = {NULL, 0};
    if (size >= FASTRNN_LARGE_BLOCK) {
        lock_spare();
        for (int k = 0; k < spare.count; k++) {
            const size_t there = spare.blocks[k].size;
            if (size <= there && there <= size + size / 4 + HUGE_PAGE * (size >= HUGE_PAGE / 2) &&
                (best < 0 || there < spare.blocks[best].size))
                best = k;
        }
        if (best >= 0)
            block = remove_spare(best);
        unlock_spare();
    }
    return block.start ? block : allocate(size);
}

void fastrnn_give_block(fastrnn_block block)
{
    FASTRNN_ASSERT(block.start || !block.size);
    if (block.size < FASTRNN_LARGE_BLOCK || block.size > FASTRNN_MOST_SPARE_BYTES) {
        free(block.start);
        return;
    }
    lock_spare();
    while (spare.count == MOST_SPARE_BLOCKS || spare.bytes + block.size > FASTRNN_MOST_SPARE_BYTES)
        free(remove_spare(0).start);
    spare.blocks[spare.count++] = block;
    spare.bytes += block.size;
    unlock_spare();
}

size_t fastrnn_spare_bytes(void)
{
    lock_spare();
    const size_t bytes = spare.bytes;
    unlock_spare();
    return bytes;
}

size_t fastrnn_release_memory(void)
{
    lock_spare();
    const size_t bytes = spare.bytes;
    while (spare.count)
        free(remove_spare(0).start);
    unlock_spare();
#if defined(__GLIBC__)
    malloc_trim(0); /* the C library, too, keeps what is freed */
#endif
    return bytes;
}
