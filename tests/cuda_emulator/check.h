// What test programs of the emulator share: memory with sentinels, random numbers, comparisons, the exit status.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "cuda_emulator.h"

namespace check {

inline int failures = 0;

// Reports and counts a failure.
inline void expect(bool holds, const std::string& what) {
  if (holds) return;
  if (++failures <= 20) std::printf("FAILED: %s\n", what.c_str());
}

inline int exit_status() {
  std::printf("%d failures\n", failures);
  return failures == 0 ? 0 : 1;
}

// `size` numbers at an address aligned to 256 bytes (plus `offset` numbers), all bits set (NaN for floating types),
// with sentinels on both sides; under AddressSanitizer touching these ends the program.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t size, int64_t offset = 0) : size_(size), offset_(offset * sizeof(T)) {
    const size_t bytes = kGuard + offset_ + size * sizeof(T) + kGuard;
    memory_ = static_cast<char*>(std::aligned_alloc(kGuard, (bytes + kGuard - 1) / kGuard * kGuard));
    std::memset(memory_, kPattern, bytes);
    std::memset(static_cast<void*>(data()), 0xff, size * sizeof(T));
    guard(true);
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() {
    guard(false);
    std::free(memory_);
  }
  T* data() { return reinterpret_cast<T*>(memory_ + kGuard + offset_); }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) { return data()[i]; }
  std::vector<T> values() { return std::vector<T>(data(), data() + size_); }

  // Expects that nothing was written beside the numbers.
  void expect_intact(const std::string& name) {
    guard(false);
    bool intact = true;
    for (size_t i = 0; i < kGuard; ++i) {
      const char* behind = reinterpret_cast<char*>(data() + size_);
      intact = intact && memory_[i] == kPattern && behind[i] == kPattern;
    }
    guard(true);
    expect(intact, name + ": something was written outside of it");
  }

 private:
  static constexpr size_t kGuard = 256;
  static constexpr char kPattern = static_cast<char>(0xff);

  void guard([[maybe_unused]] bool on) {
#if defined(__SANITIZE_ADDRESS__)
    char* behind = reinterpret_cast<char*>(data() + size_);
    if (on) {
      ASAN_POISON_MEMORY_REGION(memory_, kGuard + offset_ / 8 * 8);
      ASAN_POISON_MEMORY_REGION(behind, kGuard);
    } else {
      ASAN_UNPOISON_MEMORY_REGION(memory_, kGuard + offset_);
      ASAN_UNPOISON_MEMORY_REGION(behind, kGuard);
    }
#endif
  }

  int64_t size_;
  size_t offset_;
  char* memory_;
};

// Norm of the difference over the norm of the exact values; NaN anywhere gives NaN, which no bound admits.
inline double relative_error(const std::vector<double>& got, const std::vector<double>& exact) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    difference += (got[i] - exact[i]) * (got[i] - exact[i]);
    norm += exact[i] * exact[i];
  }
  return std::sqrt(difference / std::max(norm, 1e-30));
}

inline void expect_close(const std::vector<double>& got, const std::vector<double>& exact, double bound,
                         const std::string& what) {
  const double error = relative_error(got, exact);
  expect(got.size() == exact.size() && error <= bound,
         what + ": relative error " + std::to_string(error) + ", at most " + std::to_string(bound) + " is allowed");
}

// Whether two buffers hold the same bits.
template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

inline std::string order_name(const emulator::Order& order) {
  static const char* const names[] = {"forward", "backward", "shuffled", "greedy forward", "greedy backward"};
  return std::string(names[static_cast<int>(order.threads)]) + (order.late_copies ? ", late copies" : ", early copies");
}

}  // namespace check
