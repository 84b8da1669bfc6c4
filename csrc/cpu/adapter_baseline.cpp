#define SFA_ISA_NAMESPACE baseline
#include "adapter_table.h"
