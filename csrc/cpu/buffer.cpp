#include "buffer.h"

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <deque>
#include <mutex>

namespace sfa::cpu {
namespace {

struct Block {
  void* data;
  int64_t bytes;
};

class Pool {
 public:
  // Never waits: a thread that finds the pool busy, or a child forked while it was, goes to the allocator.
  Block take(int64_t bytes) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return {nullptr, 0};
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it)
      if (it->bytes >= bytes && (best == free_.end() || it->bytes < best->bytes)) best = it;
    if (best == free_.end()) return {nullptr, 0};
    const Block block = *best;
    free_.erase(best);
    total_ -= block.bytes;
    return block;
  }

  void give(Block block) {
    const std::unique_lock lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock() || block.bytes > kMost) return std::free(block.data);
    free_.push_back(block);
    total_ += block.bytes;
    for (; total_ > kMost; free_.pop_front()) {
      total_ -= free_.front().bytes;
      std::free(free_.front().data);
    }
  }

 private:
  static constexpr int64_t kMost = int64_t{64} << 20;
  std::mutex mutex_;
  std::deque<Block> free_;  // oldest first
  int64_t total_ = 0;
};

Pool& pool() {
  static Pool& pool = *new Pool;  // never destroyed: threads may outlive static objects
  return pool;
}

}  // namespace

Buffer::Buffer(int64_t bytes) {
  const Block kept = pool().take(bytes);
  data_ = kept.data;
  bytes_ = kept.bytes;
  if (data_ != nullptr) return;
  bytes_ = (bytes + 4096) / 4096 * 4096;
  data_ = std::aligned_alloc(64, static_cast<size_t>(bytes_));
  STD_TORCH_CHECK(data_ != nullptr, "out of memory: a kernel needs ", bytes_, " bytes while it runs");
}

Buffer::~Buffer() {
  if (data_ != nullptr) pool().give({data_, bytes_});
}

}  // namespace sfa::cpu
