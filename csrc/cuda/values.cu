// sfa::swap_values_: exchanges weight.flatten()[index] with values, bit by bit.
//
// Floor, in bytes of device memory: 8 k of positions, 2 k elements of values, and of the weight the 32-byte sectors
// that hold a position, read and written: 64 k where positions are sparse, twice the weight where they are dense.
#include <cstdint>

#include "common/check.h"
#include "common/tensor_lists.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "cuda/launch.h"
#include "cuda/require.h"

namespace sfa::cuda {
namespace {

using torch::headeronly::ScalarType;

constexpr int kThreads = 256;

struct Bits128 {
  uint64_t low, high;
};

// Bits move as integers of the elements' size: a float register may quiet a NaN.
template <typename Bits>
__global__ void __launch_bounds__(kThreads)
    swap_kernel(Bits* weight, int64_t numel, const int64_t* __restrict__ index, Bits* __restrict__ values, int64_t k) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= k) return;
  const int64_t position = index[i];
  const int64_t previous = i == 0 ? -1 : index[i - 1];
  require(previous < position && position < numel, "index is strictly increasing within the weight", "swap_values_");
  const Bits kept = weight[position];
  weight[position] = values[i];
  values[i] = kept;
}

template <typename Bits>
void swap(const Tensor& weight, const Tensor& index, const Tensor& values) {
  const int64_t k = index.numel();
  const OnDevice device(weight);
  launch("swap_values_", swap_kernel<Bits>, dim3(static_cast<unsigned>((k + kThreads - 1) / kThreads)), dim3(kThreads),
         0, device.stream(), static_cast<Bits*>(weight.mutable_data_ptr()), weight.numel(),
         static_cast<const int64_t*>(index.const_data_ptr()), static_cast<Bits*>(values.mutable_data_ptr()), k);
}

}  // namespace

void swap_values_(const Tensor& weight,  // any shape, contiguous
                  const Tensor& index,   // [k] int64, strictly increasing flat positions
                  const Tensor& values)  // [k] of weight's dtype, contiguous
{
  check_form(index, "index", {index.numel()}, ScalarType::Long);
  check_form(values, "values", {index.numel()}, weight.scalar_type());
  STD_TORCH_CHECK(weight.is_contiguous() && values.is_contiguous(), "weight and values must be contiguous");
  const Tensor positions = contiguous({index})[0];
  STD_TORCH_CHECK(!overlap({weight, values}, {positions}), "weight, index and values must not share memory");
  if (index.numel() == 0) return;
  switch (weight.element_size()) {
    case 1:
      return swap<uint8_t>(weight, positions, values);
    case 2:
      return swap<uint16_t>(weight, positions, values);
    case 4:
      return swap<uint32_t>(weight, positions, values);
    case 8:
      return swap<uint64_t>(weight, positions, values);
    case 16:
      return swap<Bits128>(weight, positions, values);
    default:
      STD_TORCH_CHECK(false, "weight's elements of ", weight.element_size(), " bytes are not supported");
  }
}

}  // namespace sfa::cuda
