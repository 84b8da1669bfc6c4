#define SFA_ISA_NAMESPACE avx2
#include "attention_head.h"
