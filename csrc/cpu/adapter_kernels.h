// What adapter.cpp asks of an instruction set: one table of functions per set and number type T. "acc" is the type of
// sums: double for double, else float. Row ranges may be cut anywhere that is a multiple of tile_rows, and with `few`
// of panel, without changing a bit of the result.
#pragma once

#include <cstdint>

namespace sfa::cpu {

struct AdapterForward {
  int64_t width, hidden;    // D, d
  const void* x;            // T [rows, D]
  bool few;                 // w_down and w_up come as they are, T [d, D] and [D, d]
  const void* down;         // packed w_down^T
  const void* up;           // packed w_up^T
  const void* bias_down;    // acc [d], padded to whole panels
  const void* bias_up;      // acc [D], padded
  const void* residual;     // T or float [rows, D]; from here on for the norm only
  const void* norm_weight;  // acc [D], padded
  const void* norm_bias;    // acc [D], padded
  double eps;
  void* out;         // [rows, D] of T, with the norm of the residual's type
  void* activation;  // T [rows, d], relu(x w_down^T + b_down), to keep for the backward; null if not wanted
  void* adapted;     // T [rows, D], what the norm works on, to keep for its backward; null if not wanted
};

struct AdapterBackward {
  int64_t width, hidden;
  const void* x;            // T [rows, D]
  const void* grad_out;     // T [rows, D], with the norm T or float
  const void* down;         // packed w_down^T
  const void* bias_down;    // acc [d], padded
  const void* up_plain;     // packed w_up
  const void* down_plain;   // packed w_down
  const void* kept;         // T [rows, d], the activation that the forward kept; null if it is to be computed again
  void* activation;         // T [rows, d], where it goes then; null if not wanted
  void* grad_hidden;        // T [rows, d], the gradient in front of the relu; null if not wanted
  void* grad_x;             // T [rows, D]; null if not wanted
  const void* up;           // packed w_up^T; from here on for the norm only
  const void* bias_up;      // acc [D], padded
  const void* adapted;      // T [rows, D], what the norm worked on, if the forward kept it, else null
  const void* norm_weight;  // acc [D], padded
  double eps;
  void* grad_sum;    // T [rows, D], the gradient of the adapter's result
  void* norm_parts;  // acc [tiles of rows, 2, D], parts of the gradients of norm_weight and norm_bias, or null
};

// c[i, j] = sum over rows of a[row, i] * b[row, j]
struct AdapterOuter {
  const void* a;  // T [rows, a_stride]
  int64_t a_stride;
  const void* b;  // T [rows, b_stride]
  int64_t b_stride;
  void* c;    // acc [a_stride, b_stride]
  void* out;  // T, where the result goes instead once it is complete, or null
};

struct AdapterKernels {
  int64_t number_bytes, acc_bytes;
  int64_t tile_rows, panel;           // rows per tile, columns per packed panel
  int64_t outer_rows, outer_columns;  // the largest ranges of i and j that one call of outer takes

  // w [n, k] (transposed) or [k, n] (plain) to panels [first, last) of n columns, k deep.
  int64_t (*packed_bytes)(int64_t n, int64_t k);
  void (*pack_transposed)(const void* w, int64_t n, int64_t k, int64_t first, int64_t last, void* out);
  void (*pack_plain)(const void* w, int64_t n, int64_t k, int64_t first, int64_t last, void* out);

  // Each works on one range of rows or of the result, with scratch memory of its own. "norm_float" is for a float
  // residual, and with it float out and grad_out.
  using Forward = void(const AdapterForward& args, int64_t begin, int64_t end, void* scratch);
  using Backward = void(const AdapterBackward& args, int64_t begin, int64_t end, void* scratch);
  bool (*takes_few)(int64_t width, int64_t hidden);  // whether the forward knows `few` for weights of this type
  int64_t (*row_scratch)(int64_t width, int64_t hidden, bool few);
  Forward *forward, *forward_norm, *forward_norm_float;
  Backward *backward, *backward_norm, *backward_norm_float;
  int64_t (*outer_scratch)();
  void (*outer)(const AdapterOuter& args, int64_t begin, int64_t end, int64_t i, int64_t i_end, int64_t j,
                int64_t j_end, void* scratch);

  // v [rows, n] to acc [n]
  void (*column_sums)(const void* v, int64_t rows, int64_t n, void* out);
  // Sums `count` parts (acc, part_stride apart), elements [begin, end), into T.
  void (*finish)(const void* parts, int64_t count, int64_t part_stride, int64_t begin, int64_t end, void* out);
};

// One table per instruction set, in the order float, double, bfloat16, half.
namespace baseline {
extern const AdapterKernels kAdapter[4];
}
namespace avx2 {
extern const AdapterKernels kAdapter[4];
}
namespace avx512 {
extern const AdapterKernels kAdapter[4];
}
namespace avx512bf16 {
extern const AdapterKernels kAdapter[4];
}
namespace amx {
extern const AdapterKernels kAdapter[4];
extern const AdapterKernels kShortFloat;  // float32 whose products may leave out the last 8 of 24 bits
}  // namespace amx

}  // namespace sfa::cpu
