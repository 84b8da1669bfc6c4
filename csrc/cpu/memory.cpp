#include "memory.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>

#include "chunks.h"

namespace sfa::cpu {
namespace {

using torch::stable::Tensor;

constexpr int64_t kChunk = 1 << 16;
constexpr int64_t kBlock = 64;
constexpr int64_t kPerLine = 8;  // positions in a cache line
constexpr int64_t kAhead = 512;

// Whether previous < index[0] < ... < index[n - 1] and none of them is negative; n >= 1. Sign bits of all differences
// are gathered instead of compared one by one: plain x86-64 has no comparison of 64-bit lanes. Between numbers that are
// not negative b - a - 1 cannot overflow, and numbers that are negative show in the gathered signs by themselves.
bool increasing(int64_t previous, const int64_t* index, int64_t n) {
  const uint64_t first = static_cast<uint64_t>(index[0]);
  uint64_t signs = first | (first - static_cast<uint64_t>(previous) - 1);
  for (int64_t begin = 1; begin < n; begin += kBlock) {
    // One stream of reads does not fill the memory bus by itself.
    for (int64_t i = 0; i < kBlock; i += kPerLine) __builtin_prefetch(index + begin + kAhead + i);
    const int64_t end = std::min(begin + kBlock, n);
    for (int64_t i = begin; i < end; ++i) {
      const uint64_t a = static_cast<uint64_t>(index[i - 1]);
      const uint64_t b = static_cast<uint64_t>(index[i]);
      signs |= b | (b - a - 1);
    }
  }
  return (signs >> 63) == 0;
}

}  // namespace

int64_t first_unsorted(const std::vector<Tensor>& index, const std::vector<int64_t>& limits) {
  std::vector<int64_t> lengths;
  std::vector<const int64_t*> data;
  for (const Tensor& t : index) {
    lengths.push_back(t.numel());
    data.push_back(t.const_data_ptr<int64_t>());
  }
  const int64_t none = static_cast<int64_t>(index.size());
  std::atomic<int64_t> first{none};
  for_each_chunk(Chunks(std::move(lengths), kChunk), [&](int64_t, const Chunk& c) {
    const int64_t* begin = data[c.list] + c.begin;
    const int64_t n = c.end - c.begin;
    const int64_t previous = c.begin == 0 ? -1 : std::max<int64_t>(begin[-1], -1);
    if (increasing(previous, begin, n) && begin[n - 1] < limits[c.list]) return;
    lower(first, c.list);
  });
  return first == none ? -1 : first.load();
}

}  // namespace sfa::cpu
