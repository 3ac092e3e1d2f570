/* One precision of one instruction set. Included by isa.h with REAL_F32 or REAL_F64 set. */
#include "simd.h"
#include "activations.h"
#include "cells.h"
#include "loops.h"
#ifdef FASTRNN_FUSED
#include "product.h"
#include "unpacked.h"
#include "sequence.h"
#endif

static const NAME(fastrnn_table_) NAME(table_) = {
    .cell = NAME(cells_),
    .add_rows = NAME(add_rows_),
    .tanh = NAME(tanh_all_),
    .sigmoid = NAME(sigmoid_all_),
#ifdef FASTRNN_FUSED
    .packed_size = NAME(packed_size_),
    .pack_rows = NAME(pack_all_rows_),
    .pack_columns = NAME(pack_all_columns_),
    .multiply = NAME(multiply_all_),
    .sums_size = NAME(sums_size_),
    .run_forward = NAME(run_forward_),
    .run_backward = NAME(run_backward_),
#endif
};
#include "undefine.h"
