// fused_adapter and fused_adapter_norm.
#include "adapter.h"

#include "adapter_torch.h"
#include "common/check.h"
#include "isa.h"
#include "kernels.h"

namespace sfa::cpu {

using torch::headeronly::ScalarType;
using torch::stable::contiguous;

namespace {

const AdapterKernels* table() {
  switch (isa()) {
#if defined(__x86_64__)
    case Isa::kAvx2:
      return avx2::kAdapter;
    case Isa::kAvx512:
      return avx512::kAdapter;
    case Isa::kAvx512Bf16:
      return avx512bf16::kAdapter;
#endif
    default:
      return baseline::kAdapter;
  }
}

Tensor pack(const AdapterKernels& k, decltype(AdapterKernels::pack_plain) function, const Tensor& w, int64_t n,
            int64_t depth) {
  constexpr int64_t kNumbers = 1 << 15;  // too few for a second thread
  Tensor packed = new_bytes(w, k.packed_bytes(n, depth));
  const void* from = w.const_data_ptr();
  void* to = packed.mutable_data_ptr();
  torch::stable::parallel_for(0, (n + k.panel - 1) / k.panel, kNumbers / (k.panel * depth + 1) + 1,
                              [&](int64_t begin, int64_t end) { function(from, n, depth, begin, end, to); });
  return packed;
}

// The part of the arguments that the plain operator and the norm share, and what keeps its memory alive.
struct Forward {
  AdapterSizes sizes;
  const AdapterKernels& kernels;
  Tensor x, down, up, bias_down, bias_up;
  AdapterForward args{};

  Forward(const AdapterSizes& sizes, const Tensor& x_in, const Tensor& w_down, const std::optional<Tensor>& b_down,
          const Tensor& w_up, const std::optional<Tensor>& b_up)
      : sizes(sizes),
        kernels(adapter_kernels(x_in.scalar_type())),
        x(contiguous(x_in)),
        down(pack_transposed(kernels, contiguous(w_down))),
        up(pack_transposed(kernels, contiguous(w_up))),
        bias_down(widened(kernels, b_down, x, sizes.hidden)),
        bias_up(widened(kernels, b_up, x, sizes.width)) {
    args.width = sizes.width;
    args.hidden = sizes.hidden;
    args.x = x.const_data_ptr();
    args.down = down.const_data_ptr();
    args.up = up.const_data_ptr();
    args.bias_down = bias_down.const_data_ptr();
    args.bias_up = bias_up.const_data_ptr();
  }

  void run(decltype(AdapterKernels::forward) kernel) const {
    for_rows(kernels, sizes, kernels.forward_scratch(sizes.width, sizes.hidden),
             [&](int64_t begin, int64_t end, void* scratch) { kernel(args, begin, end, scratch); });
  }
};

void check_same(const std::optional<Tensor>& t, const char* name, std::initializer_list<int64_t> shape,
                ScalarType dtype) {
  if (t.has_value()) check_tensor(*t, name, shape, dtype);
}

}  // namespace

const AdapterKernels& adapter_kernels(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return table()[0];
    case ScalarType::Double:
      return table()[1];
    case ScalarType::BFloat16:
      return table()[2];
    case ScalarType::Half:
      return table()[3];
    default:
      STD_TORCH_CHECK(false, "x must be float32, float64, bfloat16 or float16");
  }
}

AdapterSizes check_adapter(const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down,
                           const Tensor& w_up, const std::optional<Tensor>& b_up) {
  STD_TORCH_CHECK(x.dim() >= 1 && x.is_cpu(), "x must have a last dimension and be on the CPU");
  STD_TORCH_CHECK(w_down.dim() == 2, "w_down must be [d, D], got ", shape_of(w_down));
  const int64_t width = x.size(x.dim() - 1), hidden = w_down.size(0);
  const ScalarType dtype = x.scalar_type();
  check_tensor(w_down, "w_down", {hidden, width}, dtype);
  check_tensor(w_up, "w_up", {width, hidden}, dtype);
  check_same(b_down, "b_down", {hidden}, dtype);
  check_same(b_up, "b_up", {width}, dtype);
  return {width == 0 ? 0 : x.numel() / width, width, hidden};
}

