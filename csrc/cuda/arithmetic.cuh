// Arithmetic that rounds after every operation, as the CPU's does: nvcc would fuse a product and a sum into one.
#pragma once

#include "builtins.cuh"

namespace sfa::cuda {

__device__ __forceinline__ float product(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ double product(double a, double b) { return __dmul_rn(a, b); }

__device__ __forceinline__ float magnitude(float v) { return fabsf(v); }
__device__ __forceinline__ double magnitude(double v) { return fabs(v); }

__device__ __forceinline__ float square_root(float v) { return sqrtf(v); }
__device__ __forceinline__ double square_root(double v) { return sqrt(v); }

// The number as S, the type sums are kept in.
template <class S>
__device__ __forceinline__ S widened(double v) {
  return static_cast<S>(v);
}
template <class S>
__device__ __forceinline__ S widened(float v) {
  return v;
}
template <class S>
__device__ __forceinline__ S widened(Half v) {
  return to_float(v);
}
template <class S>
__device__ __forceinline__ S widened(BFloat16 v) {
  return to_float(v);
}

}  // namespace sfa::cuda
