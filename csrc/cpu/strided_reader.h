// Reads runs of a tensor's elements in flat order, whatever its strides: without a copy where a run lies in memory as
// it is, else through a small buffer.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace sfa::cpu {

template <typename T>
class StridedReader {
 public:
  explicit StridedReader(const torch::stable::Tensor& t) : data_(static_cast<const T*>(t.const_data_ptr())) {
    sizes_.assign(t.sizes().begin(), t.sizes().end());
    strides_.assign(t.strides().begin(), t.strides().end());
    if (sizes_.empty()) return;
    // The longest tail of dimensions that one stride walks through is a row.
    row_ = sizes_.back();
    step_ = strides_.back();
    sizes_.pop_back();
    strides_.pop_back();
    while (!sizes_.empty() && (sizes_.back() == 1 || row_ == 1 || strides_.back() == row_ * step_)) {
      if (row_ == 1) step_ = strides_.back();
      row_ *= sizes_.back();
      sizes_.pop_back();
      strides_.pop_back();
    }
  }

  // Elements [begin, begin + n) in flat order, n >= 1; valid until `buffer` changes.
  const T* read(int64_t begin, int64_t n, std::vector<T>& buffer) const {
    if (step_ == 1 && begin / row_ == (begin + n - 1) / row_) return at(begin);
    buffer.resize(n);
    for (int64_t done = 0; done < n;) {
      const T* from = at(begin + done);
      const int64_t length = std::min(n - done, row_ - (begin + done) % row_);
      for (int64_t i = 0; i < length; ++i) buffer[done + i] = from[i * step_];
      done += length;
    }
    return buffer.data();
  }

 private:
  const T* at(int64_t i) const {
    int64_t offset = i % row_ * step_;
    int64_t rest = i / row_;
    for (size_t dim = sizes_.size(); dim-- > 0; rest /= sizes_[dim]) offset += rest % sizes_[dim] * strides_[dim];
    return data_ + offset;
  }

  const T* data_;
  std::vector<int64_t> sizes_, strides_;  // the dimensions outside a row
  int64_t row_ = 1;                       // elements of a row
  int64_t step_ = 1;                      // between neighbours in a row
};

}  // namespace sfa::cpu
