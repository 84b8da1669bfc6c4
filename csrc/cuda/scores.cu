// sfa::accumulate_scores_ for tensors of torch.
#include <type_traits>

#include "common/scores_arguments.h"
#include "common/tensor_lists.h"
#include "cuda/device.h"
#include "cuda/dispatch.h"
#include "cuda/kernels.h"
#include "scores.cuh"

namespace sfa::cuda {
namespace {

using torch::headeronly::ScalarType;

constexpr ScalarType kScoreTypes[] = {ScalarType::Float, ScalarType::Double};
constexpr ScalarType kGradTypes[] = {ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Double};

}  // namespace

void accumulate_scores_(const std::vector<Tensor>& scores,  // any shapes, contiguous, float32 or float64
                        const std::vector<Tensor>& grads,   // of the scores' shapes, any floating dtype
                        const std::string& criterion) {
  const Criterion rule = criterion_of(criterion);
  check_scores(scores, grads);
  if (scores.empty()) return;
  const OnDevice score_device(scores[0], scores), device(scores[0], grads);
  const std::vector<Tensor> values = contiguous(grads);
  STD_TORCH_CHECK(!overlap(scores, values), "scores must not share memory with one another or with grads");

  size_t started = 0;
  for (const ScalarType score_type : kScoreTypes) {
    for (const ScalarType grad_type : kGradTypes) {
      std::vector<ScoreEntry> lists;
      for (size_t i = 0; i < scores.size(); ++i) {
        if (scores[i].scalar_type() == score_type && values[i].scalar_type() == grad_type)
          lists.push_back({scores[i].mutable_data_ptr(), values[i].const_data_ptr(), scores[i].numel()});
      }
      if (lists.empty()) continue;
      started += lists.size();
      dispatch(grad_type, "grads", [&](auto grad) {
        using G = typename decltype(grad)::type;
        if (score_type == ScalarType::Double)
          accumulate<double, G>(lists, rule, device.stream());
        else if constexpr (!std::is_same_v<G, double>)
          accumulate<float, G>(lists, rule, device.stream());
        else
          STD_TORCH_CHECK(false, "float64 grads need float64 scores");
      });
    }
  }
  STD_TORCH_CHECK(started == scores.size(), "scores must be float32 or float64 and grads of a floating dtype");
}

}  // namespace sfa::cuda
