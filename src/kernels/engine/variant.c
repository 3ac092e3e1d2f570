/* All kernels of one instruction set and one precision: the only file that is compiled with machine flags.
 *
 * Compiled once for each, with FASTRNN_ISA_NAME, with REAL_F32 or REAL_F64, and with FASTRNN_X86_V3, FASTRNN_X86_V4 or
 * FASTRNN_NEON, or none of these for the baseline of the architecture, which has no fused kernels. */
#include "kernels.h"
#include "checks.h"

#include "simd.h"
#include "activations.h"
#include "cells.h"
#include "loops.h"
#ifdef FASTRNN_FUSED
#include "product.h"
#include "unpacked.h"
#include "run.h"
#include "forward.h"
#include "backward.h"
#include "multiply.h"
#endif

const fastrnn_table PASTE(PASTE(PASTE(fastrnn_, FASTRNN_ISA_NAME), _), SUFFIX) = {
    .cell = cells,
    .add_rows = add_rows,
    .tanh = tanh_all,
    .sigmoid = sigmoid_all,
#ifdef FASTRNN_FUSED
    .packed_size = packed_size,
    .pack_rows = panels_of_rows,
    .pack_columns = panels_of_matrix,
    .pack_bias = set_bias_row,
    .multiply = multiply_all,
    .run_forward = run_forward,
    .run_backward = run_backward,
#endif
};
