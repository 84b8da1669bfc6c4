#include "memory.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <type_traits>

#include "chunks.h"

namespace sfa::cpu {
namespace {

using torch::stable::Tensor;

constexpr int64_t kChunk = 1 << 16;
constexpr int64_t kBlock = 64;
constexpr int64_t kLine = 64;  // bytes of a line of the cache
constexpr int64_t kAhead = 512;

// Whether previous < index[0] < ... < index[n - 1] and none of them is negative; n >= 1. Sign bits of all differences
// are gathered instead of compared one by one: plain x86-64 has no comparison of 64-bit lanes. Between numbers that are
// not negative b - a - 1 cannot overflow, and numbers that are negative show in the gathered signs by themselves.
template <class Index>
bool increasing(Index previous, const Index* index, int64_t n) {
  using Word = std::make_unsigned_t<Index>;
  constexpr int64_t kPerLine = kLine / static_cast<int64_t>(sizeof(Index));
  const Word first = static_cast<Word>(index[0]);
  Word signs = first | (first - static_cast<Word>(previous) - 1);
  for (int64_t begin = 1; begin < n; begin += kBlock) {
    // One stream of reads does not fill the memory bus by itself.
    for (int64_t i = 0; i < kBlock; i += kPerLine) __builtin_prefetch(index + begin + kAhead + i);
    const int64_t end = std::min(begin + kBlock, n);
    for (int64_t i = begin; i < end; ++i) {
      const Word a = static_cast<Word>(index[i - 1]);
      const Word b = static_cast<Word>(index[i]);
      signs |= b | (b - a - 1);
    }
  }
  return (signs >> (8 * sizeof(Word) - 1)) == 0;
}

// Whether part c of a tensor goes on increasing from what is in front of it, and stays below the limit.
template <class Index>
bool sorted(const Tensor& index, const Chunk& c, int64_t limit) {
  const Index* begin = static_cast<const Index*>(index.const_data_ptr()) + c.begin;
  const int64_t n = c.end - c.begin;
  const Index previous = c.begin == 0 ? -1 : std::max<Index>(begin[-1], -1);
  return increasing(previous, begin, n) && begin[n - 1] < limit;
}

}  // namespace

int64_t first_unsorted(const std::vector<Tensor>& index, const std::vector<int64_t>& limits) {
  std::vector<int64_t> lengths;
  for (const Tensor& t : index) lengths.push_back(t.numel());
  const int64_t none = static_cast<int64_t>(index.size());
  std::atomic<int64_t> first{none};
  for_each_chunk(Chunks(std::move(lengths), kChunk), [&](int64_t, const Chunk& c) {
    const Tensor& t = index[c.list];
    const bool narrow = t.scalar_type() == torch::headeronly::ScalarType::Int;
    if (!(narrow ? sorted<int32_t> : sorted<int64_t>)(t, c, limits[c.list])) lower(first, c.list);
  });
  return first == none ? -1 : first.load();
}

}  // namespace sfa::cpu
