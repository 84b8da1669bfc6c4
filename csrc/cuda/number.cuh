// The number types of tensors on the device: float, Half and BFloat16, and conversions to and from float.
#pragma once

namespace sfa::cuda {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

__device__ __forceinline__ float to_float(float v) { return v; }
__device__ __forceinline__ float to_float(Half v) { return half_to_float(v.bits); }
__device__ __forceinline__ float to_float(BFloat16 v) { return __uint_as_float(static_cast<uint32_t>(v.bits) << 16); }

// from_float<T>(v) rounds to nearest, ties to even.
template <class T>
__device__ __forceinline__ T from_float(float v);
template <>
__device__ __forceinline__ float from_float<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ Half from_float<Half>(float v) {
  return {float_to_half(v)};
}
template <>
__device__ __forceinline__ BFloat16 from_float<BFloat16>(float v) {
  return {float_to_bfloat16(v)};
}

}  // namespace sfa::cuda
