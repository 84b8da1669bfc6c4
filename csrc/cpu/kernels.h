// The CPU kernels that ops.cpp registers; each is defined in the file named after its operator.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace sfa::cpu {

using torch::stable::Tensor;

// isa.cpp: the instruction set in use, one of "baseline", "avx2", "avx512", "avx512bf16".
std::string cpu_isa();

}  // namespace sfa::cpu
