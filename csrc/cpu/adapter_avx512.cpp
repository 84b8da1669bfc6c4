#define SFA_ISA_NAMESPACE avx512
#include "adapter_table.h"
