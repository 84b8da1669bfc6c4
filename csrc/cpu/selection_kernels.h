// The inner loops of selection.cpp, over one run of scores. A key is a score's bits without the sign: U is the unsigned
// integer of the scores' size. Raw pointers only: some of these are compiled for wider instruction sets.
#pragma once

#include <cstdint>

namespace sfa::cpu {

constexpr int kDigit = 11;  // bits of a key that one histogram resolves
constexpr int64_t kBins = 1 << kDigit;
// Neighbouring scores count in different copies, so that equal keys in a row do not wait for one another's increment.
// All copies together fit the first cache.
constexpr int64_t kCopies = 4;

template <typename U>
struct SelectionKernels {
  // Counts the digit (key >> shift) % kBins of each key; bins is [kCopies, kBins]. Returns the largest key.
  U (*histogram)(const U* scores, int64_t n, int shift, uint32_t* bins);
  // The same for what keys in [low, low + width) exceed low by; keys outside are not counted.
  void (*histogram_within)(const U* scores, int64_t n, U low, U width, int shift, uint32_t* bins);
  // Counts the keys above the threshold and those equal to it; n < 2^31.
  void (*count)(const U* scores, int64_t n, U threshold, int64_t* above, int64_t* equal);
  // Writes first + i for each key i that is at least the threshold, in order, and returns how many; out has room for
  // n + kSlack numbers.
  int64_t (*collect)(const U* scores, int64_t n, U threshold, int64_t first, int64_t* out);
};

constexpr int64_t kSlack = 16;

// The fastest kernels for this processor.
template <typename U>
SelectionKernels<U> selection_kernels();

// selection_avx512.cpp
void histogram_within_avx512(const uint32_t* scores, int64_t n, uint32_t low, uint32_t width, int shift,
                             uint32_t* bins);
int64_t collect_avx512(const uint32_t* scores, int64_t n, uint32_t threshold, int64_t first, int64_t* out);

}  // namespace sfa::cpu
