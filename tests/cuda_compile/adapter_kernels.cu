// Every kernel of the adapter operators; one that a generation does not have is empty there.
#include "cuda/adapter_kernel.cuh"
#include "cuda/adapter_norm_kernel.cuh"

namespace sfa::cuda {

using Layout = AdapterLayout;

template __global__ void adapter_kernel<HalfMath, 64>(const __grid_constant__ AdapterArgs<Half>,
                                                      const __grid_constant__ Layout);
template __global__ void adapter_kernel<HalfMath, 128>(const __grid_constant__ AdapterArgs<Half>,
                                                       const __grid_constant__ Layout);
template __global__ void adapter_kernel<BFloat16Math, 64>(const __grid_constant__ AdapterArgs<BFloat16>,
                                                          const __grid_constant__ Layout);
template __global__ void adapter_kernel<BFloat16Math, 128>(const __grid_constant__ AdapterArgs<BFloat16>,
                                                           const __grid_constant__ Layout);
template __global__ void adapter_kernel<Tf32Math, 64>(const __grid_constant__ AdapterArgs<float>,
                                                      const __grid_constant__ Layout);
template __global__ void adapter_kernel<Tf32Math, 128>(const __grid_constant__ AdapterArgs<float>,
                                                       const __grid_constant__ Layout);
template __global__ void adapter_kernel<FloatMath, 64>(const __grid_constant__ AdapterArgs<float>,
                                                       const __grid_constant__ Layout);
template __global__ void adapter_kernel<FloatMath, 128>(const __grid_constant__ AdapterArgs<float>,
                                                        const __grid_constant__ Layout);

template __global__ void adapter_norm_kernel<HalfMath, 64>(const __grid_constant__ AdapterNormArgs<Half>,
                                                           const __grid_constant__ Layout);
template __global__ void adapter_norm_kernel<HalfMath, 128>(const __grid_constant__ AdapterNormArgs<Half>,
                                                            const __grid_constant__ Layout);
template __global__ void adapter_norm_kernel<BFloat16Math, 64>(const __grid_constant__ AdapterNormArgs<BFloat16>,
                                                               const __grid_constant__ Layout);
template __global__ void adapter_norm_kernel<BFloat16Math, 128>(const __grid_constant__ AdapterNormArgs<BFloat16>,
                                                                const __grid_constant__ Layout);
template __global__ void adapter_norm_kernel<Tf32Math, 64>(const __grid_constant__ AdapterNormArgs<float>,
                                                           const __grid_constant__ Layout);
template __global__ void adapter_norm_kernel<Tf32Math, 128>(const __grid_constant__ AdapterNormArgs<float>,
                                                            const __grid_constant__ Layout);
template __global__ void adapter_norm_kernel<FloatMath, 64>(const __grid_constant__ AdapterNormArgs<float>,
                                                            const __grid_constant__ Layout);
template __global__ void adapter_norm_kernel<FloatMath, 128>(const __grid_constant__ AdapterNormArgs<float>,
                                                             const __grid_constant__ Layout);

template __global__ void sum_parts_kernel<float>(const float*, int64_t, int64_t, int, float*);
template __global__ void sum_parts_kernel<Half>(const float*, int64_t, int64_t, int, Half*);
template __global__ void sum_parts_kernel<BFloat16>(const float*, int64_t, int64_t, int, BFloat16*);

}  // namespace sfa::cuda
