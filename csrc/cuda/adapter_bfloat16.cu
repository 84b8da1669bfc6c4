// The kernels of the adapter operators for BFloat16Math.
#include "adapter_launch.h"

namespace sfa::cuda {

template void launch_adapter<BFloat16Math>(const AdapterPlan&, const AdapterArgs<BFloat16>&, cudaStream_t);
template void launch_adapter_norm<BFloat16Math>(const AdapterPlan&, const AdapterNormArgs<BFloat16>&, cudaStream_t);

}  // namespace sfa::cuda
