// What kernels demand of their arguments, in few words. The Python layer says it in full where they refuse.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>

namespace sfa {

inline std::string shape_of(const torch::stable::Tensor& t) {
  std::ostringstream out;
  out << "[";
  for (int64_t i = 0; i < t.dim(); ++i) out << (i == 0 ? "" : ", ") << t.size(i);
  out << "]";
  return out.str();
}

// Raises unless t has exactly the shape and the scalar type.
inline void check_form(const torch::stable::Tensor& t, const char* name, std::initializer_list<int64_t> shape,
                       torch::headeronly::ScalarType dtype) {
  bool same = t.dim() == static_cast<int64_t>(shape.size());
  int64_t dim = 0;
  for (int64_t size : shape) same = same && t.size(dim++) == size;
  STD_TORCH_CHECK(same, name, " has the wrong shape ", shape_of(t));
  STD_TORCH_CHECK(t.scalar_type() == dtype, name, " has the wrong dtype");
}

// The same, and a CPU data pointer.
inline void check_tensor(const torch::stable::Tensor& t, const char* name, std::initializer_list<int64_t> shape,
                         torch::headeronly::ScalarType dtype) {
  check_form(t, name, shape, dtype);
  STD_TORCH_CHECK(t.is_cpu(), name, " must be on the CPU");
}

}  // namespace sfa
