// sfa::sparse_adamw_: AdamW (Loshchilov and Hutter, 2019) on selected entries of weights and on nothing else.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <vector>

#include "chunks.h"
#include "common/adamw_arguments.h"
#include "isa.h"
#include "kernels.h"
#include "memory.h"
#include "sparse_adamw_kernels.h"

namespace sfa::cpu {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kChunk = 1 << 13;

template <class A>
struct CorrectionsOf {
  std::vector<A> step_size, inverse_root;

  CorrectionsOf(const AdamWSettings& s, const int64_t* ages, int64_t rounds) {
    for (int64_t r = 0; r < rounds; ++r) {
      const double age = static_cast<double>(ages[r]);
      step_size.push_back(static_cast<A>(s.lr / (1 - std::pow(s.beta1, age))));
      inverse_root.push_back(static_cast<A>(1 / std::sqrt(1 - std::pow(s.beta2, age))));
    }
  }
  operator Corrections<A>() const { return {step_size.data(), inverse_root.data()}; }
};

const AdamWKernels& kernels() {
#if defined(__x86_64__)
  if (isa() >= Isa::kAvx512) return avx512::kAdamW;
  if (isa() == Isa::kAvx2) return avx2::kAdamW;
#endif
  return baseline::kAdamW;
}

// Raises unless every entry's round is one of those with an age of at least 0.
void check_rounds(const std::vector<AdamWEntry>& all, const Chunks& chunks, const int64_t* ages, int64_t n_ages) {
  std::vector<uint8_t> selected;
  for (int64_t r = 0; r < n_ages; ++r) selected.push_back(ages[r] >= 0);
  const bool every = std::all_of(selected.begin(), selected.end(), [](uint8_t s) { return s != 0; });
  std::atomic<bool> good{true};
  for_each_chunk(chunks, [&](int64_t, const Chunk& c) {
    const int16_t* round = all[c.list].round;
    int16_t smallest = 0, largest = 0;
    for (int64_t i = c.begin; i < c.end; ++i) {
      smallest = std::min(smallest, round[i]);
      largest = std::max(largest, round[i]);
    }
    bool fine = smallest == 0 && largest < n_ages;
    if (fine && !every) fine = std::all_of(round + c.begin, round + c.end, [&](int16_t r) { return selected[r] != 0; });
    if (!fine) good = false;
  });
  STD_TORCH_CHECK(good, "rounds names a round that is not in ages or has not been selected");
}

AdamWTypes types_of(ScalarType weight, ScalarType grad) {
  if (weight == ScalarType::Float) return kSingle;
  const bool single = grad == ScalarType::Float;
  if (weight == ScalarType::BFloat16) return single ? kBfloat16BySingle : kBfloat16;
  STD_TORCH_CHECK(weight == ScalarType::Half, "weights must be float32, float64, bfloat16 or float16");
  return single ? kHalfBySingle : kHalf;
}

void update(const AdamWArguments& given, const std::vector<Tensor>& weights, const Chunks& chunks,
            const AdamWSettings& settings, const int64_t* ages, int64_t n_ages) {
  const CorrectionsOf<float> single(settings, ages, n_ages);
  const CorrectionsOf<double> wide(settings, ages, n_ages);
  const AdamWKernels& k = kernels();
  for_each_chunk(chunks, [&](int64_t, const Chunk& c) {
    const AdamWEntry& entry = given.entries[c.list];
    const ScalarType weight = weights[c.list].scalar_type(), grad = given.gradients[c.list].scalar_type();
    if (weight == ScalarType::Double)
      k.wide[entry.narrow](entry, settings, wide, c.begin, c.end);
    else
      k.single[types_of(weight, grad)][entry.narrow](entry, settings, single, c.begin, c.end);
  });
}

}  // namespace

void sparse_adamw_(const std::vector<Tensor>& weights,      // any shapes, contiguous
                   const std::vector<Tensor>& grads,        // of the weights' shapes, or [k_i]: gathered at indices[i]
                   const std::vector<Tensor>& indices,      // [k_i] int64 or int32, strictly increasing flat positions
                   const std::vector<Tensor>& rounds,       // [k_i] int16: which round selected the entry
                   const std::vector<Tensor>& exp_avgs,     // [k_i] float32; float64 for float64 weights
                   const std::vector<Tensor>& exp_avg_sqs,  // [k_i], as exp_avgs
                   const std::vector<Tensor>& masters,      // [k_i] float32, one for every bf16 or fp16 weight
                   const Tensor& ages,                      // [rounds] int64: steps taken; -1: not selected yet
                   double lr, double beta1, double beta2, double eps, double weight_decay) {
  for (const Tensor& t :
       AdamWArguments::joined({weights, grads, indices, rounds, exp_avgs, exp_avg_sqs, masters, {ages}}))
    STD_TORCH_CHECK(t.is_cpu(), "all tensors must be on the CPU");
  const AdamWArguments given(weights, grads, indices, rounds, exp_avgs, exp_avg_sqs, masters, ages);
  std::vector<int64_t> lengths, limits;
  for (const AdamWEntry& e : given.entries) {
    lengths.push_back(e.k);
    limits.push_back(e.numel);
  }
  const Chunks chunks(lengths, kChunk);
  int64_t* age = static_cast<int64_t*>(ages.mutable_data_ptr());
  STD_TORCH_CHECK(first_unsorted(given.positions, limits) < 0,
                  "indices must be strictly increasing positions in the weight");
  check_rounds(given.entries, chunks, age, ages.numel());

  for (int64_t r = 0; r < ages.numel(); ++r) age[r] += age[r] >= 0;
  update(given, weights, chunks, {lr, beta1, beta2, eps, weight_decay}, age, ages.numel());
}

}  // namespace sfa::cpu
