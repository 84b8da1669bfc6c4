// The CUDA kernels that module.cpp registers; each is defined in the file named after its operator.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace sfa::cuda {

using torch::stable::Tensor;

// values.cu
void swap_values_(const Tensor& weight, const Tensor& index, const Tensor& values);

}  // namespace sfa::cuda
