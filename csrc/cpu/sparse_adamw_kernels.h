// What sparse_adamw.cpp asks of an instruction set: a step for each type of weights, gradients and positions.
#pragma once

#include <cstdint>

#include "common/adamw.h"

namespace sfa::cpu {

// What bias correction makes of the learning rate and of the second moment, per round: its entries are of one age.
template <class A>
struct Corrections {
  const A* step_size;     // lr / (1 - beta1^age)
  const A* inverse_root;  // 1 / sqrt(1 - beta2^age)
};

// Weights whose arithmetic is in float, and their gradients.
enum AdamWTypes { kSingle, kBfloat16, kBfloat16BySingle, kHalf, kHalfBySingle, kAdamWTypes };

// A step of entries [begin, end).
template <class A>
using AdamWStep = void(const AdamWEntry&, const AdamWSettings&, const Corrections<A>&, int64_t begin, int64_t end);

struct AdamWKernels {
  AdamWStep<float>* single[kAdamWTypes][2];  // positions of 64 bits, of 32
  AdamWStep<double>* wide[2];                // float64 weights
};

namespace baseline {
extern const AdamWKernels kAdamW;
}
namespace avx2 {
extern const AdamWKernels kAdamW;
}
namespace avx512 {
extern const AdamWKernels kAdamW;
}

}  // namespace sfa::cpu
