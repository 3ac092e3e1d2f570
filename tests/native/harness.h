/* What the native tests share: memory, made-up numbers, and lines of hashes.
 *
 * Scratch and results begin as NaNs, so whatever is read before it is written shows in a result; arrays have
 * their exact size and no more alignment than their elements need, so sanitizers see what reaches too far.
 * Numbers follow from the title of the problem: they are the same in every run.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *engine, *title;
static int threads;
static size_t item; /* bytes of the real type at hand */

static _Noreturn void fail(const char *what)
{
    printf("FAILED: %s\n", what); /* among the lines, so that it is seen which one */
    fprintf(stderr, "%s, %d threads, %s: %s\n", engine ? engine : "-", threads, title ? title : "", what);
    exit(1);
}

/* ---- memory --------------------------------------------------------------------------------------- */

static void *blocks[1024];
static int block_count;

static void *block(size_t size, size_t skip)
{
    void *start;
    if (block_count == sizeof blocks / sizeof *blocks || posix_memalign(&start, 64, size + skip))
        fail("out of memory");
    blocks[block_count++] = start;
    memset(start, 0xff, size + skip);
    return (char *)start + skip;
}

/* n numbers, aligned as the caller's own arrays may be: not at all. */
static void *array(ptrdiff_t n) { return block((size_t)n * item, item); }

static void free_all(void)
{
    while (block_count)
        free(blocks[--block_count]);
}

/* ---- numbers -------------------------------------------------------------------------------------- */

static uint64_t seed;

static int64_t next_bits(void) /* 24 of them, signed: a float holds them all, so every sum has to round */
{
    seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (int64_t)(seed >> 40) - (1 << 23);
}

static inline int one_in(int n) { return (next_bits() & 0xffff) % n == 0; }

/* n numbers below 2/sqrt(K), by a power of two: a sum of K products of them stays moderate. */
static void *numbers(ptrdiff_t n, ptrdiff_t K)
{
    void *out = array(n);
    double scale = 1.0 / (1 << 23);
    for (; K > 4; K = (K + 3) / 4)
        scale /= 2;
    for (ptrdiff_t k = 0; k < n; k++) {
        const double value = (double)next_bits() * scale;
        if (item == sizeof(float))
            ((float *)out)[k] = (float)value;
        else
            ((double *)out)[k] = value;
    }
    return out;
}

static inline uint64_t hash(const void *from, size_t size) /* FNV-1a */
{
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    for (const unsigned char *at = from, *end = at + size; at < end; at++)
        h = (h ^ *at) * UINT64_C(0x100000001b3);
    return h;
}

static inline void open_problem(const char *name)
{
    title = name;
    seed = hash(name, strlen(name));
    printf("%s:", name);
}

static inline int is_finite(const void *from, ptrdiff_t k)
{
    return isfinite(item == sizeof(float) ? (double)((const float *)from)[k] : ((const double *)from)[k]);
}

/* Prints the hash of rows by `columns` numbers, and of what lies between them, which nobody may touch. */
static inline void report(const char *name, const void *from, ptrdiff_t rows, ptrdiff_t columns, ptrdiff_t ld)
{
    if (!from)
        return;
    printf(" %s %016llx", name, (unsigned long long)hash(from, (size_t)(rows * ld) * item));
    for (ptrdiff_t row = 0; row < rows; row++)
        for (ptrdiff_t k = row * ld; k < row * ld + columns; k++)
            if (!is_finite(from, k))
                fail("a result is not finite");
}

/* ---- polls ---------------------------------------------------------------------------------------- */

enum { STOP = 7 };
static inline int count_down(void *context) { return --*(int *)context == 0 ? STOP : 0; }

#endif
