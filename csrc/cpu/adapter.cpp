// fused_adapter and fused_adapter_norm.
#include "adapter.h"

#include <array>
#include <cstring>
#include <vector>

#include "common/adapter_torch.h"
#include "common/call.h"
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
    case Isa::kAmx:
      return amx::kAdapter;
#endif
    default:
      return baseline::kAdapter;
  }
}

[[maybe_unused]] bool allow_short_floats() {
  std::array<StableIValue, 1> stack{};
  call_operator("sfa::allow_short_floats", "", stack.data());
  return torch::stable::detail::to<bool>(stack[0]);
}

Buffer pack(const AdapterKernels& k, decltype(AdapterKernels::pack_plain) function, const Tensor& w, int64_t n,
            int64_t depth) {
  constexpr int64_t kNumbers = 1 << 15;  // too few for a second thread
  const Tensor source = contiguous(w);
  const void* from = source.const_data_ptr();
  Buffer packed(k.packed_bytes(n, depth));
  torch::stable::parallel_for(0, (n + k.panel - 1) / k.panel, kNumbers / (k.panel * depth + 1) + 1,
                              [&](int64_t begin, int64_t end) { function(from, n, depth, begin, end, packed.data()); });
  return packed;
}

// Whether it takes less time to pack the rows instead of the weights. Results have the same bits either way, so the
// number of threads may decide. Times are counted in rows that one thread multiplies with all weights.
bool few(const AdapterKernels& k, const AdapterSizes& sizes) {
  constexpr int64_t kPack = 24;  // packing a matrix takes as long as multiplying so many rows (measured: 20 to 25)
  if (!k.takes_few(sizes.width, sizes.hidden)) return false;
  const int64_t threads = torch::stable::get_num_threads();
  const auto slowest = [&](int64_t tile) { return (sizes.rows + threads * tile - 1) / (threads * tile) * tile; };
  const int64_t packing_rows = slowest(k.panel) + slowest(k.panel) * kPack / std::max<int64_t>(1, sizes.hidden);
  return packing_rows <= slowest(k.tile_rows) + kPack / threads;
}

