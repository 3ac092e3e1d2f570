/* One instruction set: both precisions of every kernel, and the record that names them.
 * Included by each isa_*.c, which sets the instruction set and ISA_RECORD, ISA_NAME. */
#include "kernels.h"

#define REAL_F32
#include "kernels.template.h"
#undef REAL_F32

#define REAL_F64
#include "kernels.template.h"
#undef REAL_F64

const fastrnn_isa ISA_RECORD = {ISA_NAME, VECTOR_BYTES / 4, &table_f32, &table_f64};
