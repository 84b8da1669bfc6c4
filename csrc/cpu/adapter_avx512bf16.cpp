#define SFA_ISA_NAMESPACE avx512bf16
#include "adapter_table.h"
