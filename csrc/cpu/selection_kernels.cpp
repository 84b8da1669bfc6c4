#include "selection_kernels.h"

#include <algorithm>
#include <limits>
#include <type_traits>

#include "isa.h"

namespace sfa::cpu {
namespace {

constexpr int64_t kBlock = 512;

template <typename U>
U key(U score) {
  return score & static_cast<U>(std::numeric_limits<U>::max() >> 1);
}

template <typename U>
U histogram(const U* scores, int64_t n, int shift, uint32_t* bins) {
  U largest = 0;
  const auto add = [&](U k, int64_t copy) {
    largest = std::max(largest, k);
    ++bins[copy * kBins + static_cast<int64_t>((k >> shift) % kBins)];
  };
  int64_t i = 0;
  for (; i + kCopies <= n; i += kCopies) {
    for (int64_t copy = 0; copy < kCopies; ++copy) add(key(scores[i + copy]), copy);
  }
  for (; i < n; ++i) add(key(scores[i]), 0);
  return largest;
}

// Packs the keys in question without a branch, which their order could not predict, and counts those alone.
template <typename U>
void histogram_within(const U* scores, int64_t n, U low, U width, int shift, uint32_t* bins) {
  U packed[kBlock + 1];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, n);
    int64_t m = 0;
    for (int64_t i = begin; i < end; ++i) {
      packed[m] = static_cast<U>(key(scores[i]) - low);
      m += packed[m] < width;
    }
    histogram(packed, m, shift, bins);
  }
}

template <typename U>
void count(const U* scores, int64_t n, U threshold, int64_t* above, int64_t* equal) {
  using Signed = std::make_signed_t<U>;  // keys have no sign bit, and plain x86-64 compares signed lanes only
  using Sum = std::conditional_t<sizeof(U) == 8, int64_t, int32_t>;
  const Signed limit = static_cast<Signed>(threshold);
  Sum larger = 0, same = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Signed k = static_cast<Signed>(key(scores[i]));
    larger += k > limit;
    same += k == limit;
  }
  *above = larger;
  *equal = same;
}

template <typename U>
int64_t collect(const U* scores, int64_t n, U threshold, int64_t first, int64_t* out) {
  int64_t m = 0;
  for (int64_t i = 0; i < n; ++i) {
    out[m] = first + i;
    m += key(scores[i]) >= threshold;
  }
  return m;
}

}  // namespace

template <typename U>
SelectionKernels<U> selection_kernels() {
  SelectionKernels<U> kernels{histogram<U>, histogram_within<U>, count<U>, collect<U>};
#if defined(__x86_64__)
  if constexpr (std::is_same_v<U, uint32_t>) {
    if (isa() >= Isa::kAvx512) {
      kernels.histogram_within = histogram_within_avx512;
      kernels.collect = collect_avx512;
    }
  }
#endif
  return kernels;
}

template SelectionKernels<uint16_t> selection_kernels();
template SelectionKernels<uint32_t> selection_kernels();
template SelectionKernels<uint64_t> selection_kernels();

}  // namespace sfa::cpu
