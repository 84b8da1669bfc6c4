// What sparse_adamw_ demands of its arguments on any device, and what it makes of them.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <vector>

#include "common/adamw.h"
#include "common/check.h"
#include "common/tensor_lists.h"

namespace sfa {

inline bool is_half(torch::headeronly::ScalarType dtype) {
  using torch::headeronly::ScalarType;
  return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
}

// The arguments of sparse_adamw_, checked as far as the host can without reading what they hold. Copies of what was not
// contiguous live as long as it does.
class AdamWArguments {
 public:
  using Tensor = torch::stable::Tensor;
  using Tensors = std::vector<Tensor>;
  using ScalarType = torch::headeronly::ScalarType;

  AdamWArguments(const Tensors& weights, const Tensors& grads, const Tensors& indices, const Tensors& rounds,
                 const Tensors& exp_avgs, const Tensors& exp_avg_sqs, const Tensors& masters, const Tensor& ages)
      : positions(contiguous(indices)), gradients(contiguous(grads)), numbers(contiguous(rounds)) {
    const size_t n = weights.size();
    const auto halves = std::count_if(weights.begin(), weights.end(), [](auto& w) { return is_half(w.scalar_type()); });
    STD_TORCH_CHECK(grads.size() == n && indices.size() == n && rounds.size() == n && exp_avgs.size() == n &&
                        exp_avg_sqs.size() == n,
                    "grads, indices, rounds, exp_avgs and exp_avg_sqs must be as many as weights");
    STD_TORCH_CHECK(static_cast<int64_t>(masters.size()) == halves, "masters must hold one tensor per half weight");
    check_form(ages, "ages", {ages.numel()}, ScalarType::Long);
    const Tensors written = joined({weights, exp_avgs, exp_avg_sqs, masters, {ages}});
    for (const Tensor& t : written) STD_TORCH_CHECK(t.is_contiguous(), "tensors that are updated must be contiguous");
    STD_TORCH_CHECK(!overlap(written, joined({positions, gradients, numbers})),
                    "a tensor that is updated shares memory with another argument");
    auto master = masters.begin();
    for (size_t i = 0; i < n; ++i)
      entries.push_back(
          entry(weights[i], i, exp_avgs[i], exp_avg_sqs[i], is_half(weights[i].scalar_type()) ? &*master++ : nullptr));
  }

  // All tensors of some lists.
  static Tensors joined(std::initializer_list<Tensors> lists) {
    Tensors all;
    for (const Tensors& list : lists) all.insert(all.end(), list.begin(), list.end());
    return all;
  }

  const Tensors positions, gradients, numbers;
  std::vector<AdamWEntry> entries;

 private:
  AdamWEntry entry(const Tensor& weight, size_t i, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                   const Tensor* master) const {
    const Tensor &grad = gradients[i], &index = positions[i], &round = numbers[i];
    const int64_t k = index.numel();
    const ScalarType dtype = weight.scalar_type();
    const ScalarType wide = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    STD_TORCH_CHECK(grad.scalar_type() == dtype || (is_half(dtype) && grad.scalar_type() == ScalarType::Float),
                    "grads must have the dtype of the weights");
    const bool gathered = grad.dim() == 1 && grad.numel() == k;
    STD_TORCH_CHECK(gathered || grad.numel() == weight.numel(), "grads must have a weight's shape or be gathered");
    const bool narrow = index.scalar_type() == ScalarType::Int;
    check_form(index, "indices", {k}, narrow ? ScalarType::Int : ScalarType::Long);
    check_form(round, "rounds", {k}, ScalarType::Short);
    check_form(exp_avg, "exp_avgs", {k}, wide);
    check_form(exp_avg_sq, "exp_avg_sqs", {k}, wide);
    if (master != nullptr) check_form(*master, "masters", {k}, ScalarType::Float);
    return {weight.mutable_data_ptr(),
            grad.const_data_ptr(),
            index.const_data_ptr(),
            static_cast<const int16_t*>(round.const_data_ptr()),
            exp_avg.mutable_data_ptr(),
            exp_avg_sq.mutable_data_ptr(),
            master == nullptr ? nullptr : static_cast<float*>(master->mutable_data_ptr()),
            k,
            weight.numel(),
            gathered,
            narrow};
  }
};

}  // namespace sfa
