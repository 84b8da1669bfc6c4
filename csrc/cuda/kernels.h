// The CUDA kernels that module.cpp registers; each is defined in the file named after its operator.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace sfa::cuda {

using torch::stable::Tensor;

// adapter.cu
Tensor fused_adapter(const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down, const Tensor& w_up,
                     const std::optional<Tensor>& b_up);
std::tuple<Tensor, Tensor> fused_adapter_keep(const Tensor& x, const Tensor& w_down,
                                              const std::optional<Tensor>& b_down, const Tensor& w_up,
                                              const std::optional<Tensor>& b_up);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> fused_adapter_backward(
    const Tensor& grad_out, const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down,
    const Tensor& w_up, std::vector<bool> output_mask, const std::optional<Tensor>& hidden);

// adapter_norm.cu
Tensor fused_adapter_norm(const Tensor& residual, const Tensor& x, const Tensor& w_down,
                          const std::optional<Tensor>& b_down, const Tensor& w_up, const std::optional<Tensor>& b_up,
                          const Tensor& norm_weight, const Tensor& norm_bias, double eps);
std::tuple<Tensor, Tensor, Tensor> fused_adapter_norm_keep(const Tensor& residual, const Tensor& x,
                                                           const Tensor& w_down, const std::optional<Tensor>& b_down,
                                                           const Tensor& w_up, const std::optional<Tensor>& b_up,
                                                           const Tensor& norm_weight, const Tensor& norm_bias,
                                                           double eps, bool keep_adapted);
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> fused_adapter_norm_backward(
    const Tensor& grad_out, const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down,
    const Tensor& w_up, const std::optional<Tensor>& b_up, const Tensor& norm_weight, double eps,
    std::vector<bool> output_mask, const std::optional<Tensor>& hidden, const std::optional<Tensor>& adapted);

// scores.cu
void accumulate_scores_(const std::vector<Tensor>& scores, const std::vector<Tensor>& grads,
                        const std::string& criterion);

// selection.cu
std::vector<Tensor> select_topk(const std::vector<Tensor>& scores, const std::vector<Tensor>& excluded, int64_t k);

// sparse_adamw.cu
void sparse_adamw_(const std::vector<Tensor>& weights, const std::vector<Tensor>& grads,
                   const std::vector<Tensor>& indices, const std::vector<Tensor>& rounds,
                   const std::vector<Tensor>& exp_avgs, const std::vector<Tensor>& exp_avg_sqs,
                   const std::vector<Tensor>& masters, const Tensor& ages, double lr, double beta1, double beta2,
                   double eps, double weight_decay);

// values.cu
void swap_values_(const Tensor& weight, const Tensor& index, const Tensor& values);

}  // namespace sfa::cuda
