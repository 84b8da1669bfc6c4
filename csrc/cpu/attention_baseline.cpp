#define SFA_ISA_NAMESPACE baseline
#include "attention_head.h"
