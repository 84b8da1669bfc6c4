// Memory that a kernel needs only while it runs. Freed buffers are kept for the next call, up to 64 MiB in all: the
// allocator may give them back to the system each time, and fetching their pages again can take as long as the work.
#pragma once

#include <cstdint>
#include <utility>

namespace sfa::cpu {

class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t bytes);  // aligned to 64 bytes, contents undefined; raises if there is no memory
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Buffer();

  void* data() const { return data_; }  // null for the default-constructed one

 private:
  void* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace sfa::cpu
