// The inner loops of selection.cpp, over one run of scores. A key is a score's bits without the sign; U is the unsigned
// integer of the scores' size. None is faster in a wider instruction set: what they wait for is the counters.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace sfa::cpu {

constexpr int kDigit = 11;  // bits of a key that one histogram resolves
constexpr int64_t kBins = 1 << kDigit;
// Neighbouring scores count in different copies, so that equal keys in a row do not wait for one another's increment.
// All copies together fit the first cache.
constexpr int64_t kCopies = 4;

template <typename U>
U key_of(U score) {
  return score & static_cast<U>(std::numeric_limits<U>::max() >> 1);
}

// Counts the digit (key >> shift) % kBins of each key; bins is [kCopies, kBins]. Returns the largest key.
template <typename U>
U histogram(const U* scores, int64_t n, int shift, uint32_t* bins) {
  U largest = 0;
  const auto add = [&](U key, int64_t copy) {
    largest = std::max(largest, key);
    ++bins[copy * kBins + static_cast<int64_t>((key >> shift) % kBins)];
  };
  int64_t i = 0;
  for (; i + kCopies <= n; i += kCopies) {
    for (int64_t copy = 0; copy < kCopies; ++copy) add(key_of(scores[i + copy]), copy);
  }
  for (; i < n; ++i) add(key_of(scores[i]), 0);
  return largest;
}

// The same for what keys in [low, low + width) exceed low by; keys outside are not counted. The keys in question are
// packed without a branch, which their order could not predict.
template <typename U>
void histogram_within(const U* scores, int64_t n, U low, U width, int shift, uint32_t* bins) {
  constexpr int64_t kBlock = 512;
  U packed[kBlock + 1];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, n);
    int64_t m = 0;
    for (int64_t i = begin; i < end; ++i) {
      packed[m] = static_cast<U>(key_of(scores[i]) - low);
      m += packed[m] < width;
    }
    histogram(packed, m, shift, bins);
  }
}

// Counts the keys above the threshold and those equal to it; n < 2^31.
template <typename U>
void count(const U* scores, int64_t n, U threshold, int64_t* above, int64_t* equal) {
  using Signed = std::make_signed_t<U>;  // keys have no sign bit, and plain x86-64 compares signed lanes only
  using Sum = std::conditional_t<sizeof(U) == 8, int64_t, int32_t>;
  const Signed limit = static_cast<Signed>(threshold);
  Sum larger = 0, same = 0;
  for (int64_t i = 0; i < n; ++i) {
    const Signed key = static_cast<Signed>(key_of(scores[i]));
    larger += key > limit;
    same += key == limit;
  }
  *above = larger;
  *equal = same;
}

// Writes first + i for each key i that is at least the threshold, in order, and returns how many; out has room for
// n + 1 numbers.
template <typename U>
int64_t collect(const U* scores, int64_t n, U threshold, int64_t first, int64_t* out) {
  int64_t m = 0;
  for (int64_t i = 0; i < n; ++i) {
    out[m] = first + i;
    m += key_of(scores[i]) >= threshold;
  }
  return m;
}

}  // namespace sfa::cpu
