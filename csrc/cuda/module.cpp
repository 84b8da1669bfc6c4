// The CUDA kernel that serves each operator; the schemas belong to libsfa_cpu. Kernels are declared in cuda/kernels.h.
#include <torch/csrc/stable/library.h>

#include "cuda/kernels.h"

STABLE_TORCH_LIBRARY_IMPL(sfa, CUDA, m) {
  m.impl("accumulate_scores_", TORCH_BOX(&sfa::cuda::accumulate_scores_));
  m.impl("select_topk", TORCH_BOX(&sfa::cuda::select_topk));
  m.impl("sparse_adamw_", TORCH_BOX(&sfa::cuda::sparse_adamw_));
  m.impl("swap_values_", TORCH_BOX(&sfa::cuda::swap_values_));
}
