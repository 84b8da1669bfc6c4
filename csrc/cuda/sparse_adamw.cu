// sfa::sparse_adamw_ for tensors of torch.
#include <type_traits>

#include "common/adamw_arguments.h"
#include "cuda/device.h"
#include "cuda/dispatch.h"
#include "cuda/kernels.h"
#include "sparse_adamw.cuh"

namespace sfa::cuda {
namespace {

using torch::headeronly::ScalarType;

// Starts the step of the weights of one pair of dtypes.
void start(const std::vector<AdamWEntry>& lists, ScalarType weight_type, ScalarType grad_type, const Rates* rates,
           int64_t rounds, const AdamWSettings& settings, cudaStream_t stream) {
  dispatch(weight_type, "weights", [&](auto weight) {
    using W = typename decltype(weight)::type;
    if constexpr (std::is_same_v<W, float> || std::is_same_v<W, double>)
      step<W, W, W>(lists, rates, rounds, settings, stream);
    else if (grad_type == ScalarType::Float)
      step<W, float, float>(lists, rates, rounds, settings, stream);
    else
      step<W, W, float>(lists, rates, rounds, settings, stream);
  });
}

}  // namespace

void sparse_adamw_(const std::vector<Tensor>& weights,      // any shapes, contiguous
                   const std::vector<Tensor>& grads,        // of the weights' shapes, or [k_i]: gathered at indices[i]
                   const std::vector<Tensor>& indices,      // [k_i] int64 or int32, strictly increasing flat positions
                   const std::vector<Tensor>& rounds,       // [k_i] int16: which round selected the entry
                   const std::vector<Tensor>& exp_avgs,     // [k_i] float32; float64 for float64 weights
                   const std::vector<Tensor>& exp_avg_sqs,  // [k_i], as exp_avgs
                   const std::vector<Tensor>& masters,      // [k_i] float32, one for every bf16 or fp16 weight
                   const Tensor& ages,                      // [rounds] int64: steps taken; -1: not selected yet
                   double lr, double beta1, double beta2, double eps, double weight_decay) {
  const OnDevice device(ages,
                        AdamWArguments::joined({weights, grads, indices, rounds, exp_avgs, exp_avg_sqs, masters}));
  const AdamWArguments given(weights, grads, indices, rounds, exp_avgs, exp_avg_sqs, masters, ages);
  const size_t n = weights.size();
  const int64_t n_rounds = ages.numel();
  const AdamWSettings settings = {lr, beta1, beta2, eps, weight_decay};
  const Tensor workspace = torch::stable::new_empty(ages, {2 * n_rounds}, ScalarType::Double);
  Rates* rates = static_cast<Rates*>(workspace.mutable_data_ptr());
  advance_ages(static_cast<int64_t*>(ages.mutable_data_ptr()), rates, n_rounds, settings, device.stream());
  std::vector<bool> started(n);
  for (size_t first = 0; first < n; ++first) {
    if (started[first]) continue;
    const ScalarType weight_type = weights[first].scalar_type(), grad_type = given.gradients[first].scalar_type();
    std::vector<AdamWEntry> lists;
    for (size_t i = first; i < n; ++i) {
      if (weights[i].scalar_type() != weight_type || given.gradients[i].scalar_type() != grad_type) continue;
      started[i] = true;
      lists.push_back(given.entries[i]);
    }
    start(lists, weight_type, grad_type, rates, n_rounds, settings, device.stream());
  }
}

}  // namespace sfa::cuda
