// Conversion to the type sums are kept in, in a form that compilers vectorise for plain x86-64.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <bit>
#include <cstdint>

namespace sfa::cpu {

inline double widen(double x) { return x; }
inline float widen(float x) { return x; }

inline float widen(torch::headeronly::BFloat16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.x) << 16); }

// Branch-free, unlike Half's own conversion, and independent of the processor's denormals-are-zero mode.
inline float widen(torch::headeronly::Half x) {
  const int32_t bits = x.x;
  const int32_t magnitude = bits & 0x7fff;
  const int32_t is_subnormal = (magnitude - 0x400) >> 31;  // all ones or all zeros
  const int32_t is_infinite = (0x7bff - magnitude) >> 31;  // or NaN
  const int32_t normal = (magnitude << 13) + (((127 - 15) + (is_infinite & (255 - 31 - (127 - 15)))) << 23);
  const int32_t subnormal = std::bit_cast<int32_t>(static_cast<float>(magnitude) * 0x1p-24f);
  const int32_t merged = (normal & ~is_subnormal) | (subnormal & is_subnormal);
  return std::bit_cast<float>(merged | static_cast<int32_t>(static_cast<uint32_t>(bits & 0x8000) << 16));
}

}  // namespace sfa::cpu
