/* The engine in use: an instruction set's fused kernels, or a back end that brings runs of its own, such as BLAS. The
 * settings themselves are those of fastrnn.h. */
#ifndef FASTRNN_DISPATCH_H
#define FASTRNN_DISPATCH_H

#include "kernels.h"

/* Runs of one layer and direction, as fastrnn_table has them; by precision, float32 first. */
typedef struct {
    int (*forward[2])(const fastrnn_forward_run *run);
    int (*backward[2])(const fastrnn_backward_run *run);
} fastrnn_backend;

/* Offer the runs of a back end, which become the engine `blas`, and those of `baseline`, which has none of its own. The
 * struct stays where it is. */
FASTRNN_API void fastrnn_register_backend(const fastrnn_backend *backend);

/* Only where fastrnn_check_settings says FASTRNN_OK: there are no stacks otherwise. */
FASTRNN_API const fastrnn_isa *fastrnn_current_isa(void);
FASTRNN_API int fastrnn_is_fused(void);
FASTRNN_API const fastrnn_backend *fastrnn_current_backend(void); /* NULL: fused */

#endif
