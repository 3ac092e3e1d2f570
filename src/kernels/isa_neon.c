#define FASTRNN_NEON
#define ISA_NAME "neon"
#define ISA_RECORD fastrnn_isa_neon
#include "isa.h"
