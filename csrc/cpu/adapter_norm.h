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

template <class Acc>
struct Moments {
  Acc mean, scale;  // scale is 1 / sqrt(variance + eps), with the variance from the differences

  SFA_INLINE Moments(const Acc* row, int64_t n, double eps) {
    mean = reduce_row(row, n, [](Vec<Acc> v) SFA_INLINE_LAMBDA { return v; }) / static_cast<Acc>(n);
    const Acc m = mean;
    const Acc variance = reduce_row(row, n, [m](Vec<Acc> v) SFA_INLINE_LAMBDA { return (v - m) * (v - m); });
    scale = 1 / square_root(variance / static_cast<Acc>(n) + static_cast<Acc>(eps));
  }
};

// out = residual + normed row * weight + bias
template <class Acc, class R>
SFA_INLINE void norm_row(const Acc* row, const R* residual, const AdapterForward& p, R* out) {
  const Moments<Acc> m(row, p.width, p.eps);
  const Acc* weight = static_cast<const Acc*>(p.norm_weight);
  const Acc* bias = static_cast<const Acc*>(p.norm_bias);
  for_lanes<Acc>(p.width, [&](int64_t c, auto lanes) SFA_INLINE_LAMBDA {
    const Vec<Acc> normed = (load(row + c) - m.mean) * m.scale;
    store_count(out + c, normed * load(weight + c) + load(bias + c) + load_count(residual + c, lanes), lanes);
  });
}

// grad of the row = scale * (gw - mean(gw) - normed * mean(gw * normed)) with gw = grad_out * weight. parts [2, D]
// gathers the gradients of weight and bias, grad_out * normed and grad_out; `first` starts it.
template <class Acc, class R, class T>
SFA_INLINE void norm_row_backward(const Acc* row, const R* grad_out, const AdapterBackward& p, T* grad, Acc* parts,
                                  bool first) {
  const int64_t n = p.width;
  const Moments<Acc> m(row, n, p.eps);
  const Acc* weight = static_cast<const Acc*>(p.norm_weight);
  Vec<Acc> sum{}, product{};
  for_lanes<Acc>(n, [&](int64_t c, auto lanes) SFA_INLINE_LAMBDA {
    const Vec<Acc> g = load_count(grad_out + c, lanes), normed = (load_count(row + c, lanes) - m.mean) * m.scale;
    const Vec<Acc> gw = g * load(weight + c);  // zero beyond the row, as g is
    sum += gw;
    product += gw * normed;
    if (parts == nullptr) return;
    Acc *to_weight = parts + c, *to_bias = parts + n + c;
    store_count(to_weight, first ? g * normed : load_count(to_weight, lanes) + g * normed, lanes);
    store_count(to_bias, first ? g : load_count(to_bias, lanes) + g, lanes);
  });
  const Acc mean = sum_of_lanes<Acc>(sum) / static_cast<Acc>(n),
            slope = sum_of_lanes<Acc>(product) / static_cast<Acc>(n);
  for_lanes<Acc>(n, [&](int64_t c, auto lanes) SFA_INLINE_LAMBDA {
    const Vec<Acc> gw = load_count(grad_out + c, lanes) * load(weight + c);
    const Vec<Acc> normed = (load_count(row + c, lanes) - m.mean) * m.scale;
    store_count(grad + c, (gw - mean - normed * slope) * m.scale, lanes);
  });
}

}  // namespace
}  // namespace sfa::cpu::SFA_ISA_NAMESPACE
