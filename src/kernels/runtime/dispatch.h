/* The engine in use: an instruction set's fused kernels, or a back end that brings runs of its own, such as BLAS. */
#ifndef FASTRNN_DISPATCH_H
#define FASTRNN_DISPATCH_H

#include "kernels.h"

/* Runs of one layer and direction, as fastrnn_table has them; by precision, float32 first. */
typedef struct {
    int (*forward[2])(const fastrnn_forward_run *run);
    int (*backward[2])(const fastrnn_backward_run *run);
} fastrnn_backend;

FASTRNN_API const fastrnn_isa *fastrnn_current_isa(void);
FASTRNN_API int fastrnn_is_fused(void);
FASTRNN_API const fastrnn_backend *fastrnn_current_backend(void);

/* Choose the instruction set, and the back end for its runs: NULL for its own fused kernels. */
FASTRNN_API void fastrnn_use(const fastrnn_isa *isa, const fastrnn_backend *backend);

FASTRNN_API int fastrnn_most_threads(void);
FASTRNN_API int fastrnn_use_threads(int most); /* returns the setting before */

#endif
