#define SFA_ISA_NAMESPACE amx
#include "adapter_table.h"
