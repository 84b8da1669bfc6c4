// sfa::sparse_adamw_ for tensors of torch.
#include <algorithm>
#include <type_traits>

#include "common/check.h"
#include "common/tensor_lists.h"
#include "cuda/device.h"
#include "cuda/dispatch.h"
#include "cuda/kernels.h"
#include "sparse_adamw.cuh"

namespace sfa::cuda {
namespace {

using torch::headeronly::ScalarType;

bool is_half(ScalarType dtype) { return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half; }

void append(std::vector<Tensor>& to, const std::vector<Tensor>& more) { to.insert(to.end(), more.begin(), more.end()); }

AdamWEntry entry_of(const Tensor& weight, const Tensor& grad, const Tensor& index, const Tensor& round,
                    const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor* master) {
  const int64_t k = index.numel();
  const ScalarType dtype = weight.scalar_type();
  const ScalarType wide = dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(grad.scalar_type() == dtype || (is_half(dtype) && grad.scalar_type() == ScalarType::Float),
                  "grads must have the dtype of the weights");
  const bool gathered = grad.dim() == 1 && grad.numel() == k;
  STD_TORCH_CHECK(gathered || grad.numel() == weight.numel(), "grads must have a weight's shape or be gathered");
  check_form(index, "indices", {k}, ScalarType::Long);
  check_form(round, "rounds", {k}, ScalarType::Short);
  check_form(exp_avg, "exp_avgs", {k}, wide);
  check_form(exp_avg_sq, "exp_avg_sqs", {k}, wide);
  if (master != nullptr) check_form(*master, "masters", {k}, ScalarType::Float);
  return {weight.mutable_data_ptr(),
          grad.const_data_ptr(),
          static_cast<const int64_t*>(index.const_data_ptr()),
          static_cast<const int16_t*>(round.const_data_ptr()),
          exp_avg.mutable_data_ptr(),
          exp_avg_sq.mutable_data_ptr(),
          master == nullptr ? nullptr : static_cast<float*>(master->mutable_data_ptr()),
          k,
          weight.numel(),
          gathered};
}

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
                   const std::vector<Tensor>& indices,      // [k_i] int64, strictly increasing flat positions
                   const std::vector<Tensor>& rounds,       // [k_i] int16: which round selected the entry
                   const std::vector<Tensor>& exp_avgs,     // [k_i] float32; float64 for float64 weights
                   const std::vector<Tensor>& exp_avg_sqs,  // [k_i], as exp_avgs
                   const std::vector<Tensor>& masters,      // [k_i] float32, one for every bf16 or fp16 weight
                   const Tensor& ages,                      // [rounds] int64: steps taken; -1: not selected yet
                   double lr, double beta1, double beta2, double eps, double weight_decay) {
  const size_t n = weights.size();
  const auto halves = std::count_if(weights.begin(), weights.end(), [](auto& w) { return is_half(w.scalar_type()); });
  STD_TORCH_CHECK(
      grads.size() == n && indices.size() == n && rounds.size() == n && exp_avgs.size() == n && exp_avg_sqs.size() == n,
      "grads, indices, rounds, exp_avgs and exp_avg_sqs must be as "
      "many as weights");
  STD_TORCH_CHECK(static_cast<int64_t>(masters.size()) == halves, "masters must hold one tensor per half weight");
  check_form(ages, "ages", {ages.numel()}, ScalarType::Long);
  std::vector<Tensor> written = weights;
  for (const auto* list : {&exp_avgs, &exp_avg_sqs, &masters}) append(written, *list);
  written.push_back(ages);
  for (const Tensor& t : written) STD_TORCH_CHECK(t.is_contiguous(), "tensors that are updated must be contiguous");
  std::vector<Tensor> every = written;
  for (const auto* list : {&grads, &indices, &rounds}) append(every, *list);
  const OnDevice device(ages, every);
  const std::vector<Tensor> positions = contiguous(indices), gradients = contiguous(grads),
                            numbers = contiguous(rounds);
  std::vector<Tensor> read = positions;
  for (const auto* list : {&gradients, &numbers}) append(read, *list);
  STD_TORCH_CHECK(!overlap(written, read), "a tensor that is updated shares memory with another argument");

  std::vector<AdamWEntry> entries;
  auto master = masters.begin();
  for (size_t i = 0; i < n; ++i) {
    const Tensor* own = is_half(weights[i].scalar_type()) ? &*master++ : nullptr;
    entries.push_back(entry_of(weights[i], gradients[i], positions[i], numbers[i], exp_avgs[i], exp_avg_sqs[i], own));
  }
  const int64_t n_rounds = ages.numel();
  const AdamWSettings settings = {lr, beta1, beta2, eps, weight_decay};
  const Tensor workspace = torch::stable::new_empty(ages, {2 * n_rounds}, ScalarType::Double);
  Rates* rates = static_cast<Rates*>(workspace.mutable_data_ptr());
  advance_ages(static_cast<int64_t*>(ages.mutable_data_ptr()), rates, n_rounds, settings, device.stream());
  std::vector<bool> started(n);
  for (size_t first = 0; first < n; ++first) {
    if (started[first]) continue;
    const ScalarType weight_type = weights[first].scalar_type(), grad_type = gradients[first].scalar_type();
    std::vector<AdamWEntry> lists;
    for (size_t i = first; i < n; ++i) {
      if (weights[i].scalar_type() != weight_type || gradients[i].scalar_type() != grad_type) continue;
      started[i] = true;
      lists.push_back(entries[i]);
    }
    start(lists, weight_type, grad_type, rates, n_rounds, settings, device.stream());
  }
}

}  // namespace sfa::cuda
