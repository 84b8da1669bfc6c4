// fused_adapter_backward and fused_adapter_norm_backward: one pass over the rows gives the hidden numbers, their
// gradient and that of x; the weight gradients are products over the rows, cut into parts whose number depends on the
// shape alone.
#include <algorithm>

#include "adapter.h"
#include "common/adapter_torch.h"
#include "isa.h"
#include "kernels.h"

namespace sfa::cpu {

using torch::headeronly::ScalarType;
using torch::stable::contiguous;
using torch::stable::new_empty;

namespace {

// Rows are cut into this many parts, summed one after the other at the end: enough of them to share out, and to keep
// sums of float short, yet few enough that the parts stay small.
struct Parts {
  int64_t rows, count;
  explicit Parts(int64_t rows) : rows(rows), count(std::clamp<int64_t>(rows / 2048, 1, 16)) {}
  int64_t begin(int64_t part) const { return part * rows / count; }
};

// out [n], of the kernels' type, becomes the sum of parts acc [count, stride].
void sum_parts(const AdapterKernels& k, const void* parts, int64_t count, int64_t stride, const Tensor& out) {
  void* to = out.mutable_data_ptr();
  torch::stable::parallel_for(0, out.numel(), 1 << 15,
                              [&](int64_t begin, int64_t end) { k.finish(parts, count, stride, begin, end, to); });
}

// out = a^T b for a [N, I], b [N, J]
void outer(const AdapterKernels& k, const void* a, const void* b, int64_t rows, const Tensor& out) {
  const int64_t n_i = out.size(0), n_j = out.size(1);
  const Parts parts(rows);
  const int64_t blocks_i = (n_i + k.outer_rows - 1) / k.outer_rows;
  int64_t columns = k.outer_columns, blocks_j = 0, tasks = 0;
  for (const int64_t threads = torch::stable::get_num_threads();; columns /= 2) {
    blocks_j = (n_j + columns - 1) / columns;
    tasks = parts.count * blocks_i * blocks_j;
    if (tasks >= threads || columns <= k.panel) break;
  }
  const int64_t part_bytes = n_i * n_j * k.acc_bytes;
  const Buffer sums(parts.count * part_bytes);
  torch::stable::parallel_for(0, tasks, 1, [&](int64_t first, int64_t last) {
    const Buffer scratch(k.outer_scratch());
    for (int64_t task = first; task < last; ++task) {
      const int64_t part = task / (blocks_i * blocks_j);
      const int64_t i = task / blocks_j % blocks_i * k.outer_rows, j = task % blocks_j * columns;
      const AdapterOuter args{a,
                              n_i,
                              b,
                              n_j,
                              static_cast<char*>(sums.data()) + part * part_bytes,
                              parts.count == 1 ? out.mutable_data_ptr() : nullptr};
      k.outer(args, parts.begin(part), parts.begin(part + 1), i, std::min(i + k.outer_rows, n_i), j,
              std::min(j + columns, n_j), scratch.data());
    }
  });
  if (parts.count > 1) sum_parts(k, sums.data(), parts.count, n_i * n_j, out);
}

// out [n] = sums of the columns of v [N, n]
void column_sums(const AdapterKernels& k, const void* v, int64_t rows, const Tensor& out) {
  const int64_t n = out.numel();
  const Parts parts(rows);
  const Buffer sums(parts.count * n * k.acc_bytes);
  torch::stable::parallel_for(0, parts.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part)
      k.column_sums(static_cast<const char*>(v) + parts.begin(part) * n * k.number_bytes,
                    parts.begin(part + 1) - parts.begin(part), n,
                    static_cast<char*>(sums.data()) + part * n * k.acc_bytes);
  });
  sum_parts(k, sums.data(), parts.count, n, out);
}

struct Wanted {
  bool x, w_down, b_down, w_up, b_up;
  explicit Wanted(const std::vector<bool>& mask)
      : x(mask[0]), w_down(mask[1]), b_down(mask[2]), w_up(mask[3]), b_up(mask[4]) {}
  bool hidden_gradient() const { return w_down || b_down; }
};

struct Gradients {
  Tensor x, w_down, b_down, w_up, b_up;
  Gradients(const Wanted& wanted, const AdapterSizes& sizes, const Tensor& like) {
    x = wanted.x ? new_empty(like, like.sizes()) : new_empty(like, {0});
    w_down = wanted.w_down ? new_empty(like, {sizes.hidden, sizes.width}) : new_empty(like, {0});
    b_down = new_empty(like, {wanted.b_down ? sizes.hidden : 0});
    w_up = wanted.w_up ? new_empty(like, {sizes.width, sizes.hidden}) : new_empty(like, {0});
    b_up = new_empty(like, {wanted.b_up ? sizes.width : 0});
  }
};

std::optional<Tensor> in_rows(const std::optional<Tensor>& t) {
  return t.has_value() ? std::optional<Tensor>(contiguous(*t)) : std::nullopt;
}

void zero(std::initializer_list<Tensor> tensors) {
  for (Tensor t : tensors) torch::stable::zero_(t);
}

