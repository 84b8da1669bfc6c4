// The kernels of the adapter operators for HalfMath.
#include "adapter_launch.h"

namespace sfa::cuda {

template void launch_adapter<HalfMath>(const AdapterPlan&, const AdapterArgs<Half>&, cudaStream_t);
template void launch_adapter_norm<HalfMath>(const AdapterPlan&, const AdapterNormArgs<Half>&, cudaStream_t);

}  // namespace sfa::cuda
