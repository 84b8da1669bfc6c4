// What attention.cpp asks of an instruction set: one table of functions per set and number type T. "acc" is the type of
// sums: double for double, else float. One call works on one head in one window; calls share nothing but the sums over
// windows of the backward, which attention.cpp therefore gives to one thread a head.
#pragma once

#include <cstdint>

namespace sfa::cpu {

struct Attention {
  int64_t batch, height, width;         // of the map
  int64_t heads, depth;                 // D = heads * depth
  int64_t window_height, window_width;  // N tokens
  int64_t shift_height, shift_width;    // where the first window starts in the map, which wraps around
  int64_t windows_high, windows_wide;   // of one image, the last of them padded
  const void* qkv;                      // T [batch, height, width, 3, heads, depth]
  const void* scale;                    // acc [heads]
  const void* bias;                     // acc [heads, N, N]
  const void* pad;                      // acc [3, heads, depth]: q, k, v of the tokens that fill up a window, or null
  void* out;                            // T [batch, height, width, heads, depth]
  const void* grad_out;                 // T, like out; from here on for the backward only
  void* grad_qkv;                       // T, like qkv; null where it is not wanted, as those below
  void *grad_scale, *grad_bias, *grad_pad;  // acc, like scale, bias, pad; added to
};

struct AttentionKernels {
  int64_t (*forward_scratch)(const Attention& args);  // bytes
  int64_t (*backward_scratch)(const Attention& args);
  void (*forward)(const Attention& args, int64_t window, int64_t head, void* scratch);
  void (*backward)(const Attention& args, int64_t window, int64_t head, void* scratch);
};

// One table per instruction set, in the order float, double, bfloat16, half.
namespace baseline {
extern const AttentionKernels kAttention[4];
}
namespace avx2 {
extern const AttentionKernels kAttention[4];
}
namespace avx512 {
extern const AttentionKernels kAttention[4];
}

}  // namespace sfa::cpu