Tensor pack_transposed(const AdapterKernels& k, const Tensor& w) {
  return pack(k, k.pack_transposed, w, w.size(0), w.size(1));
}

Tensor pack_plain(const AdapterKernels& k, const Tensor& w) { return pack(k, k.pack_plain, w, w.size(1), w.size(0)); }

Tensor widened(const AdapterKernels& k, const std::optional<Tensor>& v, const Tensor& like, int64_t n) {
  Tensor out = new_bytes(like, (n + k.panel - 1) / k.panel * k.panel * k.acc_bytes);
  torch::stable::zero_(out);
  if (!v.has_value() || n == 0) return out;
  const Tensor source = contiguous(*v);
  adapter_kernels(source.scalar_type()).column_sums(source.const_data_ptr(), 1, n, out.mutable_data_ptr());
  return out;
}

Tensor fused_adapter(const Tensor& x,                      // [..., D]
                     const Tensor& w_down,                 // [d, D]
                     const std::optional<Tensor>& b_down,  // [d]
                     const Tensor& w_up,                   // [D, d]
                     const std::optional<Tensor>& b_up) {  // [D]
  const AdapterSizes sizes = check_adapter(x, w_down, b_down, w_up, b_up);
  if (leave_to_torch(x.scalar_type())) return torch_adapter(x, w_down, b_down, w_up, b_up);
  Tensor out = torch::stable::new_empty(x, x.sizes());
  if (sizes.rows == 0) return out;
  Forward f(sizes, x, w_down, b_down, w_up, b_up);
  f.args.out = out.mutable_data_ptr();
  f.run(f.kernels.forward);
  return out;
}

Tensor fused_adapter_norm(const Tensor& residual,  // [..., D], float32 where the rest is of a half type, or like it
                          const Tensor& x,         // [..., D]
                          const Tensor& w_down,    // [d, D]
                          const std::optional<Tensor>& b_down,  // [d]
                          const Tensor& w_up,                   // [D, d]
                          const std::optional<Tensor>& b_up,    // [D]
                          const Tensor& norm_weight,            // [D], float32 or like x
                          const Tensor& norm_bias,              // [D], float32 or like x
                          double eps) {
  const AdapterSizes sizes = check_adapter(x, w_down, b_down, w_up, b_up);
  const ScalarType dtype = x.scalar_type();
  const bool half = dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  const auto allowed = [&](const Tensor& t) {
    return t.is_cpu() && (t.scalar_type() == dtype || (half && t.scalar_type() == ScalarType::Float));
  };
  STD_TORCH_CHECK(shape_of(residual) == shape_of(x), "residual must be ", shape_of(x), ", got ", shape_of(residual));
  STD_TORCH_CHECK(allowed(residual), "residual has the wrong dtype or device");
  for (const Tensor* t : {&norm_weight, &norm_bias}) {
    STD_TORCH_CHECK(t->dim() == 1 && t->size(0) == sizes.width, "norm_weight and norm_bias must be [D] = [",
                    sizes.width, "], got ", shape_of(*t));
    STD_TORCH_CHECK(allowed(*t), "norm_weight or norm_bias has the wrong dtype or device");
  }
  if (leave_to_torch(dtype))
    return torch_adapter_norm(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps);
  Tensor out = torch::stable::new_empty(residual, residual.sizes());
  if (sizes.rows == 0) return out;
  Forward f(sizes, x, w_down, b_down, w_up, b_up);
  const Tensor packed_residual = contiguous(residual);
  const Tensor weight = widened(f.kernels, norm_weight, x, sizes.width);
  const Tensor bias = widened(f.kernels, norm_bias, x, sizes.width);
  f.args.residual = packed_residual.const_data_ptr();
  f.args.norm_weight = weight.const_data_ptr();
  f.args.norm_bias = bias.const_data_ptr();
  f.args.eps = eps;
  f.args.out = out.mutable_data_ptr();
  f.run(residual.scalar_type() == dtype ? f.kernels.norm : f.kernels.norm_float);
  return out;
}

}  // namespace sfa::cpu
