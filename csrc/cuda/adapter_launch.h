// Starts the adapter kernels: from arguments and a device to a plan, a kernel and a launch.
#pragma once

#include "adapter_kernel.cuh"
#include "adapter_norm_kernel.cuh"
#include "adapter_plan.h"

namespace sfa::cuda {

namespace detail {

template <class Args>
void launch_tiles(const char* name, void (*kernel)(Args, AdapterLayout), const AdapterPlan& plan, const Args& args,
                  cudaStream_t stream) {
  launch(name, kernel, dim3(static_cast<unsigned>(plan.blocks)), dim3(2 * plan.layout.block_rows),
         plan.layout.shared_bytes, stream, args, plan.layout);
}

}  // namespace detail

template <class Math>
void launch_adapter(const AdapterPlan& plan, const AdapterArgs<typename Math::Number>& args, cudaStream_t stream) {
  using Args = AdapterArgs<typename Math::Number>;
  void (*kernel)(Args, AdapterLayout) = plan.chunk == 64 ? &adapter_kernel<Math, 64> : &adapter_kernel<Math, 128>;
  detail::launch_tiles("fused_adapter", kernel, plan, args, stream);
}

template <class Math>
void launch_adapter_norm(const AdapterPlan& plan, const AdapterNormArgs<typename Math::Number>& args,
                         cudaStream_t stream) {
  using Args = AdapterNormArgs<typename Math::Number>;
  void (*kernel)(Args, AdapterLayout) =
      plan.chunk == 64 ? &adapter_norm_kernel<Math, 64> : &adapter_norm_kernel<Math, 128>;
  detail::launch_tiles("fused_adapter_norm", kernel, plan, args, stream);
}

// out[width] = the sum of `count` rows of parts [count, step].
template <class T>
void launch_sum_parts(const float* parts, int64_t count, int64_t step, int width, T* out, cudaStream_t stream) {
  launch("sum_parts", &sum_parts_kernel<T>, dim3((width + 31) / 32), dim3(32, kSumRows), 32 * kSumRows * sizeof(float),
         stream, parts, count, step, width, out);
}

}  // namespace sfa::cuda
