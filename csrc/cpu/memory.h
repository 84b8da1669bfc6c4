// What must hold before a kernel writes through lists of positions and tensors: positions are sorted, unique and in
// range, and nothing that is written is also reached under another name.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace sfa::cpu {

// First i for which index[i], an int64 [k_i] tensor, is not strictly increasing within [0, limits[i]); -1 if none.
int64_t first_unsorted(const std::vector<torch::stable::Tensor>& index, const std::vector<int64_t>& limits);

// Whether an element of a tensor in `written` is also an element of another tensor in `written` or `read`.
// All must be contiguous.
bool overlap(const std::vector<torch::stable::Tensor>& written, const std::vector<torch::stable::Tensor>& read);

// The tensors themselves where they are contiguous, contiguous copies elsewhere.
std::vector<torch::stable::Tensor> contiguous(const std::vector<torch::stable::Tensor>& tensors);

}  // namespace sfa::cpu
