// The device and the stream an operator runs on: those of its tensors, never the default ones.
#pragma once

#define USE_CUDA
#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

// Only in libtorch_cuda.so: this library must also load where torch comes without it.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace sfa::cuda {

// Makes the device of `t` the current one until it is destroyed, and knows the current stream of that device. Raises
// unless all of `others` are on the same device.
class OnDevice {
 public:
  using Tensor = torch::stable::Tensor;

  explicit OnDevice(const Tensor& t, const std::vector<Tensor>& others = {}) : guard_(index_of(t)) {
    for (const Tensor& other : others)
      STD_TORCH_CHECK(index_of(other) == index_of(t), "all tensors must be on one CUDA device");
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr, "this torch comes without CUDA");
    void* stream = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream) == AOTI_TORCH_SUCCESS,
                    "torch has no current CUDA stream for device ", t.get_device_index());
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

 private:
  static int32_t index_of(const Tensor& t) {
    STD_TORCH_CHECK(t.is_cuda(), "all tensors must be on a CUDA device");
    return t.get_device_index();
  }

  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace sfa::cuda
