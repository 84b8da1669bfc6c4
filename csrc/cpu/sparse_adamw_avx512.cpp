#define SFA_ISA_NAMESPACE avx512
#include "sparse_adamw_step.h"
