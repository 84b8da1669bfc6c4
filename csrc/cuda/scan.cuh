// Sums over the threads of a block, before each thread and in all.
#pragma once

#include "builtins.cuh"

namespace sfa::cuda {

template <class T>
struct Scan {
  T before;  // sum of the values of the threads before this one
  T total;
};

// All threads of the block call it, a multiple of 32. `sums` is shared memory for 32 values: between two calls with the
// same `sums` the block has to pass a barrier after all threads returned from the first.
template <class T>
__device__ __forceinline__ Scan<T> block_scan(T value, T* sums) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  T inclusive = value;
#pragma unroll
  for (int delta = 1; delta < 32; delta *= 2) {
    const T lower = __shfl_up_sync(~0u, inclusive, delta);
    if (lane >= delta) inclusive += lower;
  }
  if (lane == 31) sums[warp] = inclusive;
  __syncthreads();  // the sums of all warps are there

  // Of the warps up to number `lane`.
  T through = lane < warps ? sums[lane] : T{0};
#pragma unroll
  for (int delta = 1; delta < 32; delta *= 2) {
    const T lower = __shfl_up_sync(~0u, through, delta);
    if (lane >= delta) through += lower;
  }
  const T before_warp = __shfl_sync(~0u, through, warp == 0 ? 0 : warp - 1);
  return {(warp == 0 ? T{0} : before_warp) + inclusive - value, __shfl_sync(~0u, through, 31)};
}

}  // namespace sfa::cuda
