#define SFA_ISA_NAMESPACE avx2
#include "sparse_adamw_step.h"
