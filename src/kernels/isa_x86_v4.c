#define FASTRNN_X86_V4
#define ISA_NAME "x86_v4"
#define ISA_RECORD fastrnn_isa_x86_v4
#include "isa.h"
