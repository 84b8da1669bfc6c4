// What the adapter operators share: arguments, packed weights, and sharing rows out to threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <optional>

#include "adapter_kernels.h"

namespace sfa::cpu {

using torch::stable::Tensor;

// The kernels of the instruction set in use for a number type.
const AdapterKernels& adapter_kernels(torch::headeronly::ScalarType dtype);

struct AdapterSizes {
  int64_t rows, width, hidden;  // N, D, d
};

// Raises unless shapes, dtypes and devices are those of an adapter.
AdapterSizes check_adapter(const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down,
                           const Tensor& w_up, const std::optional<Tensor>& b_up);

Tensor pack_transposed(const AdapterKernels& k, const Tensor& w);  // w [n, depth]
Tensor pack_plain(const AdapterKernels& k, const Tensor& w);       // w [depth, n]

// acc [n], padded with zeros to whole panels; all zeros where there is no tensor.
Tensor widened(const AdapterKernels& k, const std::optional<Tensor>& v, const Tensor& like, int64_t n);

inline Tensor new_bytes(const Tensor& like, int64_t bytes) {
  return torch::stable::new_empty(like, {bytes}, torch::headeronly::ScalarType::Byte);
}

// Memory of one thread for the time of one range.
class Scratch {
 public:
  explicit Scratch(int64_t bytes) : data_(std::aligned_alloc(64, static_cast<size_t>((bytes + 64) / 64 * 64))) {
    STD_TORCH_CHECK(data_ != nullptr, "out of memory: an adapter kernel needs ", bytes, " bytes for each thread");
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

// f(first row, last row, scratch) over all rows, cut at whole tiles, so that no bit depends on the number of threads.
template <class F>
void for_rows(const AdapterKernels& k, const AdapterSizes& sizes, int64_t scratch_bytes, const F& f) {
  constexpr int64_t kProducts = 1 << 18;  // too few for a second thread
  const int64_t tiles = (sizes.rows + k.tile_rows - 1) / k.tile_rows;
  const int64_t products = std::max<int64_t>(1, k.tile_rows * sizes.width * sizes.hidden);
  torch::stable::parallel_for(0, tiles, std::max<int64_t>(1, kProducts / products), [&](int64_t begin, int64_t end) {
    const Scratch scratch(scratch_bytes);
    f(begin * k.tile_rows, std::min(end * k.tile_rows, sizes.rows), scratch.data());
  });
}

}  // namespace sfa::cpu
