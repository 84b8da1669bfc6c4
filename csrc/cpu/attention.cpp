// sfa::window_attention and its backward.
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <vector>

#include "attention_kernels.h"
#include "buffer.h"
#include "common/check.h"
#include "isa.h"
#include "kernels.h"

namespace sfa::cpu {

using torch::headeronly::ScalarType;
using torch::stable::contiguous;

namespace {

const AttentionKernels& kernels(ScalarType dtype) {
  const AttentionKernels* table = baseline::kAttention;
#if defined(__x86_64__)
  if (isa() >= Isa::kAvx512)
    table = avx512::kAttention;
  else if (isa() == Isa::kAvx2)
    table = avx2::kAttention;
#endif
  switch (dtype) {
    case ScalarType::Float:
      return table[0];
    case ScalarType::Double:
      return table[1];
    case ScalarType::BFloat16:
      return table[2];
    case ScalarType::Half:
      return table[3];
    default:
      STD_TORCH_CHECK(false, "qkv must be float32, float64, bfloat16 or float16");
  }
}

// What both directions read, contiguous; the tensors must outlive what points into them.
struct Call {
  Tensor qkv, scale, bias;
  std::optional<Tensor> pad;
  Attention args{};

  Call(const Tensor& qkv_, const Tensor& scale_, const Tensor& bias_, const std::optional<Tensor>& pad_,
       const std::vector<int64_t>& window, const std::vector<int64_t>& shift)
      : qkv(contiguous(qkv_)), scale(contiguous(scale_)), bias(contiguous(bias_)) {
    STD_TORCH_CHECK(qkv.dim() == 4, "qkv must be [B, H, W, 3 D], got ", shape_of(qkv));
    STD_TORCH_CHECK(window.size() == 2 && shift.size() == 2, "window and shift must be two sizes each");
    STD_TORCH_CHECK(qkv.is_cpu(), "qkv must be on the CPU");
    const int64_t heads = scale.numel(), tokens = window[0] * window[1];
    STD_TORCH_CHECK(heads > 0 && window[0] > 0 && window[1] > 0, "scale and window must not be empty");
    STD_TORCH_CHECK(qkv.size(3) % (3 * heads) == 0, "qkv's last dimension must be 3 times the heads' depth");
    const ScalarType sum = qkv.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    check_tensor(scale, "scale", {heads}, sum);
    check_tensor(bias, "bias", {heads, tokens, tokens}, sum);
    args.batch = qkv.size(0);
    args.height = qkv.size(1);
    args.width = qkv.size(2);
    args.heads = heads;
    args.depth = qkv.size(3) / 3 / heads;
    args.window_height = window[0];
    args.window_width = window[1];
    args.shift_height = shift[0];
    args.shift_width = shift[1];
    for (int i = 0; i < 2; ++i)
      STD_TORCH_CHECK(shift[i] >= 0 && shift[i] < window[i], "shift must not be negative and less than window");
    args.windows_high = (args.height + window[0] - 1) / window[0];
    args.windows_wide = (args.width + window[1] - 1) / window[1];
    const bool fills = args.height % window[0] != 0 || args.width % window[1] != 0;
    STD_TORCH_CHECK(!fills || pad_.has_value(), "pad is needed where windows do not fit the map");
    if (pad_.has_value()) {
      pad = contiguous(*pad_);
      check_tensor(*pad, "pad", {qkv.size(3)}, sum);
      args.pad = pad->const_data_ptr();
    }
    args.qkv = qkv.const_data_ptr();
    args.scale = scale.const_data_ptr();
    args.bias = bias.const_data_ptr();
  }

  int64_t windows() const { return args.batch * args.windows_high * args.windows_wide; }
  bool empty() const { return qkv.numel() == 0; }
  std::vector<int64_t> out_shape() const { return {args.batch, args.height, args.width, args.heads * args.depth}; }
};

}  // namespace

Tensor window_attention(const Tensor& qkv,                 // [B, H, W, 3 D]
                        const Tensor& scale,               // [heads]
                        const Tensor& bias,                // [heads, N, N]
                        const std::optional<Tensor>& pad,  // [3 D]
                        std::vector<int64_t> window, std::vector<int64_t> shift) {
  Call call(qkv, scale, bias, pad, window, shift);
  Tensor out = torch::stable::new_empty(qkv, call.out_shape());
  if (call.empty()) return out;
  call.args.out = out.mutable_data_ptr();
  const AttentionKernels& k = kernels(qkv.scalar_type());
  const int64_t heads = call.args.heads;
  torch::stable::parallel_for(0, call.windows() * heads, 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(k.forward_scratch(call.args));
    for (int64_t i = begin; i < end; ++i) k.forward(call.args, i / heads, i % heads, scratch.data());
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> window_attention_backward(const Tensor& grad_out, const Tensor& qkv,
                                                                     const Tensor& scale, const Tensor& bias,
                                                                     const std::optional<Tensor>& pad,
                                                                     std::vector<int64_t> window,
                                                                     std::vector<int64_t> shift,
                                                                     std::vector<bool> output_mask) {
  Call call(qkv, scale, bias, pad, window, shift);
  const Tensor grad = contiguous(grad_out);
  const std::vector<int64_t> shape = call.out_shape();
  check_tensor(grad, "grad_out", {shape[0], shape[1], shape[2], shape[3]}, qkv.scalar_type());
  STD_TORCH_CHECK(output_mask.size() == 4, "output_mask must have 4 entries, got ", output_mask.size());
  const auto make = [](bool wanted, const Tensor& like) {
    return wanted ? torch::stable::new_zeros(like, like.sizes()) : torch::stable::new_empty(like, {0});
  };
  Tensor grad_qkv = output_mask[0] ? torch::stable::new_empty(qkv, qkv.sizes()) : make(false, qkv);
  Tensor grad_scale = make(output_mask[1], scale), grad_bias = make(output_mask[2], bias);
  Tensor grad_pad = make(output_mask[3] && pad.has_value(), pad.has_value() ? *pad : scale);
  if (call.empty()) return {grad_qkv, grad_scale, grad_bias, grad_pad};
  const auto pointer = [](const Tensor& t) { return t.numel() == 0 ? nullptr : t.mutable_data_ptr(); };
  call.args.grad_out = grad.const_data_ptr();
  call.args.grad_qkv = pointer(grad_qkv);
  call.args.grad_scale = pointer(grad_scale);
  call.args.grad_bias = pointer(grad_bias);
  call.args.grad_pad = pointer(grad_pad);
  const AttentionKernels& k = kernels(qkv.scalar_type());
  const int64_t heads = call.args.heads, windows = call.windows();
  // What is summed over windows belongs to one head each: one thread adds it up, in the order of the windows.
  const bool sums = output_mask[1] || output_mask[2] || output_mask[3];
  torch::stable::parallel_for(0, sums ? heads : heads * windows, 1, [&](int64_t begin, int64_t end) {
    const Buffer scratch(k.backward_scratch(call.args));
    if (sums) begin *= windows, end *= windows;
    for (int64_t i = begin; i < end; ++i) k.backward(call.args, i % windows, i / windows, scratch.data());
  });
  return {grad_qkv, grad_scale, grad_bias, grad_pad};
}

}  // namespace sfa::cpu
