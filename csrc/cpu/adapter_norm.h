// LayerNorm of one row of sums. See vec.h for how this file is compiled.
#pragma once

#include "adapter_gemm.h"
#include "adapter_kernels.h"

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

// Sum of f(element) over a row; four sums in flight hide the latency of an addition.
template <class Acc, class F>
SFA_INLINE Acc reduce_row(const Acc* row, int64_t n, F&& f) {
  constexpr int kL = kLanes<Acc>;
  Vec<Acc> sum[4] = {};
  int64_t c = 0;
  for (; c + 4 * kL <= n; c += 4 * kL)
    for (int i = 0; i < 4; ++i) sum[i] += f(load(row + c + i * kL));
  for (; c + kL <= n; c += kL) sum[0] += f(load(row + c));
  Acc total = sum_of_lanes<Acc>((sum[0] + sum[1]) + (sum[2] + sum[3]));
  for (; c < n; ++c) total += f(broadcast(row[c]))[0];
  return total;
}

SFA_INLINE float square_root(float v) { return __builtin_sqrtf(v); }
SFA_INLINE double square_root(double v) { return __builtin_sqrt(v); }

// out = residual + (row - mean) / sqrt(variance + eps) * weight + bias, with the variance from the differences
template <class Acc, class R>
SFA_INLINE void norm_row(const Acc* row, const R* residual, const AdapterForward& p, R* out) {
  constexpr int kL = kLanes<Acc>;
  const int64_t n = p.width;
  const Acc mean = reduce_row(row, n, [](Vec<Acc> v) SFA_INLINE_LAMBDA { return v; }) / static_cast<Acc>(n);
  const Acc variance = reduce_row(row, n, [&](Vec<Acc> v) SFA_INLINE_LAMBDA { return (v - mean) * (v - mean); }) / static_cast<Acc>(n);
  const Acc scale = 1 / square_root(variance + static_cast<Acc>(p.eps));
  const Acc* weight = static_cast<const Acc*>(p.norm_weight);
  const Acc* bias = static_cast<const Acc*>(p.norm_bias);
  const auto normed = [&](int64_t c) SFA_INLINE_LAMBDA {
    return (load(row + c) - mean) * scale * load(weight + c) + load(bias + c);
  };
  int64_t c = 0;
  for (; c + kL <= n; c += kL) store(out + c, normed(c) + load(residual + c));
  if (c < n) store_first(out + c, normed(c) + load_first(residual + c, n - c), n - c);
}

}  // namespace
}  // namespace sfa::cpu::SFA_ISA_NAMESPACE
