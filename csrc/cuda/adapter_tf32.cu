// The kernels of the adapter operators for Tf32Math.
#include "adapter_launch.h"

namespace sfa::cuda {

template void launch_adapter<Tf32Math>(const AdapterPlan&, const AdapterArgs<float>&, cudaStream_t);
template void launch_adapter_norm<Tf32Math>(const AdapterPlan&, const AdapterNormArgs<float>&, cudaStream_t);

}  // namespace sfa::cuda
