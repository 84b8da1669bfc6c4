// What the adapter operators share on CPUs: packed weights, and sharing rows out to threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "adapter_kernels.h"
#include "buffer.h"
#include "common/adapter_arguments.h"

namespace sfa::cpu {

using torch::stable::Tensor;

// The kernels of the instruction set in use for a number type.
const AdapterKernels& adapter_kernels(torch::headeronly::ScalarType dtype);

// Those for products of that type: other ones where AMX may leave out bits of float32.
const AdapterKernels& product_kernels(torch::headeronly::ScalarType dtype);

// Whether isa.h leaves products of this type to torch.
bool leave_to_torch(torch::headeronly::ScalarType dtype);

Buffer pack_transposed(const AdapterKernels& k, const Tensor& w);  // w [n, depth]
Buffer pack_plain(const AdapterKernels& k, const Tensor& w);       // w [depth, n]

// acc [n], padded with zeros to whole panels; all zeros where there is no tensor.
Buffer widened(const AdapterKernels& k, const std::optional<Tensor>& v, int64_t n);

// f(first row, last row, scratch) over all rows, cut at whole tiles (with `few` at whole panels), so that no bit
// depends on the number of threads.
template <class F>
void for_rows(const AdapterKernels& k, const AdapterSizes& sizes, bool few, const F& f) {
  constexpr int64_t kProducts = 1 << 18;  // too few for a second thread
  const int64_t tile = few ? k.panel : k.tile_rows, tiles = (sizes.rows + tile - 1) / tile;
  const int64_t products = std::max<int64_t>(1, tile * sizes.width * sizes.hidden);
  torch::stable::parallel_for(0, tiles, std::max<int64_t>(1, kProducts / products), [&](int64_t begin, int64_t end) {
    const Buffer scratch(k.row_scratch(sizes.width, sizes.hidden, few));
    f(begin * tile, std::min(end * tile, sizes.rows), scratch.data());
  });
}

}  // namespace sfa::cpu
