// From a tensor's scalar type to a C++ type: dispatch_floating(t.scalar_type(), "x", [&](auto tag) {
// using T = typename decltype(tag)::type; ... }).
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

namespace sfa {

template <typename T>
struct TypeTag {
  using type = T;
};

template <typename F>
auto dispatch_floating(torch::headeronly::ScalarType dtype, const char* name, F&& f) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return f(TypeTag<float>{});
    case ScalarType::Double:
      return f(TypeTag<double>{});
    case ScalarType::BFloat16:
      return f(TypeTag<torch::headeronly::BFloat16>{});
    case ScalarType::Half:
      return f(TypeTag<torch::headeronly::Half>{});
    default:
      STD_TORCH_CHECK(false, name, " must be float32, float64, bfloat16 or float16");
  }
}

}  // namespace sfa
