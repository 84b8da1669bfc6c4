// The CUDA kernel that serves each operator; the schemas belong to libsfa_cpu. Kernels are declared in cuda/kernels.h.
#include <torch/csrc/stable/library.h>

#include "cuda/kernels.h"

STABLE_TORCH_LIBRARY_IMPL(sfa, CUDA, m) {
  m.impl("fused_adapter", TORCH_BOX(&sfa::cuda::fused_adapter));
  m.impl("fused_adapter_keep", TORCH_BOX(&sfa::cuda::fused_adapter_keep));
  m.impl("fused_adapter_backward", TORCH_BOX(&sfa::cuda::fused_adapter_backward));
  m.impl("fused_adapter_norm", TORCH_BOX(&sfa::cuda::fused_adapter_norm));
  m.impl("fused_adapter_norm_keep", TORCH_BOX(&sfa::cuda::fused_adapter_norm_keep));
  m.impl("fused_adapter_norm_backward", TORCH_BOX(&sfa::cuda::fused_adapter_norm_backward));
  m.impl("accumulate_scores_", TORCH_BOX(&sfa::cuda::accumulate_scores_));
  m.impl("select_topk", TORCH_BOX(&sfa::cuda::select_topk));
  m.impl("sparse_adamw_", TORCH_BOX(&sfa::cuda::sparse_adamw_));
  m.impl("swap_values_", TORCH_BOX(&sfa::cuda::swap_values_));
}
