// Every operator of torch.ops.sfa and the CPU kernel that serves it. Kernels are declared in cpu/kernels.h.
#include <torch/csrc/stable/library.h>

#include "cpu/kernels.h"

STABLE_TORCH_LIBRARY(sfa, m) {
  m.def("fused_adapter(Tensor x, Tensor w_down, Tensor? b_down, Tensor w_up, Tensor? b_up) -> Tensor");
  m.def("fused_adapter_keep(Tensor x, Tensor w_down, Tensor? b_down, Tensor w_up, Tensor? b_up) -> (Tensor, Tensor)");
  m.def(
      "fused_adapter_backward(Tensor grad_out, Tensor x, Tensor w_down, Tensor? b_down, Tensor w_up, "
      "bool[5] output_mask, Tensor? hidden=None) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "fused_adapter_norm(Tensor residual, Tensor x, Tensor w_down, Tensor? b_down, Tensor w_up, Tensor? b_up, "
      "Tensor norm_weight, Tensor norm_bias, float eps) -> Tensor");
  m.def(
      "fused_adapter_norm_keep(Tensor residual, Tensor x, Tensor w_down, Tensor? b_down, Tensor w_up, Tensor? b_up, "
      "Tensor norm_weight, Tensor norm_bias, float eps, bool keep_adapted) -> (Tensor, Tensor, Tensor)");
  m.def(
      "fused_adapter_norm_backward(Tensor grad_out, Tensor x, Tensor w_down, Tensor? b_down, Tensor w_up, "
      "Tensor? b_up, Tensor norm_weight, float eps, bool[7] output_mask, Tensor? hidden=None, Tensor? adapted=None) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("window_attention(Tensor qkv, Tensor scale, Tensor bias, Tensor? pad, int[2] window, int[2] shift) -> Tensor");
  m.def(
      "window_attention_backward(Tensor grad_out, Tensor qkv, Tensor scale, Tensor bias, Tensor? pad, int[2] window, "
      "int[2] shift, bool[4] output_mask) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("accumulate_scores_(Tensor(a!)[] scores, Tensor[] grads, str criterion) -> ()");
  m.def("select_topk(Tensor[] scores, Tensor[] excluded, int k) -> Tensor[]");
  m.def(
      "sparse_adamw_(Tensor(a!)[] weights, Tensor[] grads, Tensor[] indices, Tensor[] rounds, "
      "Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] masters, Tensor(e!) ages, "
      "float lr, float beta1, float beta2, float eps, float weight_decay) -> ()");
  m.def("swap_values_(Tensor(a!) weight, Tensor index, Tensor(b!) values) -> ()");
  m.def("cpu_isa() -> str");
  // Asked by CUDA kernels and by those for AMX, answered in Python.
  m.def("allow_tf32() -> bool");
  m.def("allow_short_floats() -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(sfa, CPU, m) {
  m.impl("fused_adapter", TORCH_BOX(&sfa::cpu::fused_adapter));
  m.impl("fused_adapter_keep", TORCH_BOX(&sfa::cpu::fused_adapter_keep));
  m.impl("fused_adapter_backward", TORCH_BOX(&sfa::cpu::fused_adapter_backward));
  m.impl("fused_adapter_norm", TORCH_BOX(&sfa::cpu::fused_adapter_norm));
  m.impl("fused_adapter_norm_keep", TORCH_BOX(&sfa::cpu::fused_adapter_norm_keep));
  m.impl("fused_adapter_norm_backward", TORCH_BOX(&sfa::cpu::fused_adapter_norm_backward));
  m.impl("window_attention", TORCH_BOX(&sfa::cpu::window_attention));
  m.impl("window_attention_backward", TORCH_BOX(&sfa::cpu::window_attention_backward));
  m.impl("accumulate_scores_", TORCH_BOX(&sfa::cpu::accumulate_scores_));
  m.impl("select_topk", TORCH_BOX(&sfa::cpu::select_topk));
  m.impl("sparse_adamw_", TORCH_BOX(&sfa::cpu::sparse_adamw_));
  m.impl("swap_values_", TORCH_BOX(&sfa::cpu::swap_values_));
}

STABLE_TORCH_LIBRARY_IMPL(sfa, CompositeExplicitAutograd, m) { m.impl("cpu_isa", TORCH_BOX(&sfa::cpu::cpu_isa)); }
