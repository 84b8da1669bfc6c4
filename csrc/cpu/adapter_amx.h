// The tile of adapter_gemm.h in AMX's registers: 32 rows by 32 columns, 16 words deep at a time. Panels are packed as
// its second operand wants them already: pairs of numbers, one above the other.
#pragma once

#include "adapter_gemm.h"

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

// Registers 0 to 3 hold sums, 4 and 5 rows of a, 6 and 7 columns of b; all are 16 rows of 64 bytes.
template <>
struct TileUnit<Bf16> {
  struct alignas(64) Shapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  SFA_INLINE TileUnit() {
    const Shapes shapes;
    _tile_loadconfig(&shapes);
  }
  SFA_INLINE ~TileUnit() { _tile_release(); }
};

// Loads and stores of tiles are invisible to the compiler: what it holds back must be in memory before, and what it has
// read must be read again after.
SFA_INLINE void fence() { __asm__ volatile("" ::: "memory"); }

template <>
struct Tile<Bf16, 32> {
  static constexpr int64_t kColumns = kPanel<Bf16>, kStep = Product<Bf16>::kStepWords;
  static_assert(kColumns == 32 && kStep == 16);
  alignas(64) float sum[32][kColumns];

  SFA_INLINE void fill(Vec<float> first, Vec<float> second) {
    store(sum[0], first);
    store(sum[0] + 16, second);
    fence();
    _tile_loadd(0, sum[0], 0);  // rows 0 bytes apart: the same one 16 times
    _tile_loadd(1, sum[0] + 16, 0);
    _tile_loadd(2, sum[0], 0);
    _tile_loadd(3, sum[0] + 16, 0);
  }

  // As that of the vectors; depth is a multiple of kStep, depth_step 1. Reads 32 rows of a.
  SFA_INLINE void multiply(const uint32_t* a, int64_t row_step, [[maybe_unused]] int64_t depth_step, const uint32_t* b,
                           int64_t depth) {
    const uint32_t* below = a + 16 * row_step;
    fence();
    for (int64_t k = 0; k < depth; k += kStep, a += kStep, below += kStep, b += kStep * kColumns) {
      _tile_loadd(4, a, row_step * 4);
      _tile_loadd(6, b, kColumns * 4);
      _tile_loadd(7, b + 16, kColumns * 4);
      _tile_loadd(5, below, row_step * 4);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }

  // f(sum, row, column, count) for every vector that has rows below `rows` and columns below `columns`.
  template <class F>
  SFA_INLINE void emit(int64_t rows, int64_t columns, F&& f) {
    constexpr int64_t kBytes = sizeof(sum[0]);
    _tile_stored(0, sum[0], kBytes);
    _tile_stored(1, sum[0] + 16, kBytes);
    _tile_stored(2, sum[16], kBytes);
    _tile_stored(3, sum[16] + 16, kBytes);
    fence();
    if (rows > 32) rows = 32;
    if (columns >= kColumns) {
      for (int64_t r = 0; r < rows; ++r) {
        f(load(sum[r]), r, 0, Int<16>{});
        f(load(sum[r] + 16), r, 16, Int<16>{});
      }
      return;
    }
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; c += 16) f(load(sum[r] + c), r, c, columns - c < 16 ? columns - c : 16);
  }
};

}  // namespace
}  // namespace sfa::cpu::SFA_ISA_NAMESPACE
