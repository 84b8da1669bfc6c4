// Work on several lists at once: they are cut into chunks, and threads take chunks one by one, so that neither a long
// list nor a slow thread holds up the rest. What a chunk computes must not depend on which thread took it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

namespace sfa::cpu {

struct Chunk {
  int64_t list;   // which list
  int64_t begin;  // first element, counted in the list
  int64_t end;
};

class Chunks {
 public:
  Chunks(std::vector<int64_t> lengths, int64_t chunk_length) : lengths_(std::move(lengths)), length_(chunk_length) {
    first_.reserve(lengths_.size() + 1);
    first_.push_back(0);
    for (int64_t n : lengths_) first_.push_back(first_.back() + (n + length_ - 1) / length_);
  }

  int64_t size() const { return first_.back(); }

  Chunk operator[](int64_t i) const {
    const int64_t list = std::upper_bound(first_.begin(), first_.end(), i) - first_.begin() - 1;
    const int64_t begin = (i - first_[list]) * length_;
    return {list, begin, std::min(begin + length_, lengths_[list])};
  }

 private:
  std::vector<int64_t> lengths_;
  std::vector<int64_t> first_;  // number of the first chunk of each list
  int64_t length_;
};

// Runs worker(next) on torch's threads; each worker calls next() for the number of its next chunk until it gets -1.
template <typename Worker>
void share_chunks(int64_t n, const Worker& worker) {
  if (n == 0) return;
  std::atomic<int64_t> taken{0};
  const auto next = [&]() -> int64_t {
    const int64_t i = taken.fetch_add(1, std::memory_order_relaxed);
    return i < n ? i : -1;
  };
  const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), n);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) { worker(next); });
}

// Calls work(number, chunk) once for every chunk, on torch's threads.
template <typename Work>
void for_each_chunk(const Chunks& chunks, const Work& work) {
  share_chunks(chunks.size(), [&](const auto& next) {
    for (int64_t i = next(); i >= 0; i = next()) work(i, chunks[i]);
  });
}

// Lowers `smallest` to `value` where that is smaller.
inline void lower(std::atomic<int64_t>& smallest, int64_t value) {
  int64_t seen = smallest.load();
  while (value < seen && !smallest.compare_exchange_weak(seen, value)) {
  }
}

}  // namespace sfa::cpu
