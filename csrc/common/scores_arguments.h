// What accumulate_scores_ demands of its arguments on any device.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <string>
#include <vector>

#include "common/check.h"
#include "common/criterion.h"

namespace sfa {

inline Criterion criterion_of(const std::string& name) {
  if (name == "gradient") return Criterion::kGradient;
  if (name == "absolute") return Criterion::kAbsolute;
  if (name == "squared") return Criterion::kSquared;
  STD_TORCH_CHECK(false, "criterion must be one of gradient, absolute, squared, got ", name);
}

inline void check_scores(const std::vector<torch::stable::Tensor>& scores,
                         const std::vector<torch::stable::Tensor>& grads) {
  STD_TORCH_CHECK(scores.size() == grads.size(), "scores and grads must be equally many");
  for (size_t i = 0; i < scores.size(); ++i) {
    STD_TORCH_CHECK(scores[i].is_contiguous(), "scores must be contiguous");
    STD_TORCH_CHECK(scores[i].numel() == grads[i].numel(), "scores and grads must have equal shapes, got ",
                    shape_of(scores[i]), " and ", shape_of(grads[i]));
  }
}

}  // namespace sfa
