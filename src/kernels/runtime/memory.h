/* Memory for arrays: blocks that begin at a cache line, the large ones in huge pages where the system has them, and a
 * cache of freed blocks. Callers need no lock. */
#ifndef FASTRNN_MEMORY_H
#define FASTRNN_MEMORY_H

#include "fastrnn.h"

#include <stddef.h>

typedef struct {
    void *start;
    size_t size; /* of the memory that it takes, at least what was asked for */
} fastrnn_block;

/* A block of at least `size` bytes, uninitialised; its start is NULL if there is no memory. */
FASTRNN_API fastrnn_block fastrnn_take_block(size_t size);

/* Free a block, or keep it for later. */
FASTRNN_API void fastrnn_give_block(fastrnn_block block);

/* Bytes kept for later, FASTRNN_MOST_SPARE_BYTES at most. */
FASTRNN_API size_t fastrnn_spare_bytes(void);

/* Free all that is kept for later, and say how many bytes that were. */
FASTRNN_API size_t fastrnn_release_memory(void);

enum {
    FASTRNN_MOST_SPARE_BYTES = 1 << 26,
    FASTRNN_LARGE_BLOCK = 1 << 15 /* bytes; smaller blocks are left to the C library */
};

#endif
