// Sums of fp16 gradients: plain x86-64 takes longer to widen them than memory to bring them, F16C does not.
#include <immintrin.h>

#include "scores_kernels.h"

namespace sfa::cpu {
namespace {

// The square of an fp16 number is exact in float32: whether the compiler fuses it with the sum makes no difference.
template <Criterion criterion>
__m256 term(__m256 g) {
  if constexpr (criterion == Criterion::kAbsolute) return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), g);
  if constexpr (criterion == Criterion::kSquared) return _mm256_mul_ps(g, g);
  return g;
}

template <Criterion criterion>
void accumulate(float* scores, const uint16_t* grads, int64_t n) {
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m256 g = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(grads + i)));
    _mm256_storeu_ps(scores + i, _mm256_add_ps(_mm256_loadu_ps(scores + i), term<criterion>(g)));
  }
  for (; i < n; ++i) {
    const __m256 g = _mm256_castps128_ps256(_mm_cvtph_ps(_mm_cvtsi32_si128(grads[i])));
    scores[i] = _mm256_cvtss_f32(_mm256_add_ps(_mm256_set1_ps(scores[i]), term<criterion>(g)));
  }
}

}  // namespace

void accumulate_half_avx2(float* scores, const uint16_t* grads, int64_t n, Criterion criterion) {
  switch (criterion) {
    case Criterion::kGradient:
      return accumulate<Criterion::kGradient>(scores, grads, n);
    case Criterion::kAbsolute:
      return accumulate<Criterion::kAbsolute>(scores, grads, n);
    case Criterion::kSquared:
      return accumulate<Criterion::kSquared>(scores, grads, n);
  }
}

}  // namespace sfa::cpu
