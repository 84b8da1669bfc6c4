// The loops of accumulate_scores_ for processors that have AVX2: wider than plain x86-64's, they keep more reads in
// flight, and F16C widens fp16 gradients in one instruction.
#pragma once

#include <cstdint>

#include "common/criterion.h"

namespace sfa::cpu {

// scores_avx2.cpp; grads [n] are float32, or the bits of bfloat16 or fp16 numbers.
void accumulate_single_avx2(float* scores, const float* grads, int64_t n, Criterion criterion);
void accumulate_bfloat16_avx2(float* scores, const uint16_t* grads, int64_t n, Criterion criterion);
void accumulate_half_avx2(float* scores, const uint16_t* grads, int64_t n, Criterion criterion);

}  // namespace sfa::cpu
