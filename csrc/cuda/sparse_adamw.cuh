// sfa::sparse_adamw_: AdamW (Loshchilov and Hutter, 2019) on selected entries of weights, for many tensors in one
// launch after a small one that counts steps. Ages and rates stay on the device, so a CUDA graph that holds both goes
// on counting.
//
// Floor, in bytes of device memory: of the weight the 32-byte sectors that hold an entry, read and written, and the
// same sectors of a dense gradient, read; 6 or 10 for each entry's position and round, 16 for its moments, 8 for a
// master value, 4 (2) for a gathered gradient. At ten per cent of float32 weights at random, 57 % of the sectors are
// touched.
#pragma once

#include "arithmetic.cuh"
#include "common/adamw.h"
#include "require.cuh"
#include "table.cuh"

namespace sfa::cuda {

constexpr int kAdamWThreads = 256;
constexpr int kAdamWPerThread = 4;  // entries whose loads are under way at once
constexpr int kAdamWPerBlock = kAdamWThreads * kAdamWPerThread;

// What bias correction makes of the learning rate and of the second moment for the entries of one round, which are of
// one age. step_size is negative for a round that has not selected yet.
struct Rates {
  double step_size;     // lr / (1 - beta1^age)
  double inverse_root;  // 1 / sqrt(1 - beta2^age)
};

// Raises the age of every round that has selected, by a step.
__global__ void __launch_bounds__(kAdamWThreads)
    age_kernel(int64_t* ages, Rates* rates, int64_t rounds, AdamWSettings settings) {
  const int64_t r = static_cast<int64_t>(blockIdx.x) * kAdamWThreads + threadIdx.x;
  if (r >= rounds) return;
  if (ages[r] < 0) {
    rates[r] = {-1.0, 0.0};
    return;
  }
  const int64_t age = ++ages[r];
  const double steps = static_cast<double>(age);
  rates[r] = {settings.lr / (1 - pow(settings.beta1, steps)), 1 / sqrt(1 - pow(settings.beta2, steps))};
}

// The value as a weight keeps it.
template <class W>
__device__ __forceinline__ W narrowed(float v) {
  return from_float<W>(v);
}
template <class W>
__device__ __forceinline__ W narrowed(double v) {
  return v;
}

__device__ __forceinline__ int64_t position_of(const AdamWEntry& e, int64_t i) {
  return e.narrow ? static_cast<const int32_t*>(e.index)[i] : static_cast<const int64_t*>(e.index)[i];
}

// W: weights; G: gradients; A: moments and arithmetic. The operations and their order are those of the CPU.
template <class W, class G, class A>
__global__ void __launch_bounds__(kAdamWThreads)
    adamw_kernel(const __grid_constant__ Table<AdamWEntry> table, const Rates* all_rates, int64_t rounds,
                 AdamWSettings settings) {
  constexpr bool kMaster = sizeof(W) < sizeof(A);
  const int list = table.list_of(blockIdx.x);
  const AdamWEntry& e = table.entries[list];
  const int64_t begin = static_cast<int64_t>(static_cast<int>(blockIdx.x) - table.first[list]) * kAdamWPerBlock;
  const A keep = static_cast<A>(1 - settings.lr * settings.weight_decay);
  const A rest1 = static_cast<A>(1 - settings.beta1), beta2 = static_cast<A>(settings.beta2);
  const A rest2 = static_cast<A>(1 - settings.beta2), eps = static_cast<A>(settings.eps);
  W* weight = static_cast<W*>(e.weight);
  const G* grads = static_cast<const G*>(e.grad);
  A* exp_avg = static_cast<A*>(e.exp_avg);
  A* exp_avg_sq = static_cast<A*>(e.exp_avg_sq);

  int64_t position[kAdamWPerThread];
  A value[kAdamWPerThread], grad[kAdamWPerThread], m[kAdamWPerThread], v[kAdamWPerThread];
  A step_size[kAdamWPerThread], inverse_root[kAdamWPerThread];
#pragma unroll
  for (int j = 0; j < kAdamWPerThread; ++j) {
    const int64_t i = begin + j * kAdamWThreads + threadIdx.x;
    if (i >= e.k) continue;
    position[j] = position_of(e, i);
    const int64_t previous = i == 0 ? -1 : position_of(e, i - 1);
    const int16_t round = e.round[i];
    require(previous < position[j] && position[j] < e.numel, "indices are strictly increasing within the weight",
            "sparse_adamw_");
    require(round >= 0 && round < rounds, "rounds are among those of ages", "sparse_adamw_");
    const Rates rates = all_rates[round];
    require(rates.step_size >= 0, "the rounds of entries have selected", "sparse_adamw_");
    step_size[j] = static_cast<A>(rates.step_size);
    inverse_root[j] = static_cast<A>(rates.inverse_root);
  }
#pragma unroll
  for (int j = 0; j < kAdamWPerThread; ++j) {
    const int64_t i = begin + j * kAdamWThreads + threadIdx.x;
    if (i >= e.k) continue;
    if constexpr (kMaster)
      value[j] = e.master[i];
    else
      value[j] = weight[position[j]];
    grad[j] = widened<A>(grads[e.gathered ? i : position[j]]);
    m[j] = exp_avg[i];
    v[j] = exp_avg_sq[i];
  }
#pragma unroll
  for (int j = 0; j < kAdamWPerThread; ++j) {
    const int64_t i = begin + j * kAdamWThreads + threadIdx.x;
    if (i >= e.k) continue;
    m[j] += product(rest1, grad[j] - m[j]);
    v[j] = product(beta2, v[j]) + product(rest2, product(grad[j], grad[j]));
    const A change = m[j] / (product(square_root(v[j]), inverse_root[j]) + eps);
    value[j] = product(value[j], keep) - product(step_size[j], change);
    exp_avg[i] = m[j];
    exp_avg_sq[i] = v[j];
    if constexpr (kMaster) e.master[i] = value[j];
    weight[position[j]] = narrowed<W>(value[j]);
  }
}

#if !defined(__CUDACC_RTC__)
// Starts age_kernel; `rates` is [rounds], what the entries of each round then go by.
inline void advance_ages(int64_t* ages, Rates* rates, int64_t rounds, const AdamWSettings& settings,
                         cudaStream_t stream) {
  if (rounds == 0) return;
  const dim3 grid(static_cast<unsigned>((rounds + kAdamWThreads - 1) / kAdamWThreads));
  launch("sparse_adamw_", &age_kernel, grid, dim3(kAdamWThreads), 0, stream, ages, rates, rounds, settings);
}

// Starts adamw_kernel for weights of one pair of types.
template <class W, class G, class A>
void step(const std::vector<AdamWEntry>& lists, const Rates* rates, int64_t rounds, const AdamWSettings& settings,
          cudaStream_t stream) {
  const auto length = [](const AdamWEntry& e) { return e.k; };
  for_each_table(lists, kAdamWPerBlock, length, [&](const Table<AdamWEntry>& table, int64_t) {
    launch("sparse_adamw_", &adamw_kernel<W, G, A>, dim3(table.first[table.size]), dim3(kAdamWThreads), 0, stream,
           table, rates, rounds, settings);
  });
}
#endif

}  // namespace sfa::cuda
