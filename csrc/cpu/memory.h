// What must hold before a kernel writes through lists of positions and tensors: positions are sorted, unique and in
// range, and nothing that is written is also reached under another name.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "common/tensor_lists.h"

namespace sfa::cpu {

// First i for which index[i], an int64 or int32 [k_i] tensor, is not strictly increasing within [0, limits[i]); -1 if
// none.
int64_t first_unsorted(const std::vector<torch::stable::Tensor>& index, const std::vector<int64_t>& limits);

}  // namespace sfa::cpu
