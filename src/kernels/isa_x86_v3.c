#define FASTRNN_X86_V3
#define ISA_NAME "x86_v3"
#define ISA_RECORD fastrnn_isa_x86_v3
#include "isa.h"