// Fills what is wanted. `args` comes with x and grad_out, and for the norm with all that is its own.
void run(AdapterBackward args, AdapterKernels::Backward* kernel, const AdapterKernels& k, const AdapterSizes& sizes,
         const Wanted& wanted, const Tensor& w_down, const std::optional<Tensor>& b_down, const Tensor& w_up,
         const std::optional<Tensor>& hidden_rows, const Gradients& out) {
  const auto [rows, width, hidden] = sizes;
  if (rows == 0) return zero({out.w_down, out.b_down, out.w_up, out.b_up});
  const bool norm = args.grad_sum != nullptr;
  const bool kept = hidden_rows.has_value();
  const Buffer activation = wanted.w_up && !kept ? Buffer(rows * hidden * k.number_bytes) : Buffer();
  const Buffer grad_hidden = wanted.hidden_gradient() ? Buffer(rows * hidden * k.number_bytes) : Buffer();
  if (norm || wanted.x || wanted.hidden_gradient() || wanted.w_up) {
    const Buffer down = kept ? Buffer() : pack_transposed(k, w_down);
    const Buffer up_plain = pack_plain(k, w_up), down_plain = pack_plain(k, w_down);
    const Buffer bias_down = widened(k, b_down, hidden);
    args.width = width;
    args.hidden = hidden;
    args.down = down.data();
    args.bias_down = bias_down.data();
    args.up_plain = up_plain.data();
    args.down_plain = down_plain.data();
    args.kept = kept ? hidden_rows->const_data_ptr() : nullptr;
    args.activation = activation.data();
    args.grad_hidden = grad_hidden.data();
    args.grad_x = wanted.x ? out.x.mutable_data_ptr() : nullptr;
    for_rows(k, sizes, false, [&](int64_t begin, int64_t end, void* scratch) { kernel(args, begin, end, scratch); });
  }
  const void* grad = norm ? args.grad_sum : args.grad_out;
  if (wanted.w_down) outer(k, grad_hidden.data(), args.x, rows, out.w_down);
  if (wanted.b_down) column_sums(k, grad_hidden.data(), rows, out.b_down);
  if (wanted.w_up) outer(k, grad, kept ? hidden_rows->const_data_ptr() : activation.data(), rows, out.w_up);
  if (wanted.b_up) column_sums(k, grad, rows, out.b_up);
}

}  // namespace

// What output_mask leaves out is an empty tensor.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fused_adapter_backward(
    const Tensor& grad_out,                 // [..., D]
    const Tensor& x,                        // [..., D]
    const Tensor& w_down,                   // [d, D]
    const std::optional<Tensor>& b_down,    // [d]
    const Tensor& w_up,                     // [D, d]
    std::vector<bool> output_mask,          // x, w_down, b_down, w_up, b_up
    const std::optional<Tensor>& hidden) {  // [..., d], what fused_adapter_keep kept
  const AdapterSizes sizes = check_adapter_backward(grad_out, x, w_down, b_down, w_up, output_mask, hidden);
  if (leave_to_torch(x.scalar_type()))
    return torch_adapter_backward(grad_out, x, w_down, b_down, w_up, output_mask, hidden);
  const Wanted wanted(output_mask);
  const AdapterKernels& k = product_kernels(x.scalar_type());
  Gradients out(wanted, sizes, x);
  const Tensor x_rows = contiguous(x), grad_rows = contiguous(grad_out);
  AdapterBackward args{};
  args.x = x_rows.const_data_ptr();
  args.grad_out = grad_rows.const_data_ptr();
  run(args, k.backward, k, sizes, wanted, w_down, b_down, w_up, in_rows(hidden), out);
  return {out.x, out.w_down, out.b_down, out.w_up, out.b_up};
}

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
  if (leave_to_torch(x.scalar_type()))
    return torch_adapter_norm_backward(grad_out, x, w_down, b_down, w_up, b_up, norm_weight, eps, output_mask, hidden,
                                       adapted);
  const int64_t rows = sizes.rows, width = sizes.width;
  const Wanted wanted(output_mask);
  const bool wants_norm = output_mask[5] || output_mask[6];
  const AdapterKernels& k = product_kernels(x.scalar_type());
  Gradients out(wanted, sizes, x);
  const Tensor grad_norm_weight = new_empty(norm_weight, {output_mask[5] ? width : 0});
  const Tensor grad_norm_bias = new_empty(norm_weight, {output_mask[6] ? width : 0});

  const int64_t tiles = (rows + k.tile_rows - 1) / k.tile_rows;
  const Tensor x_rows = contiguous(x), grad_rows = contiguous(grad_out);
  const std::optional<Tensor> adapted_rows = in_rows(adapted);
  const bool kept = adapted_rows.has_value();
  const Buffer up = kept ? Buffer() : pack_transposed(k, w_up), bias_up = widened(k, b_up, width),
               weight = widened(k, norm_weight, width);
  const Buffer grad_sum(rows * width * k.number_bytes);
  const Buffer parts = wants_norm ? Buffer(tiles * 2 * width * k.acc_bytes) : Buffer();
  AdapterBackward args{};
  args.x = x_rows.const_data_ptr();
  args.grad_out = grad_rows.const_data_ptr();
  args.up = up.data();
  args.bias_up = bias_up.data();
  args.adapted = kept ? adapted_rows->const_data_ptr() : nullptr;
  args.norm_weight = weight.data();
  args.eps = eps;
  args.grad_sum = grad_sum.data();
  args.norm_parts = parts.data();
  auto* kernel = grad_out.scalar_type() == x.scalar_type() ? k.backward_norm : k.backward_norm_float;
  run(args, kernel, k, sizes, wanted, w_down, b_down, w_up, in_rows(hidden), out);
  const AdapterKernels& of_norm = adapter_kernels(norm_weight.scalar_type());
  const auto finish_norm = [&](int64_t which, const Tensor& to) {
    if (rows == 0) return zero({to});
    sum_parts(of_norm, static_cast<char*>(parts.data()) + which * width * k.acc_bytes, tiles, 2 * width, to);
  };
  if (output_mask[5]) finish_norm(0, grad_norm_weight);
  if (output_mask[6]) finish_norm(1, grad_norm_bias);
  return {out.x, out.w_down, out.b_down, out.w_up, out.b_up, grad_norm_weight, grad_norm_bias};
}

}  // namespace sfa::cpu
