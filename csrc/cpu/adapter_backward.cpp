// fused_adapter_backward: one pass over the rows gives the hidden numbers, their gradient and that of x; the weight
// gradients are products over the rows, cut into parts whose number depends on the shape alone.
#include <algorithm>

#include "adapter.h"
#include "adapter_torch.h"
#include "common/check.h"
#include "isa.h"
#include "kernels.h"

namespace sfa::cpu {

using torch::headeronly::ScalarType;
using torch::stable::contiguous;
using torch::stable::new_empty;

namespace {

// Rows are cut into this many parts, summed one after the other at the end: enough of them to share out, and to keep
// sums of float short, yet few enough that the parts stay small.
int64_t part_count(int64_t rows) { return std::clamp<int64_t>(rows / 2048, 1, 16); }

struct Parts {
  int64_t count, rows;
  int64_t begin(int64_t part) const { return part * rows / count; }
};

// T of the sum of parts acc [count, n]
Tensor sum_parts(const AdapterKernels& k, const Tensor& parts, int64_t count, const Tensor& like,
                 std::initializer_list<int64_t> shape) {
  Tensor out = new_empty(like, shape);
  const int64_t n = out.numel();
  const void* from = parts.const_data_ptr();
  void* to = out.mutable_data_ptr();
  torch::stable::parallel_for(0, n, 1 << 15,
                              [&](int64_t begin, int64_t end) { k.finish(from, count, n, begin, end, to); });
  return out;
}

// a^T b for a [N, I], b [N, J]
Tensor outer(const AdapterKernels& k, const Tensor& a, const Tensor& b, int64_t rows) {
  const int64_t n_i = a.size(-1), n_j = b.size(-1);
  const Parts parts{part_count(rows), rows};
  const int64_t blocks_i = (n_i + k.outer_rows - 1) / k.outer_rows;
  const int64_t blocks_j = (n_j + k.outer_columns - 1) / k.outer_columns;
  const Tensor sums = new_bytes(a, parts.count * n_i * n_j * k.acc_bytes);
  const AdapterOuter args{a.const_data_ptr(), n_i, b.const_data_ptr(), n_j, sums.mutable_data_ptr()};
  torch::stable::parallel_for(0, parts.count * blocks_i * blocks_j, 1, [&](int64_t first, int64_t last) {
    const Scratch scratch(k.outer_scratch());
    for (int64_t task = first; task < last; ++task) {
      const int64_t part = task / (blocks_i * blocks_j);
      const int64_t i = task / blocks_j % blocks_i * k.outer_rows, j = task % blocks_j * k.outer_columns;
      AdapterOuter own = args;
      own.c = static_cast<char*>(args.c) + part * n_i * n_j * k.acc_bytes;
      k.outer(own, parts.begin(part), parts.begin(part + 1), i, std::min(i + k.outer_rows, n_i), j,
              std::min(j + k.outer_columns, n_j), scratch.data());
    }
  });
  return sum_parts(k, sums, parts.count, a, {n_i, n_j});
}

// Sums of the columns of v [N, n]
Tensor column_sums(const AdapterKernels& k, const Tensor& v, int64_t rows) {
  const int64_t n = v.size(-1);
  const Parts parts{part_count(rows), rows};
  const Tensor sums = new_bytes(v, parts.count * n * k.acc_bytes);
  const char* from = static_cast<const char*>(v.const_data_ptr());
  char* to = static_cast<char*>(sums.mutable_data_ptr());
  torch::stable::parallel_for(0, parts.count, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part)
      k.column_sums(from + parts.begin(part) * n * k.number_bytes, parts.begin(part + 1) - parts.begin(part), n,
                    to + part * n * k.acc_bytes);
  });
  return sum_parts(k, sums, parts.count, v, {n});
}

}  // namespace

// What output_mask leaves out is an empty tensor.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fused_adapter_backward(
    const Tensor& grad_out,               // [..., D]
    const Tensor& x,                      // [..., D]
    const Tensor& w_down,                 // [d, D]
    const std::optional<Tensor>& b_down,  // [d]
    const Tensor& w_up,                   // [D, d]
    std::vector<bool> output_mask) {      // x, w_down, b_down, w_up, b_up
  const AdapterSizes sizes = check_adapter(x, w_down, b_down, w_up, std::nullopt);
  STD_TORCH_CHECK(shape_of(grad_out) == shape_of(x), "grad_out must be ", shape_of(x), ", got ", shape_of(grad_out));
  STD_TORCH_CHECK(grad_out.scalar_type() == x.scalar_type() && grad_out.is_cpu(), "grad_out must be like x");
  STD_TORCH_CHECK(output_mask.size() == 5, "output_mask must have 5 entries");
  const auto [rows, width, hidden] = sizes;
  const bool want_x = output_mask[0], want_down = output_mask[1], want_b_down = output_mask[2];
  const bool want_up = output_mask[3], want_b_up = output_mask[4];
  if (leave_to_torch(x.scalar_type())) return torch_adapter_backward(grad_out, x, w_down, b_down, w_up, output_mask);

  const AdapterKernels& k = adapter_kernels(x.scalar_type());
  const auto nothing = [&] { return new_empty(x, {0}); };
  Tensor grad_x = nothing(), grad_down = nothing(), grad_b_down = nothing(), grad_up = nothing(), grad_b_up = nothing();
  const Tensor x_rows = contiguous(x), g = contiguous(grad_out);
  Tensor activation, grad_hidden;
  if (want_x) grad_x = new_empty(x, x.sizes());
  if (want_up) activation = new_empty(x, {rows, hidden});
  if (want_down || want_b_down) grad_hidden = new_empty(x, {rows, hidden});
  if (rows > 0 && (want_x || want_down || want_b_down || want_up)) {
    const Tensor down = contiguous(w_down), packed_down = pack_transposed(k, down);
    const Tensor up_plain = pack_plain(k, contiguous(w_up)), down_plain = pack_plain(k, down);
    const Tensor bias = widened(k, b_down, x, hidden);
    const AdapterBackward args{
        .width = width,
        .hidden = hidden,
        .x = x_rows.const_data_ptr(),
        .grad_out = g.const_data_ptr(),
        .down = packed_down.const_data_ptr(),
        .bias_down = bias.const_data_ptr(),
        .up_plain = up_plain.const_data_ptr(),
        .down_plain = down_plain.const_data_ptr(),
        .activation = want_up ? activation.mutable_data_ptr() : nullptr,
        .grad_hidden = want_down || want_b_down ? grad_hidden.mutable_data_ptr() : nullptr,
        .grad_x = want_x ? grad_x.mutable_data_ptr() : nullptr,
    };
    for_rows(k, sizes, k.backward_scratch(width, hidden),
             [&](int64_t begin, int64_t end, void* scratch) { k.backward(args, begin, end, scratch); });
  }
  if (want_down) grad_down = outer(k, grad_hidden, x_rows, rows);
  if (want_b_down) grad_b_down = column_sums(k, grad_hidden, rows);
  if (want_up) grad_up = outer(k, g, activation, rows);
  if (want_b_up) grad_b_up = column_sums(k, g, rows);
  return {grad_x, grad_down, grad_b_down, grad_up, grad_b_up};
}

}  // namespace sfa::cpu
