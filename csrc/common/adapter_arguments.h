// What the adapter operators demand of their arguments on any device.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "common/check.h"

namespace sfa {

struct AdapterSizes {
  int64_t rows, width, hidden;  // N, D, d
};

inline bool beside(const torch::stable::Tensor& t, const torch::stable::Tensor& x) {
  return t.is_cpu() == x.is_cpu() && t.is_cuda() == x.is_cuda() && t.get_device_index() == x.get_device_index();
}

// Whether t has the dtype of x, or is float32 where that is a half type.
inline bool same_or_float(const torch::stable::Tensor& t, const torch::stable::Tensor& x) {
  using torch::headeronly::ScalarType;
  const ScalarType dtype = x.scalar_type();
  const bool half = dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  return t.scalar_type() == dtype || (half && t.scalar_type() == ScalarType::Float);
}

// Raises unless shapes, dtypes and devices are those of an adapter.
inline AdapterSizes check_adapter(const torch::stable::Tensor& x, const torch::stable::Tensor& w_down,
                                  const std::optional<torch::stable::Tensor>& b_down, const torch::stable::Tensor& w_up,
                                  const std::optional<torch::stable::Tensor>& b_up) {
  STD_TORCH_CHECK(x.dim() >= 1, "x must have a last dimension");
  STD_TORCH_CHECK(w_down.dim() == 2, "w_down must be [d, D], got ", shape_of(w_down));
  const int64_t width = x.size(x.dim() - 1), hidden = w_down.size(0);
  STD_TORCH_CHECK(width >= 1, "x must be [..., D] with D at least 1, got ", shape_of(x));
  const auto check = [&](const torch::stable::Tensor& t, const char* name, std::initializer_list<int64_t> shape) {
    check_form(t, name, shape, x.scalar_type());
    STD_TORCH_CHECK(beside(t, x), name, " must be on the device of x");
  };
  check(w_down, "w_down", {hidden, width});
  check(w_up, "w_up", {width, hidden});
  if (b_down.has_value()) check(*b_down, "b_down", {hidden});
  if (b_up.has_value()) check(*b_up, "b_up", {width});
  return {x.numel() / width, width, hidden};
}

// Whether t is [..., columns] with the rows of x.
inline bool has_rows_of(const torch::stable::Tensor& t, const torch::stable::Tensor& x, int64_t columns) {
  bool same = t.dim() == x.dim() && t.size(t.dim() - 1) == columns;
  for (int64_t i = 0; same && i + 1 < x.dim(); ++i) same = t.size(i) == x.size(i);
  return same;
}

// Raises unless t has the shape of x, and its dtype or, where that is a half type, float32.
inline void check_like_x(const torch::stable::Tensor& t, const char* name, const torch::stable::Tensor& x) {
  STD_TORCH_CHECK(has_rows_of(t, x, x.size(x.dim() - 1)), name, " must be ", shape_of(x), " as x is, got ",
                  shape_of(t));
  STD_TORCH_CHECK(same_or_float(t, x) && beside(t, x), name, " has the wrong dtype or device");
}

inline void check_norm(const torch::stable::Tensor& t, const char* name, const torch::stable::Tensor& x, double eps) {
  STD_TORCH_CHECK(eps >= 0, "eps must not be negative, got ", eps);
  const int64_t width = x.size(x.dim() - 1);
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == width, name, " must be [D] = [", width, "], got ", shape_of(t));
  STD_TORCH_CHECK(same_or_float(t, x) && beside(t, x), name, " has the wrong dtype or device");
}

inline AdapterSizes check_adapter_norm(const torch::stable::Tensor& residual, const torch::stable::Tensor& x,
                                       const torch::stable::Tensor& w_down,
                                       const std::optional<torch::stable::Tensor>& b_down,
                                       const torch::stable::Tensor& w_up,
                                       const std::optional<torch::stable::Tensor>& b_up,
                                       const torch::stable::Tensor& norm_weight, const torch::stable::Tensor& norm_bias,
                                       double eps) {
  const AdapterSizes sizes = check_adapter(x, w_down, b_down, w_up, b_up);
  check_like_x(residual, "residual", x);
  check_norm(norm_weight, "norm_weight", x, eps);
  check_norm(norm_bias, "norm_bias", x, eps);
  STD_TORCH_CHECK(norm_bias.scalar_type() == norm_weight.scalar_type(), "norm_bias must have the dtype of norm_weight");
  return sizes;
}

inline void check_output_mask(const std::vector<bool>& mask, size_t outputs) {
  STD_TORCH_CHECK(mask.size() == outputs, "output_mask must have ", outputs, " entries, got ", mask.size());
}

// Raises if `kept` is there and not what a forward on x kept, [..., columns].
inline void check_kept(const std::optional<torch::stable::Tensor>& kept, const char* name, int64_t columns,
                       const torch::stable::Tensor& x) {
  if (!kept.has_value()) return;
  STD_TORCH_CHECK(has_rows_of(*kept, x, columns), name, " must be [..., ", columns, "] with the rows of x, got ",
                  shape_of(*kept));
  STD_TORCH_CHECK(kept->scalar_type() == x.scalar_type() && beside(*kept, x), name, " must be like x");
}

inline AdapterSizes check_adapter_backward(const torch::stable::Tensor& grad_out, const torch::stable::Tensor& x,
                                           const torch::stable::Tensor& w_down,
                                           const std::optional<torch::stable::Tensor>& b_down,
                                           const torch::stable::Tensor& w_up, const std::vector<bool>& output_mask,
                                           const std::optional<torch::stable::Tensor>& hidden) {
  const AdapterSizes sizes = check_adapter(x, w_down, b_down, w_up, std::nullopt);
  check_like_x(grad_out, "grad_out", x);
  STD_TORCH_CHECK(grad_out.scalar_type() == x.scalar_type(), "grad_out must have the dtype of x");
  check_output_mask(output_mask, 5);
  check_kept(hidden, "hidden", sizes.hidden, x);
  return sizes;
}

inline AdapterSizes check_adapter_norm_backward(
    const torch::stable::Tensor& grad_out, const torch::stable::Tensor& x, const torch::stable::Tensor& w_down,
    const std::optional<torch::stable::Tensor>& b_down, const torch::stable::Tensor& w_up,
    const std::optional<torch::stable::Tensor>& b_up, const torch::stable::Tensor& norm_weight, double eps,
    const std::vector<bool>& output_mask, const std::optional<torch::stable::Tensor>& hidden,
    const std::optional<torch::stable::Tensor>& adapted) {
  const AdapterSizes sizes = check_adapter(x, w_down, b_down, w_up, b_up);
  check_like_x(grad_out, "grad_out", x);
  check_norm(norm_weight, "norm_weight", x, eps);
  check_output_mask(output_mask, 7);
  check_kept(hidden, "hidden", sizes.hidden, x);
  check_kept(adapted, "adapted", sizes.width, x);
  return sizes;
}

// Hidden numbers to be kept for the backward: [..., d]
inline torch::stable::Tensor new_hidden(const torch::stable::Tensor& x, const AdapterSizes& sizes) {
  std::vector<int64_t> shape(x.sizes().begin(), x.sizes().end());
  shape.back() = sizes.hidden;
  return torch::stable::new_empty(x, shape);
}

}  // namespace sfa
