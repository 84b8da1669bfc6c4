// What a kernel of sparse_adamw_ is given. Knows no torch.
#pragma once

#if !defined(__CUDACC_RTC__)
#include <cstdint>
#endif

namespace sfa {

// One weight tensor with its k selected entries.
struct AdamWEntry {
  void* weight;
  const void* grad;
  const void* index;     // [k] int64, or int32 where `narrow`
  const int16_t* round;  // [k]
  void* exp_avg;         // [k]
  void* exp_avg_sq;      // [k]
  float* master;         // [k], null for float32 and float64 weights
  int64_t k;
  int64_t numel;
  bool gathered;  // grad is [k], not of the weight's shape
  bool narrow;
};

struct AdamWSettings {
  double lr, beta1, beta2, eps, weight_decay;
};

}  // namespace sfa
