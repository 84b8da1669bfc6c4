#define SFA_ISA_NAMESPACE avx512
#include "attention_head.h"