void run(AdapterForward args, const AdapterSizes& sizes, const AdapterKernels& k, AdapterKernels::Forward* kernel,
         const Tensor& w_down, const std::optional<Tensor>& b_down, const Tensor& w_up,
         const std::optional<Tensor>& b_up) {
  const Tensor down_rows = contiguous(w_down), up_rows = contiguous(w_up);
  args.few = few(k, sizes);
  const Buffer down = args.few ? Buffer() : pack_transposed(k, down_rows),
               up = args.few ? Buffer() : pack_transposed(k, up_rows);
  const Buffer bias_down = widened(k, b_down, sizes.hidden), bias_up = widened(k, b_up, sizes.width);
  args.width = sizes.width;
  args.hidden = sizes.hidden;
  args.down = args.few ? down_rows.const_data_ptr() : down.data();
  args.up = args.few ? up_rows.const_data_ptr() : up.data();
  args.bias_down = bias_down.data();
  args.bias_up = bias_up.data();
  for_rows(k, sizes, args.few, [&](int64_t begin, int64_t end, void* scratch) { kernel(args, begin, end, scratch); });
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

const AdapterKernels& product_kernels(ScalarType dtype) {
#if defined(__x86_64__)
  if (dtype == ScalarType::Float && isa() == Isa::kAmx && allow_short_floats()) return amx::kShortFloat;
#endif
  return adapter_kernels(dtype);
}

bool leave_to_torch(ScalarType dtype) { return dtype == ScalarType::Half ? by_torch().float16 : by_torch().rest; }

Buffer pack_transposed(const AdapterKernels& k, const Tensor& w) {
  return pack(k, k.pack_transposed, w, w.size(0), w.size(1));
}

Buffer pack_plain(const AdapterKernels& k, const Tensor& w) { return pack(k, k.pack_plain, w, w.size(1), w.size(0)); }

Buffer widened(const AdapterKernels& k, const std::optional<Tensor>& v, int64_t n) {
  const int64_t bytes = (n + k.panel - 1) / k.panel * k.panel * k.acc_bytes;
  Buffer out(bytes);
  std::memset(out.data(), 0, bytes);
  if (!v.has_value() || n == 0) return out;
  const Tensor source = contiguous(*v);
  adapter_kernels(source.scalar_type()).column_sums(source.const_data_ptr(), 1, n, out.data());
  return out;
}

namespace {

// `activation` and `adapted` are where numbers to be kept go, if any.
Tensor forward(const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down, const Tensor& w_up,
               const std::optional<Tensor>& b_up, const AdapterSizes& sizes, void* activation) {
  Tensor out = torch::stable::new_empty(x, x.sizes());
  if (sizes.rows == 0) return out;
  const AdapterKernels& k = product_kernels(x.scalar_type());
  const Tensor rows = contiguous(x);
  AdapterForward args{};
  args.x = rows.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.activation = activation;
  run(args, sizes, k, k.forward, w_down, b_down, w_up, b_up);
  return out;
}

Tensor forward_norm(const Tensor& residual, const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down,
                    const Tensor& w_up, const std::optional<Tensor>& b_up, const Tensor& norm_weight,
                    const Tensor& norm_bias, double eps, const AdapterSizes& sizes, void* activation, void* adapted) {
  Tensor out = torch::stable::new_empty(residual, residual.sizes());
  if (sizes.rows == 0) return out;
  const AdapterKernels& k = product_kernels(x.scalar_type());
  const Tensor rows = contiguous(x), residual_rows = contiguous(residual);
  const Buffer weight = widened(k, norm_weight, sizes.width), bias = widened(k, norm_bias, sizes.width);
  AdapterForward args{};
  args.x = rows.const_data_ptr();
  args.residual = residual_rows.const_data_ptr();
  args.norm_weight = weight.data();
  args.norm_bias = bias.data();
  args.eps = eps;
  args.out = out.mutable_data_ptr();
  args.activation = activation;
  args.adapted = adapted;
  auto* kernel = residual.scalar_type() == x.scalar_type() ? k.forward_norm : k.forward_norm_float;
  run(args, sizes, k, kernel, w_down, b_down, w_up, b_up);
  return out;
}

}  // namespace

Tensor fused_adapter(const Tensor& x,                      // [..., D]
                     const Tensor& w_down,                 // [d, D]
                     const std::optional<Tensor>& b_down,  // [d]
                     const Tensor& w_up,                   // [D, d]
                     const std::optional<Tensor>& b_up) {  // [D]
  const AdapterSizes sizes = check_adapter(x, w_down, b_down, w_up, b_up);
  if (leave_to_torch(x.scalar_type())) return std::get<0>(torch_adapter(x, w_down, b_down, w_up, b_up));
  return forward(x, w_down, b_down, w_up, b_up, sizes, nullptr);
}

std::tuple<Tensor, Tensor> fused_adapter_keep(const Tensor& x, const Tensor& w_down,
                                              const std::optional<Tensor>& b_down, const Tensor& w_up,
                                              const std::optional<Tensor>& b_up) {
  const AdapterSizes sizes = check_adapter(x, w_down, b_down, w_up, b_up);
  if (leave_to_torch(x.scalar_type())) return torch_adapter(x, w_down, b_down, w_up, b_up);
  const Tensor hidden = new_hidden(x, sizes);
  return {forward(x, w_down, b_down, w_up, b_up, sizes, hidden.mutable_data_ptr()), hidden};
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
  const AdapterSizes sizes = check_adapter_norm(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps);
  if (leave_to_torch(x.scalar_type()))
    return std::get<0>(torch_adapter_norm(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps));
  return forward_norm(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps, sizes, nullptr, nullptr);
}

std::tuple<Tensor, Tensor, Tensor> fused_adapter_norm_keep(const Tensor& residual, const Tensor& x,
                                                           const Tensor& w_down, const std::optional<Tensor>& b_down,
                                                           const Tensor& w_up, const std::optional<Tensor>& b_up,
                                                           const Tensor& norm_weight, const Tensor& norm_bias,
                                                           double eps, bool keep_adapted) {
  const AdapterSizes sizes = check_adapter_norm(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps);
  if (leave_to_torch(x.scalar_type())) {
    auto [out, hidden, adapted] =
        torch_adapter_norm(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps);
    return {out, hidden, keep_adapted ? adapted : torch::stable::new_empty(x, {0})};
  }
  const Tensor hidden = new_hidden(x, sizes);
  const Tensor adapted = keep_adapted ? torch::stable::new_empty(x, x.sizes()) : torch::stable::new_empty(x, {0});
  return {forward_norm(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps, sizes,
                       hidden.mutable_data_ptr(), keep_adapted ? adapted.mutable_data_ptr() : nullptr),
          hidden, adapted};
}

}  // namespace sfa::cpu
