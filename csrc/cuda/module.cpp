// The CUDA kernel that serves each operator; the schemas belong to libsfa_cpu. Kernels are declared in cuda/kernels.h.
#include <torch/csrc/stable/library.h>

#include "cuda/kernels.h"

STABLE_TORCH_LIBRARY_IMPL(sfa, CUDA, m) { m.impl("swap_values_", TORCH_BOX(&sfa::cuda::swap_values_)); }
