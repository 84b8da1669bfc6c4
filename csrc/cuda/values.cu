// sfa::swap_values_ for tensors of torch.
#include "common/check.h"
#include "common/tensor_lists.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "values.cuh"

namespace sfa::cuda {

using torch::headeronly::ScalarType;

void swap_values_(const Tensor& weight,  // any shape, contiguous
                  const Tensor& index,   // [k] int64 or int32, strictly increasing flat positions
                  const Tensor& values)  // [k] of weight's dtype, contiguous
{
  const int64_t k = index.numel();
  const bool narrow = index.scalar_type() == ScalarType::Int;
  check_form(index, "index", {k}, narrow ? ScalarType::Int : ScalarType::Long);
  check_form(values, "values", {k}, weight.scalar_type());
  STD_TORCH_CHECK(weight.is_contiguous() && values.is_contiguous(), "weight and values must be contiguous");
  const OnDevice device(weight, {index, values});
  const Tensor positions = contiguous({index})[0];
  STD_TORCH_CHECK(!overlap({weight, values}, {positions}), "weight, index and values must not share memory");
  if (k == 0) return;
  const void* at = positions.const_data_ptr();
  const auto start = [&](auto bits) {
    const auto with = [&](const auto* index) {
      swap<decltype(bits)>(weight.mutable_data_ptr(), weight.numel(), index, values.mutable_data_ptr(), k,
                           device.stream());
    };
    if (narrow) return with(static_cast<const int32_t*>(at));
    with(static_cast<const int64_t*>(at));
  };
  switch (weight.element_size()) {
    case 1:
      return start(uint8_t{});
    case 2:
      return start(uint16_t{});
    case 4:
      return start(uint32_t{});
    case 8:
      return start(uint64_t{});
    case 16:
      return start(Bits128{});
    default:
      STD_TORCH_CHECK(false, "weight's elements of ", weight.element_size(), " bytes are not supported");
  }
}

}  // namespace sfa::cuda
