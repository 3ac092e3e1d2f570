/* The shapes of x86_v4 without its instructions: vectors of 64 bytes and tiles of 24 of them, which the
 * compiler takes apart into what the processor has. So the wide code runs, and is compared with the rest,
 * on machines without AVX-512; that processor's own intrinsics in simd.h are all that it leaves out. */
#define FASTRNN_WIDE
#define ISA_NAME "wide"
#define ISA_RECORD fastrnn_isa_wide
#include "isa.h"
