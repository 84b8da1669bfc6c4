// Sums of gradients eight at a time. See scores_kernels.h for what that is worth.
#include <immintrin.h>

#include <cstring>

#include "scores_kernels.h"

namespace sfa::cpu {
namespace {

constexpr int64_t kLanes = 8;

__m256 widen(const float* p) { return _mm256_loadu_ps(p); }

struct Bfloat16 {
  uint16_t bits;
};

__m256 widen(const Bfloat16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

struct Half {
  uint16_t bits;
};

__m256 widen(const Half* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }

template <Criterion criterion>
__m256 term(__m256 g) {
  if constexpr (criterion == Criterion::kAbsolute) return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), g);
  if constexpr (criterion == Criterion::kSquared) return _mm256_mul_ps(g, g);
  return g;
}

template <Criterion criterion, class G>
void add_lanes(float* scores, const G* grads) {
  _mm256_storeu_ps(scores, _mm256_add_ps(_mm256_loadu_ps(scores), term<criterion>(widen(grads))));
}

template <Criterion criterion, class G>
void accumulate(float* scores, const G* grads, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) add_lanes<criterion>(scores + i, grads + i);
  if (i == n) return;
  float last_scores[kLanes] = {};
  G last_grads[kLanes] = {};
  std::memcpy(last_scores, scores + i, (n - i) * sizeof(float));
  std::memcpy(last_grads, grads + i, (n - i) * sizeof(G));
  add_lanes<criterion>(last_scores, last_grads);
  std::memcpy(scores + i, last_scores, (n - i) * sizeof(float));
}

template <class G>
void accumulate(float* scores, const G* grads, int64_t n, Criterion criterion) {
  switch (criterion) {
    case Criterion::kGradient:
      return accumulate<Criterion::kGradient>(scores, grads, n);
    case Criterion::kAbsolute:
      return accumulate<Criterion::kAbsolute>(scores, grads, n);
    case Criterion::kSquared:
      return accumulate<Criterion::kSquared>(scores, grads, n);
  }
}

}  // namespace

void accumulate_single_avx2(float* scores, const float* grads, int64_t n, Criterion criterion) {
  accumulate(scores, grads, n, criterion);
}

void accumulate_bfloat16_avx2(float* scores, const uint16_t* grads, int64_t n, Criterion criterion) {
  accumulate(scores, reinterpret_cast<const Bfloat16*>(grads), n, criterion);
}

void accumulate_half_avx2(float* scores, const uint16_t* grads, int64_t n, Criterion criterion) {
  accumulate(scores, reinterpret_cast<const Half*>(grads), n, criterion);
}

}  // namespace sfa::cpu
