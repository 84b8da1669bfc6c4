#define SFA_ISA_NAMESPACE amx
#include "adapter_table.h"

namespace sfa::cpu::amx {

const AdapterKernels kShortFloat = make_kernels<ShortFloat>();

}  // namespace sfa::cpu::amx
