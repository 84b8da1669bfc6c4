// The kernels of the adapter operators for FloatMath.
#include "adapter_launch.h"

namespace sfa::cuda {

template void launch_adapter<FloatMath>(const AdapterPlan&, const AdapterArgs<float>&, cudaStream_t);
template void launch_adapter_norm<FloatMath>(const AdapterPlan&, const AdapterNormArgs<float>&, cudaStream_t);

}  // namespace sfa::cuda
