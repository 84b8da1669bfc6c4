#define SFA_ISA_NAMESPACE baseline
#include "sparse_adamw_step.h"
