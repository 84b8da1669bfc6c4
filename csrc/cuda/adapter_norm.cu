// fused_adapter_norm, fused_adapter_norm_keep and fused_adapter_norm_backward; the kernel and its floors are in
// adapter_norm_kernel.cuh.
//
// Where a tile's rows do not fit into shared memory whole, the adapter's kernel runs and torch's norm after it. The
// backward's first pass goes back through the norm and keeps the hidden numbers; the rest is the adapter's backward.
#include <array>

#include "adapter_host.h"
#include "common/adapter_torch.h"
#include "cuda/kernels.h"

namespace sfa::cuda {

using torch::stable::new_empty;

namespace {

struct NormTensors {
  const Tensor &x, &w_down;
  const std::optional<Tensor>& b_down;
  const Tensor& w_up;
  const std::optional<Tensor>& b_up;
  const Tensor& norm_weight;
};

// Runs the kernel with what `complete(args, plan)` adds to its arguments; false where it does not serve these.
template <class Complete>
bool run(const AdapterSizes& sizes, const NormTensors& in, double eps, const Tensor& stream_like,
         const std::optional<Tensor>& hidden, Complete&& complete) {
  const OnDevice on(in.x);
  return with_math(in.x.scalar_type(), [&](auto math, const Device& device) {
    using Math = decltype(math);
    using T = typename Math::Number;
    const auto plan = plan_adapter<T>(device, sizes.rows, sizes.width, sizes.hidden, true, false);
    if (!plan) return false;
    const Tensor x = ready(in.x), down = ready(in.w_down), up = ready(in.w_up), weight = ready(in.norm_weight);
    const std::optional<Tensor> bias_down = ready(in.b_down), bias_up = ready(in.b_up);
    AdapterNormArgs<T> args{};
    args.adapter.rows = sizes.rows;
    args.adapter.width = static_cast<int>(sizes.width);
    args.adapter.hidden = static_cast<int>(sizes.hidden);
    args.adapter.x = numbers<T>(x);
    args.adapter.w_down = numbers<T>(down);
    args.adapter.b_down = numbers<T>(bias_down);
    args.adapter.w_up = numbers<T>(up);
    args.adapter.b_up = numbers<T>(bias_up);
    args.adapter.hidden_step = sizes.hidden;
    if (hidden) args.adapter.hidden_out = mutable_numbers<T>(*hidden);
    args.wide_stream = stream_like.scalar_type() == ScalarType::Float;
    args.wide_norm = weight.scalar_type() == ScalarType::Float;
    args.norm_weight = weight.const_data_ptr();
    args.eps = static_cast<float>(eps);
    complete(args, *plan);
    launch_adapter_norm<Math>(*plan, args, on.stream());
    return true;
  });
}

bool forward(const AdapterSizes& sizes, const NormTensors& in, const Tensor& residual, const Tensor& norm_bias,
             double eps, const Tensor& out, const std::optional<Tensor>& hidden) {
  if (sizes.rows == 0) return true;
  const Tensor residual_rows = ready(residual),
               bias = ready(torch::stable::to(norm_bias, in.norm_weight.scalar_type()));
  return run(sizes, in, eps, residual, hidden, [&](auto& args, const AdapterPlan&) {
    args.residual = residual_rows.const_data_ptr();
    args.norm_bias = bias.const_data_ptr();
    args.out = out.mutable_data_ptr();
  });
}

// See by_torch in adapter.cu.
Tensor norm_by_torch(const Tensor& residual, const Tensor& y, const Tensor& norm_weight, const Tensor& norm_bias,
                     double eps) {
  return torch_norm(ready(residual), y, ready(norm_weight), ready(norm_bias), eps);
}

template <class T>
void sum_to(const Tensor& parts, int64_t tiles, int64_t width, int which, const Tensor& out, cudaStream_t stream) {
  launch_sum_parts(numbers<float>(parts) + which * width, tiles, 2 * width, static_cast<int>(width),
                   mutable_numbers<T>(out), stream);
}

// out [D] = the sum over tiles of parts [tiles, 2, D] at [:, which]
void sum_tiles(const Tensor& parts, int64_t tiles, int64_t width, int which, const Tensor& out) {
  const OnDevice on(out);
  if (out.scalar_type() == ScalarType::Half) return sum_to<Half>(parts, tiles, width, which, out, on.stream());
  if (out.scalar_type() == ScalarType::BFloat16) return sum_to<BFloat16>(parts, tiles, width, which, out, on.stream());
  sum_to<float>(parts, tiles, width, which, out, on.stream());
}

}  // namespace

Tensor fused_adapter_norm(const Tensor& residual,  // [..., D], float32 where the rest is of a half type, or like it
                          const Tensor& x,         // [..., D]
                          const Tensor& w_down,    // [d, D]
                          const std::optional<Tensor>& b_down,  // [d]
                          const Tensor& w_up,                   // [D, d]
                          const std::optional<Tensor>& b_up,    // [D]
                          const Tensor& norm_weight,            // [D], float32 or like x
                          const Tensor& norm_bias,              // [D], float32 or like x
                          double eps) {
  const AdapterSizes sizes = check_adapter_norm(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps);
  const Tensor out = new_empty(residual, residual.sizes());
  if (forward(sizes, {x, w_down, b_down, w_up, b_up, norm_weight}, residual, norm_bias, eps, out, std::nullopt))
    return out;
  return norm_by_torch(residual, fused_adapter(x, w_down, b_down, w_up, b_up), norm_weight, norm_bias, eps);
}

std::tuple<Tensor, Tensor, Tensor> fused_adapter_norm_keep(const Tensor& residual, const Tensor& x,
                                                           const Tensor& w_down, const std::optional<Tensor>& b_down,
                                                           const Tensor& w_up, const std::optional<Tensor>& b_up,
                                                           const Tensor& norm_weight, const Tensor& norm_bias,
                                                           double eps, bool keep_adapted) {
  const AdapterSizes sizes = check_adapter_norm(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps);
  const Tensor nothing = new_empty(x, {0});
  if (!keep_adapted) {
    const Tensor out = new_empty(residual, residual.sizes()), hidden = new_hidden(x, sizes);
    if (forward(sizes, {x, w_down, b_down, w_up, b_up, norm_weight}, residual, norm_bias, eps, out, hidden))
      return {out, hidden, nothing};
  }
  const auto [adapted, hidden] = fused_adapter_keep(x, w_down, b_down, w_up, b_up);
  const Tensor out = norm_by_torch(residual, adapted, norm_weight, norm_bias, eps);
  return {out, hidden, keep_adapted ? adapted : nothing};
}

// What the norm worked on is computed again even where it was kept: x is read anyhow.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> fused_adapter_norm_backward(
    const Tensor& grad_out,               // [..., D], float32 where the rest is of a half type, or like it
    const Tensor& x,                      // [..., D]
    const Tensor& w_down,                 // [d, D]
    const std::optional<Tensor>& b_down,  // [d]
    const Tensor& w_up,                   // [D, d]
    const std::optional<Tensor>& b_up,    // [D]
    const Tensor& norm_weight,            // [D], float32 or like x
    double eps,
    std::vector<bool> output_mask,           // x, w_down, b_down, w_up, b_up, norm_weight, norm_bias
    const std::optional<Tensor>& hidden,     // [..., d] and
    const std::optional<Tensor>& adapted) {  // [..., D], what fused_adapter_norm_keep kept
  const AdapterSizes sizes = check_adapter_norm_backward(grad_out, x, w_down, b_down, w_up, b_up, norm_weight, eps,
                                                         output_mask, hidden, adapted);
  const auto by_torch = [&] {
    return torch_adapter_norm_backward(ready(grad_out), ready(x), ready(w_down), ready(b_down), ready(w_up),
                                       ready(b_up), ready(norm_weight), eps, output_mask, ready(hidden),
                                       ready(adapted));
  };
  if (sizes.rows == 0) return by_torch();

  const bool wants_norm = output_mask[5] || output_mask[6];
  const Tensor grad_rows = ready(grad_out), grad_sum = new_empty(x, x.sizes());
  const std::optional<Tensor> kept = hidden ? hidden : std::optional<Tensor>(new_hidden(x, sizes));
  std::optional<Tensor> parts;
  int64_t tiles = 0;
  const bool served = run(sizes, {x, w_down, b_down, w_up, b_up, norm_weight}, eps, grad_out,
                          hidden ? std::nullopt : kept, [&](auto& args, const AdapterPlan& plan) {
                            tiles = plan.layout.tiles;
                            args.grad_out = grad_rows.const_data_ptr();
                            args.grad_sum = static_cast<decltype(args.grad_sum)>(grad_sum.mutable_data_ptr());
                            if (!wants_norm) return;
                            parts = new_empty(x, {tiles, 2, sizes.width}, ScalarType::Float);
                            args.norm_parts = mutable_numbers<float>(*parts);
                          });
  if (!served) return by_torch();

  const std::vector<bool> of_adapter(output_mask.begin(), output_mask.begin() + 5);
  const auto grads = fused_adapter_backward(grad_sum, x, w_down, b_down, w_up, of_adapter, kept);
  const auto of_norm = [&](int which) {
    const Tensor out = new_empty(norm_weight, {output_mask[5 + which] ? sizes.width : 0});
    if (output_mask[5 + which]) sum_tiles(*parts, tiles, sizes.width, which, out);
    return out;
  };
  return std::tuple_cat(grads, std::tuple(of_norm(0), of_norm(1)));
}

}  // namespace sfa::cuda
