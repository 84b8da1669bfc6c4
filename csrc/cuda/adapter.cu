// fused_adapter, fused_adapter_keep and fused_adapter_backward; the kernel and its floors are in adapter_kernel.cuh.
//
// The backward: one pass of the same kernel gives the gradient of x and of the hidden numbers, and these; the weight
// gradients are matrix products over the rows, which torch computes in a fixed order, and sums.
#include <array>

#include "adapter_host.h"
#include "common/adapter_torch.h"
#include "cuda/kernels.h"

namespace sfa::cuda {

using torch::stable::new_empty;

namespace {

template <class T>
AdapterArgs<T> arguments(const AdapterSizes& sizes, const Tensor& x, const Tensor& w_down,
                         const std::optional<Tensor>& b_down, const Tensor& w_up, const std::optional<Tensor>& b_up) {
  AdapterArgs<T> args{};
  args.rows = sizes.rows;
  args.width = static_cast<int>(sizes.width);
  args.hidden = static_cast<int>(sizes.hidden);
  args.x = numbers<T>(x);
  args.w_down = numbers<T>(w_down);
  args.b_down = numbers<T>(b_down);
  args.w_up = numbers<T>(w_up);
  args.b_up = numbers<T>(b_up);
  args.hidden_step = args.mask_step = sizes.hidden;
  return args;
}

// Fills `out` and `hidden`, those of them that are there; false where no kernel serves these sizes and numbers.
bool forward(const AdapterSizes& sizes, const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down,
             const Tensor& w_up, const std::optional<Tensor>& b_up, const std::optional<Tensor>& out,
             const std::optional<Tensor>& hidden) {
  if (sizes.rows == 0) return true;
  const OnDevice on(x);
  return with_math(x.scalar_type(), [&](auto math, const Device& device) {
    using Math = decltype(math);
    using T = typename Math::Number;
    const auto plan = plan_adapter<T>(device, sizes.rows, sizes.width, sizes.hidden, false, false);
    if (!plan) return false;
    const Tensor rows = ready(x), down = ready(w_down), up = ready(w_up);
    const std::optional<Tensor> bias_down = ready(b_down), bias_up = ready(b_up);
    AdapterArgs<T> args = arguments<T>(sizes, rows, down, bias_down, up, bias_up);
    if (out) args.out = mutable_numbers<T>(*out);
    args.hidden_only = !out.has_value();
    if (hidden) args.hidden_out = mutable_numbers<T>(*hidden);
    launch_adapter<Math>(*plan, args, on.stream());
    return true;
  });
}

// Fills grad_x, grad_hidden and the forward's hidden numbers, those that are there; `kept` are hidden numbers that
// need not be computed again.
bool backward(const AdapterSizes& sizes, const Tensor& grad_rows, const Tensor& x, const Tensor& w_down,
              const std::optional<Tensor>& b_down, const Tensor& w_up, const std::optional<Tensor>& kept,
              const std::optional<Tensor>& grad_x, const std::optional<Tensor>& grad_hidden,
              const std::optional<Tensor>& hidden) {
  const OnDevice on(x);
  return with_math(x.scalar_type(), [&](auto math, const Device& device) {
    using Math = decltype(math);
    using T = typename Math::Number;
    const auto plan = plan_adapter<T>(device, sizes.rows, sizes.width, sizes.hidden, false, !kept.has_value());
    if (!plan) return false;
    const Tensor rows = ready(x), down = ready(w_down), up_transposed = ready_transpose(w_up),
                 down_transposed = ready_transpose(w_down);
    const std::optional<Tensor> bias_down = ready(b_down), mask = ready(kept);
    AdapterArgs<T> args = arguments<T>(sizes, grad_rows, up_transposed, std::nullopt, down_transposed, std::nullopt);
    args.masked = true;
    args.mask = numbers<T>(mask);
    args.mask_x = numbers<T>(rows);
    args.mask_w_down = numbers<T>(down);
    args.mask_b_down = numbers<T>(bias_down);
    if (hidden) args.mask_out = mutable_numbers<T>(*hidden);
    if (grad_hidden) args.hidden_out = mutable_numbers<T>(*grad_hidden);
    if (grad_x) args.out = mutable_numbers<T>(*grad_x);
    args.hidden_only = !grad_x.has_value();
    launch_adapter<Math>(*plan, args, on.stream());
    return true;
  });
}

// What torch computes where no kernel serves. Its products choose the order of their sums by strides and alignment too;
// a result shall depend on numbers and sizes alone.
std::tuple<Tensor, Tensor> by_torch(const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down,
                                    const Tensor& w_up, const std::optional<Tensor>& b_up) {
  return torch_adapter(ready(x), ready(w_down), ready(b_down), ready(w_up), ready(b_up));
}

// a^T b over the rows
Tensor outer(const Tensor& a, const Tensor& b) {
  return torch::stable::contiguous(torch::stable::matmul(torch::stable::transpose(a, 0, 1), b));
}

Tensor column_sums(const Tensor& t) {
  const std::array<int64_t, 1> dim{0};
  return torch::stable::sum(t, torch::headeronly::IntHeaderOnlyArrayRef(dim));
}

}  // namespace

Tensor fused_adapter(const Tensor& x,                      // [..., D]
                     const Tensor& w_down,                 // [d, D]
                     const std::optional<Tensor>& b_down,  // [d]
                     const Tensor& w_up,                   // [D, d]
                     const std::optional<Tensor>& b_up) {  // [D]
  const AdapterSizes sizes = check_adapter(x, w_down, b_down, w_up, b_up);
  const Tensor out = new_empty(x, x.sizes());
  if (forward(sizes, x, w_down, b_down, w_up, b_up, out, std::nullopt)) return out;
  return std::get<0>(by_torch(x, w_down, b_down, w_up, b_up));
}

std::tuple<Tensor, Tensor> fused_adapter_keep(const Tensor& x, const Tensor& w_down,
                                              const std::optional<Tensor>& b_down, const Tensor& w_up,
                                              const std::optional<Tensor>& b_up) {
  const AdapterSizes sizes = check_adapter(x, w_down, b_down, w_up, b_up);
  const Tensor out = new_empty(x, x.sizes()), hidden = new_hidden(x, sizes);
  if (forward(sizes, x, w_down, b_down, w_up, b_up, out, hidden)) return {out, hidden};
  return by_torch(x, w_down, b_down, w_up, b_up);
}

// What output_mask leaves out is an empty tensor.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fused_adapter_backward(
    const Tensor& given_grad_out,                 // [..., D]
    const Tensor& given_x,                        // [..., D]
    const Tensor& w_down,                         // [d, D]
    const std::optional<Tensor>& b_down,          // [d]
    const Tensor& w_up,                           // [D, d]
    std::vector<bool> output_mask,                // x, w_down, b_down, w_up, b_up
    const std::optional<Tensor>& given_hidden) {  // [..., d], what fused_adapter_keep kept
  const AdapterSizes sizes =
      check_adapter_backward(given_grad_out, given_x, w_down, b_down, w_up, output_mask, given_hidden);
  const Tensor grad_out = ready(given_grad_out), x = ready(given_x);
  const std::optional<Tensor> hidden = ready(given_hidden);
  const auto by_torch = [&] {
    return torch_adapter_backward(grad_out, x, ready(w_down), ready(b_down), ready(w_up), output_mask, hidden);
  };
  if (sizes.rows == 0) return by_torch();

  const auto [rows, width, d] = sizes;
  const auto as_rows = [rows = rows](const Tensor& t, int64_t n) { return torch::stable::reshape(t, {rows, n}); };
  const auto rows_if = [&, rows = rows](bool wanted, int64_t n) {
    return wanted ? std::optional<Tensor>(new_empty(x, {rows, n})) : std::nullopt;
  };
  const std::optional<Tensor> grad_x = rows_if(output_mask[0], width),
                              grad_hidden = rows_if(output_mask[1] || output_mask[2], d),
                              activation = rows_if(output_mask[3] && !hidden, d);
  const Tensor grad_rows = as_rows(grad_out, width);
  bool served = true;
  if (grad_x || grad_hidden)
    served = backward(sizes, grad_rows, x, w_down, b_down, w_up, hidden, grad_x, grad_hidden, activation);
  else if (activation)
    served = forward(sizes, x, w_down, b_down, w_up, std::nullopt, std::nullopt, activation);
  if (!served) return by_torch();

  const auto nothing = [&] { return new_empty(x, {0}); };
  return {grad_x ? torch::stable::view(*grad_x, x.sizes()) : nothing(),
          output_mask[1] ? outer(*grad_hidden, as_rows(x, width)) : nothing(),
          output_mask[2] ? column_sums(*grad_hidden) : nothing(),
          output_mask[3] ? outer(grad_rows, hidden ? as_rows(*hidden, d) : *activation) : nothing(),
          output_mask[4] ? column_sums(grad_rows) : nothing()};
}

}  // namespace sfa::cuda
