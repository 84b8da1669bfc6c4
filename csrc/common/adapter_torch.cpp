#include "adapter_torch.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>

#include "common/call.h"

namespace sfa {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::to;

namespace {

// Calls an operator of torch that returns kResults tensors.
template <size_t kResults, class... Args>
std::array<Tensor, kResults> call_all(const char* name, const char* overload, const Args&... args) {
  std::array<StableIValue, std::max(kResults, sizeof...(Args))> stack{torch::stable::detail::from(args)...};
  call_operator(name, overload, stack.data());
  std::array<Tensor, kResults> results;
  for (size_t i = 0; i < kResults; ++i) results[i] = torch::stable::detail::to<Tensor>(stack[i]);
  return results;
}

template <class... Args>
Tensor call(const char* name, const char* overload, const Args&... args) {
  return call_all<1>(name, overload, args...)[0];
}

Tensor linear(const Tensor& x, const Tensor& w, const std::optional<Tensor>& b) {
  return call("aten::linear", "", x, w, b);
}

Tensor add(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b, -1.0); }

Tensor activation(const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down) {
  return call("aten::relu", "", linear(x, w_down, b_down));
}

}  // namespace

std::tuple<Tensor, Tensor> torch_adapter(const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down,
                                         const Tensor& w_up, const std::optional<Tensor>& b_up) {
  const Tensor hidden = activation(x, w_down, b_down);
  return {add(x, linear(hidden, w_up, b_up)), hidden};
}

Tensor torch_norm(const Tensor& residual, const Tensor& y, const Tensor& norm_weight, const Tensor& norm_bias,
                  double eps) {
  const ScalarType dtype = norm_weight.scalar_type();
  const std::array<int64_t, 1> width{norm_weight.size(0)};
  const Tensor normed =
      call("aten::layer_norm", "", to(y, dtype), IntHeaderOnlyArrayRef(width), std::optional<Tensor>(norm_weight),
           std::optional<Tensor>(to(norm_bias, dtype)), eps, false);
  return to(add(residual, normed), residual.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> torch_adapter_norm(const Tensor& residual, const Tensor& x, const Tensor& w_down,
                                                      const std::optional<Tensor>& b_down, const Tensor& w_up,
                                                      const std::optional<Tensor>& b_up, const Tensor& norm_weight,
                                                      const Tensor& norm_bias, double eps) {
  const auto [y, hidden] = torch_adapter(x, w_down, b_down, w_up, b_up);
  return {torch_norm(residual, y, norm_weight, norm_bias, eps), hidden, y};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> torch_adapter_backward(
    const Tensor& grad_out, const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down,
    const Tensor& w_up, const std::vector<bool>& output_mask, const std::optional<Tensor>& hidden) {
  const auto rows = [](const Tensor& t, int64_t width) {
    return torch::stable::reshape(t, {width == 0 ? 0 : t.numel() / width, width});
  };
  const Tensor g = rows(grad_out, w_down.size(1)), x_rows = rows(x, w_down.size(1));
  const Tensor zero = torch::stable::new_zeros(x, {1});
  const auto nothing = [&] { return torch::stable::new_empty(x, {0}); };
  const auto transposed = [](const Tensor& t) { return torch::stable::transpose(t, 0, 1); };
  const Tensor h = hidden.has_value() ? rows(*hidden, w_down.size(0)) : activation(x_rows, w_down, b_down);
  const Tensor dead = call("aten::le", "Tensor", h, zero);
  const Tensor grad_hidden = call("aten::where", "self", dead, zero, torch::stable::matmul(g, w_up));
  const auto column_sums = [](const Tensor& t) {
    const std::array<int64_t, 1> dim{0};
    return torch::stable::sum(t, IntHeaderOnlyArrayRef(dim));
  };
  const auto contiguous = [](const Tensor& t) { return torch::stable::contiguous(t); };
  return {
      output_mask[0] ? torch::stable::reshape(add(g, torch::stable::matmul(grad_hidden, w_down)), x.sizes())
                     : nothing(),
      output_mask[1] ? contiguous(torch::stable::matmul(transposed(grad_hidden), x_rows)) : nothing(),
      output_mask[2] ? column_sums(grad_hidden) : nothing(),
      output_mask[3] ? contiguous(torch::stable::matmul(transposed(g), h)) : nothing(),
      output_mask[4] ? column_sums(g) : nothing(),
  };
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> torch_adapter_norm_backward(
    const Tensor& grad_out, const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down,
    const Tensor& w_up, const std::optional<Tensor>& b_up, const Tensor& norm_weight, double eps,
    const std::vector<bool>& output_mask, const std::optional<Tensor>& hidden, const std::optional<Tensor>& adapted) {
  // Torch sums the gradients of the norm's weights in their own type, which half types are too short for.
  const ScalarType dtype = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const std::array<int64_t, 1> shape{norm_weight.size(0)};
  const std::array<bool, 3> all{true, true, true};
  const IntHeaderOnlyArrayRef width(shape);
  const Tensor h = hidden.has_value() ? *hidden : activation(x, w_down, b_down);
  const Tensor y = to(adapted.has_value() ? *adapted : add(x, linear(h, w_up, b_up)), dtype);
  // The bias moves neither the moments nor a gradient; torch only looks at its presence.
  const std::optional<Tensor> weight(to(norm_weight, dtype));
  const auto normed = call_all<3>("aten::native_layer_norm", "", y, width, weight, weight, eps);
  const auto grads =
      call_all<3>("aten::native_layer_norm_backward", "", to(torch::stable::contiguous(grad_out), dtype), y, width,
                  normed[1], normed[2], weight, weight, torch::headeronly::HeaderOnlyArrayRef<bool>(all));
  const auto [grad_x, grad_down, grad_b_down, grad_up, grad_b_up] =
      torch_adapter_backward(to(grads[0], x.scalar_type()), x, w_down, b_down, w_up, output_mask, h);
  const auto norm_gradient = [&](bool wanted, const Tensor& grad) {
    return wanted ? to(grad, norm_weight.scalar_type()) : torch::stable::new_empty(norm_weight, {0});
  };
  return {grad_x,
          grad_down,
          grad_b_down,
          grad_up,
          grad_b_up,
          norm_gradient(output_mask[5], grads[1]),
          norm_gradient(output_mask[6], grads[2])};
}

}  // namespace sfa
