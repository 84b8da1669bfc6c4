// The loop of accumulate_scores_ over fp16 gradients where the processor can widen those.
#pragma once

#include <cstdint>

#include "common/criterion.h"

namespace sfa::cpu {

// scores_avx2.cpp; grads are the bits of fp16 numbers.
void accumulate_half_avx2(float* scores, const uint16_t* grads, int64_t n, Criterion criterion);

}  // namespace sfa::cpu
