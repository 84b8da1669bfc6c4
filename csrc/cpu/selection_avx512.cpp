// The loops of select_topk over float32 scores that pack what they find: AVX-512 does that sixteen scores at a time.
#include <immintrin.h>

#include "selection_kernels.h"

namespace sfa::cpu {
namespace {

constexpr int64_t kBlock = 512;

__mmask16 lanes(int64_t n) { return static_cast<__mmask16>(n >= 16 ? 0xffff : (1 << n) - 1); }

__m512i keys(const uint32_t* scores, __mmask16 valid) {
  return _mm512_and_si512(_mm512_maskz_loadu_epi32(valid, scores), _mm512_set1_epi32(0x7fffffff));
}

}  // namespace

void histogram_within_avx512(const uint32_t* scores, int64_t n, uint32_t low, uint32_t width, int shift,
                             uint32_t* bins) {
  alignas(64) uint32_t digits[kBlock + 16];
  const __m512i from = _mm512_set1_epi32(static_cast<int>(low));
  const __m512i range = _mm512_set1_epi32(static_cast<int>(width));
  const __m128i right = _mm_cvtsi32_si128(shift);
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = begin + kBlock < n ? begin + kBlock : n;
    int64_t m = 0;
    for (int64_t i = begin; i < end; i += 16) {
      const __mmask16 valid = lanes(end - i);
      const __m512i rest = _mm512_sub_epi32(keys(scores + i, valid), from);
      const __mmask16 found = _mm512_mask_cmplt_epu32_mask(valid, rest, range);
      _mm512_storeu_si512(digits + m, _mm512_maskz_compress_epi32(found, _mm512_maskz_srl_epi32(found, rest, right)));
      m += __builtin_popcount(found);
    }
    for (int64_t i = 0; i < m; ++i) ++bins[(i % kCopies) * kBins + digits[i]];
  }
}

int64_t collect_avx512(const uint32_t* scores, int64_t n, uint32_t threshold, int64_t first, int64_t* out) {
  const __m512i limit = _mm512_set1_epi32(static_cast<int>(threshold));
  const __m512i eight = _mm512_set1_epi64(8);
  __m512i low = _mm512_add_epi64(_mm512_set1_epi64(first), _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7));
  int64_t m = 0;
  for (int64_t i = 0; i < n; i += 16) {
    const __mmask16 valid = lanes(n - i);
    const __mmask16 found = _mm512_mask_cmpge_epi32_mask(valid, keys(scores + i, valid), limit);
    const __m512i high = _mm512_add_epi64(low, eight);
    _mm512_storeu_si512(out + m, _mm512_maskz_compress_epi64(static_cast<__mmask8>(found), low));
    m += __builtin_popcount(found & 0xff);
    _mm512_storeu_si512(out + m, _mm512_maskz_compress_epi64(static_cast<__mmask8>(found >> 8), high));
    m += __builtin_popcount(found >> 8);
    low = _mm512_add_epi64(high, eight);
  }
  return m;
}

}  // namespace sfa::cpu
