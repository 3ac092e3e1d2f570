/* FASTRNN_ASSERT(x): a precondition of the function at hand, which callers inside the engine guarantee.
 *
 * It is checked in builds with FASTRNN_ASSERTS defined, as those with sanitizers are; elsewhere it costs nothing. What a
 * caller from outside can get wrong is no precondition: fastrnn_check and its like answer with a status and a text. */
#ifndef FASTRNN_CHECKS_H
#define FASTRNN_CHECKS_H

#ifdef FASTRNN_ASSERTS
#include <stdio.h>
#include <stdlib.h>

static inline void fastrnn_assert_failed(const char *what, const char *file, int line)
{
    fprintf(stderr, "%s:%d: not so: %s\n", file, line, what);
    abort();
}
#define FASTRNN_ASSERT(x) ((x) ? (void)0 : fastrnn_assert_failed(#x, __FILE__, __LINE__))
#else
#define FASTRNN_ASSERT(x) ((void)sizeof((x) ? 1 : 0)) /* its variables are used, and nothing is computed */
#endif

#endif
