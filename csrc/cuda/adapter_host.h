// What the adapter operators share on the host: tensors as the kernels read them, what the device is, which kernel
// serves a number type.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "adapter_launch.h"
#include "common/adapter_arguments.h"
#include "cuda/device.h"

namespace sfa::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Compiled in files of their own, adapter_half.cu and so on: several compilers then share the work.
extern template void launch_adapter<HalfMath>(const AdapterPlan&, const AdapterArgs<Half>&, cudaStream_t);
extern template void launch_adapter_norm<HalfMath>(const AdapterPlan&, const AdapterNormArgs<Half>&, cudaStream_t);
extern template void launch_adapter<BFloat16Math>(const AdapterPlan&, const AdapterArgs<BFloat16>&, cudaStream_t);
extern template void launch_adapter_norm<BFloat16Math>(const AdapterPlan&, const AdapterNormArgs<BFloat16>&,
                                                       cudaStream_t);
extern template void launch_adapter<Tf32Math>(const AdapterPlan&, const AdapterArgs<float>&, cudaStream_t);
extern template void launch_adapter_norm<Tf32Math>(const AdapterPlan&, const AdapterNormArgs<float>&, cudaStream_t);
extern template void launch_adapter<FloatMath>(const AdapterPlan&, const AdapterArgs<float>&, cudaStream_t);
extern template void launch_adapter_norm<FloatMath>(const AdapterPlan&, const AdapterNormArgs<float>&, cudaStream_t);

// The tensor, or a copy, contiguous and with a first element at a multiple of 16 bytes, as the kernels read it.
Tensor ready(const Tensor& t);
std::optional<Tensor> ready(const std::optional<Tensor>& t);
Tensor ready_transpose(const Tensor& w);

// Whether torch lets products of float32 run through TF32, as torch.backends.cuda.matmul.fp32_precision says.
bool allow_tf32();

// The current device, and the generation that its kernels were compiled for: a device may run what was compiled for an
// older one, which lacks some of them.
Device current_device();

template <class T>
const T* numbers(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
const T* numbers(const std::optional<Tensor>& t) {
  return t.has_value() ? numbers<T>(*t) : nullptr;
}
template <class T>
T* mutable_numbers(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

// f(math, device) with what computes products of `dtype` on the current device; false where nothing does.
template <class F>
bool with_math(ScalarType dtype, F&& f) {
  const Device device = current_device();
  const auto use = [&](auto math) { return device.arch >= decltype(math)::kOldest && f(math, device); };
  switch (dtype) {
    case ScalarType::Half:
      return use(HalfMath{});
    case ScalarType::BFloat16:
      return use(BFloat16Math{});
    case ScalarType::Float:
      return allow_tf32() && device.arch >= Tf32Math::kOldest ? use(Tf32Math{}) : use(FloatMath{});
    default:
      return false;
  }
}

}  // namespace sfa::cuda
