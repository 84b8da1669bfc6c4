#define SFA_ISA_NAMESPACE avx2
#include "adapter_table.h"
