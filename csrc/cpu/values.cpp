// sfa::swap_values_: exchanges weight.flatten()[index] with values, bit by bit.
#include <cstdint>

#include "chunks.h"
#include "common/check.h"
#include "kernels.h"
#include "memory.h"

namespace sfa::cpu {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kChunk = 1 << 14;

struct Bits128 {
  uint64_t low, high;
};

// Bits move as integers of the elements' size: a float register may quiet a NaN.
template <typename Bits, typename Index>
void swap(void* weight, const void* positions, void* values, int64_t k) {
  Bits* w = static_cast<Bits*>(weight);
  Bits* v = static_cast<Bits*>(values);
  const Index* index = static_cast<const Index*>(positions);
  for_each_chunk(Chunks({k}, kChunk), [&](int64_t, const Chunk& c) {
    for (int64_t i = c.begin; i < c.end; ++i) {
      const Bits kept = w[index[i]];
      w[index[i]] = v[i];
      v[i] = kept;
    }
  });
}

template <typename Index>
void swap(const Tensor& weight, const Tensor& index, const Tensor& values) {
  void* w = weight.mutable_data_ptr();
  void* v = values.mutable_data_ptr();
  const void* at = index.const_data_ptr();
  const int64_t k = index.numel();
  switch (weight.element_size()) {
    case 1:
      return swap<uint8_t, Index>(w, at, v, k);
    case 2:
      return swap<uint16_t, Index>(w, at, v, k);
    case 4:
      return swap<uint32_t, Index>(w, at, v, k);
    case 8:
      return swap<uint64_t, Index>(w, at, v, k);
    case 16:
      return swap<Bits128, Index>(w, at, v, k);
    default:
      STD_TORCH_CHECK(false, "weight's elements of ", weight.element_size(), " bytes are not supported");
  }
}

}  // namespace

void swap_values_(const Tensor& weight,  // any shape, contiguous
                  const Tensor& index,   // [k] int64 or int32, strictly increasing flat positions
                  const Tensor& values)  // [k] of weight's dtype, contiguous
{
  const bool narrow = index.scalar_type() == ScalarType::Int;
  check_tensor(index, "index", {index.numel()}, narrow ? ScalarType::Int : ScalarType::Long);
  check_tensor(values, "values", {index.numel()}, weight.scalar_type());
  STD_TORCH_CHECK(weight.is_cpu(), "weight must be on the CPU");
  STD_TORCH_CHECK(weight.is_contiguous(), "weight must be contiguous");
  STD_TORCH_CHECK(values.is_contiguous(), "values must be contiguous");
  const std::vector<Tensor> positions = contiguous({index});
  STD_TORCH_CHECK(first_unsorted(positions, {weight.numel()}) < 0,
                  "index must be strictly increasing flat positions within [0, ", weight.numel(), ")");
  STD_TORCH_CHECK(!overlap({weight, values}, positions), "weight, index and values must not share memory");

  (narrow ? swap<int32_t> : swap<int64_t>)(weight, positions[0], values);
}

}  // namespace sfa::cpu
