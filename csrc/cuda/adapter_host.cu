#include <array>

#include "adapter_host.h"
#include "common/call.h"

namespace sfa::cuda {

Tensor ready(const Tensor& t) {
  const Tensor whole = torch::stable::contiguous(t);
  const bool aligned = reinterpret_cast<uintptr_t>(whole.const_data_ptr()) % kUnitBytes == 0;
  return aligned ? whole : torch::stable::clone(whole);
}

std::optional<Tensor> ready(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional<Tensor>(ready(*t)) : std::nullopt;
}

Tensor ready_transpose(const Tensor& w) { return ready(torch::stable::transpose(w, 0, 1)); }

bool allow_tf32() {
  std::array<StableIValue, 1> stack{};
  call_operator("sfa::allow_tf32", "", stack.data());
  return torch::stable::detail::to<bool>(stack[0]);
}

Device current_device() {
  int index = 0;
  check(cudaGetDevice(&index), "fused_adapter");
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, index), "fused_adapter");
    return value;
  };
  cudaFuncAttributes compiled;  // of any kernel: all were compiled for the same generations
  check(cudaFuncGetAttributes(&compiled, reinterpret_cast<const void*>(&sum_parts_kernel<float>)), "fused_adapter");
  return {compiled.ptxVersion * 10, ask(cudaDevAttrMultiProcessorCount), ask(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          ask(cudaDevAttrMaxSharedMemoryPerMultiprocessor)};
}

}  // namespace sfa::cuda
