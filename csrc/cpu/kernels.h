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

// adapter.cpp
Tensor fused_adapter(const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down, const Tensor& w_up,
                     const std::optional<Tensor>& b_up);
std::tuple<Tensor, Tensor> fused_adapter_keep(const Tensor& x, const Tensor& w_down,
                                              const std::optional<Tensor>& b_down, const Tensor& w_up,
                                              const std::optional<Tensor>& b_up);
Tensor fused_adapter_norm(const Tensor& residual, const Tensor& x, const Tensor& w_down,
                          const std::optional<Tensor>& b_down, const Tensor& w_up, const std::optional<Tensor>& b_up,
                          const Tensor& norm_weight, const Tensor& norm_bias, double eps);
std::tuple<Tensor, Tensor, Tensor> fused_adapter_norm_keep(const Tensor& residual, const Tensor& x,
                                                           const Tensor& w_down, const std::optional<Tensor>& b_down,
                                                           const Tensor& w_up, const std::optional<Tensor>& b_up,
                                                           const Tensor& norm_weight, const Tensor& norm_bias,
                                                           double eps, bool keep_adapted);

// adapter_backward.cpp
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fused_adapter_backward(
    const Tensor& grad_out, const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down,
    const Tensor& w_up, std::vector<bool> output_mask, const std::optional<Tensor>& hidden);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> fused_adapter_norm_backward(
    const Tensor& grad_out, const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down,
    const Tensor& w_up, const std::optional<Tensor>& b_up, const Tensor& norm_weight, double eps,
    std::vector<bool> output_mask, const std::optional<Tensor>& hidden, const std::optional<Tensor>& adapted);

// attention.cpp
Tensor window_attention(const Tensor& qkv, const Tensor& scale, const Tensor& bias, const std::optional<Tensor>& pad,
                        std::vector<int64_t> window, std::vector<int64_t> shift);
std::tuple<Tensor, Tensor, Tensor, Tensor> window_attention_backward(const Tensor& grad_out, const Tensor& qkv,
                                                                     const Tensor& scale, const Tensor& bias,
                                                                     const std::optional<Tensor>& pad,
                                                                     std::vector<int64_t> window,
                                                                     std::vector<int64_t> shift,
                                                                     std::vector<bool> output_mask);

// scores.cpp
void accumulate_scores_(const std::vector<Tensor>& scores, const std::vector<Tensor>& grads,
                        const std::string& criterion);

// selection.cpp
std::vector<Tensor> select_topk(const std::vector<Tensor>& scores, const std::vector<Tensor>& excluded, int64_t k);

// sparse_adamw.cpp
void sparse_adamw_(const std::vector<Tensor>& weights, const std::vector<Tensor>& grads,
                   const std::vector<Tensor>& indices, const std::vector<Tensor>& rounds,
                   const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
                   const std::vector<Tensor>& masters, const Tensor& ages, double lr, double beta1, double beta2,
                   double eps, double weight_decay);

// values.cpp
void swap_values_(const Tensor& weight, const Tensor& index, const Tensor& values);

// isa.cpp: the instruction set in use ("baseline", "avx2", "avx512", "avx512bf16", "amx") and, after commas, what the
// adapter leaves to torch: "amx, float16 by torch".
std::string cpu_isa();

}  // namespace sfa::cpu
