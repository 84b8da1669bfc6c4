// sfa::swap_values_: exchanges weight.flatten()[index] with values, bit by bit.
//
// Floor, in bytes of device memory: 8 k of positions (4 k of 32 bits), 2 k elements of values, and of the weight the
// 32-byte sectors that hold a position, read and written: 64 k where positions are sparse, twice the weight where they
// are dense.
#pragma once

#include "builtins.cuh"
#include "require.cuh"

namespace sfa::cuda {

constexpr int kSwapThreads = 256;

struct Bits128 {
  uint64_t low, high;
};

// Bits: an integer of the elements' size, since a float register may quiet a NaN.
template <class Bits, class Index>
__global__ void __launch_bounds__(kSwapThreads)
    swap_kernel(Bits* weight, int64_t numel, const Index* index, Bits* values, int64_t k) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kSwapThreads + threadIdx.x;
  if (i >= k) return;
  const int64_t position = index[i], previous = i == 0 ? -1 : index[i - 1];
  require(previous < position && position < numel, "index is strictly increasing within the weight", "swap_values_");
  const Bits kept = weight[position];
  weight[position] = values[i];
  values[i] = kept;
}

#if !defined(__CUDACC_RTC__)
// Starts it; k >= 1.
template <class Bits, class Index>
void swap(void* weight, int64_t numel, const Index* index, void* values, int64_t k, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((k + kSwapThreads - 1) / kSwapThreads));
  launch("swap_values_", &swap_kernel<Bits, Index>, grid, dim3(kSwapThreads), 0, stream, static_cast<Bits*>(weight),
         numel, index, static_cast<Bits*>(values), k);
}
#endif

}  // namespace sfa::cuda
