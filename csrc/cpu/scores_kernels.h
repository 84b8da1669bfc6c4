// The rules by which accumulate_scores_ adds, and its loop over fp16 gradients where the processor can widen those.
#pragma once

#include <cstdint>

namespace sfa::cpu {

enum class Criterion { kGradient, kAbsolute, kSquared };

// scores_avx2.cpp; grads are the bits of fp16 numbers.
void accumulate_half_avx2(float* scores, const uint16_t* grads, int64_t n, Criterion criterion);

}  // namespace sfa::cpu
