// sfa::accumulate_scores_: adds a batch's gradients to the scores that weights are ranked by.
#include <cmath>
#include <string>
#include <type_traits>
#include <vector>

#include "chunks.h"
#include "common/dispatch.h"
#include "common/scores_arguments.h"
#include "isa.h"
#include "kernels.h"
#include "memory.h"
#include "scores_kernels.h"
#include "widen.h"

namespace sfa::cpu {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kChunk = 1 << 17;  // long runs, which the processor's own prefetching needs

// One pass at the speed of memory, for every processor.
template <typename S, typename G>
void accumulate(S* scores, const G* grads, int64_t n, Criterion criterion) {
  switch (criterion) {
    case Criterion::kGradient:
      for (int64_t i = 0; i < n; ++i) scores[i] += widen(grads[i]);
      return;
    case Criterion::kAbsolute:
      for (int64_t i = 0; i < n; ++i) scores[i] += std::abs(widen(grads[i]));
      return;
    case Criterion::kSquared:
      for (int64_t i = 0; i < n; ++i) {
        const S g = widen(grads[i]);
        scores[i] += g * g;
      }
      return;
  }
}

template <typename G>
void add_to_single(float* scores, const G* grads, int64_t n, Criterion criterion) {
#if defined(__x86_64__)
  if (isa() >= Isa::kAvx2) {
    if constexpr (std::is_same_v<G, float>) return accumulate_single_avx2(scores, grads, n, criterion);
    if constexpr (std::is_same_v<G, torch::headeronly::BFloat16>)
      return accumulate_bfloat16_avx2(scores, &grads->x, n, criterion);
    if constexpr (std::is_same_v<G, torch::headeronly::Half>)
      return accumulate_half_avx2(scores, &grads->x, n, criterion);
  }
#endif
  accumulate(scores, grads, n, criterion);
}

void check_pair(const Tensor& score, const Tensor& grad) {
  STD_TORCH_CHECK(score.is_cpu() && grad.is_cpu(), "scores and grads must be on the CPU");
  const bool wide = score.scalar_type() == ScalarType::Double;
  STD_TORCH_CHECK(wide || score.scalar_type() == ScalarType::Float, "scores must be float32 or float64");
  STD_TORCH_CHECK(wide || grad.scalar_type() != ScalarType::Double, "float64 grads need float64 scores");
  dispatch_floating(grad.scalar_type(), "grads", [](auto) {});
}

}  // namespace

void accumulate_scores_(const std::vector<Tensor>& scores,  // any shapes, contiguous, float32 or float64
                        const std::vector<Tensor>& grads,   // of the scores' shapes, any floating dtype
                        const std::string& criterion) {
  const Criterion rule = criterion_of(criterion);
  check_scores(scores, grads);
  std::vector<int64_t> lengths;
  for (size_t i = 0; i < scores.size(); ++i) {
    check_pair(scores[i], grads[i]);
    lengths.push_back(scores[i].numel());
  }
  const std::vector<Tensor> values = contiguous(grads);
  STD_TORCH_CHECK(!overlap(scores, values), "scores must not share memory with one another or with grads");

  for_each_chunk(Chunks(lengths, kChunk), [&](int64_t, const Chunk& c) {
    const Tensor& score = scores[c.list];
    dispatch_floating(values[c.list].scalar_type(), "grads", [&](auto tag) {
      using G = typename decltype(tag)::type;
      const G* grad = static_cast<const G*>(values[c.list].const_data_ptr()) + c.begin;
      const int64_t n = c.end - c.begin;
      if (score.scalar_type() == ScalarType::Double) {
        accumulate(static_cast<double*>(score.mutable_data_ptr()) + c.begin, grad, n, rule);
      } else if constexpr (!std::is_same_v<G, double>) {
        add_to_single(static_cast<float*>(score.mutable_data_ptr()) + c.begin, grad, n, rule);
      }
    });
  });
}

}  // namespace sfa::cpu
