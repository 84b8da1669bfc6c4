// The CUDA kernels that module.cpp registers; each is defined in the file named after its operator.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace sfa::cuda {

using torch::stable::Tensor;

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
