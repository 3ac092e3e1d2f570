#define ISA_NAME "baseline"
#define ISA_RECORD fastrnn_isa_baseline
#include "isa.h"
