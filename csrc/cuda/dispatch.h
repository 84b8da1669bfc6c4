// From a tensor's scalar type to the number type of kernels, as common/dispatch.h does for the CPU.
#pragma once

#include "builtins.cuh"
#include "common/dispatch.h"

namespace sfa::cuda {

template <class T>
struct OnGpu {
  using type = T;
};
template <>
struct OnGpu<torch::headeronly::Half> {
  using type = Half;
};
template <>
struct OnGpu<torch::headeronly::BFloat16> {
  using type = BFloat16;
};

// Calls f(TypeTag<float>{}) and so on.
template <class F>
auto dispatch(torch::headeronly::ScalarType dtype, const char* name, F&& f) {
  return dispatch_floating(dtype, name,
                           [&](auto tag) { return f(TypeTag<typename OnGpu<typename decltype(tag)::type>::type>{}); });
}

}  // namespace sfa::cuda
