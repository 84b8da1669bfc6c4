// The tile of adapter_gemm.h in AMX's registers: 32 rows by 32 columns, 16 words deep at a time. Panels are packed as
// its second operand wants them already: pairs of numbers, one above the other. The product of two floats is that of
// their parts: six products of bfloat16, for the other three are smaller than what a float can tell; of two short ones
// three products.
#pragma once

#include "adapter_gemm.h"

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

// Registers 0 to 3 hold sums, 4 and 5 rows of a, 6 and 7 columns of b; all are 16 rows of 64 bytes. A constant in
// memory: compilers think that only its first bytes are read, and would leave the others of a local one unwritten.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileShapes kTileShapes;

// Loads and stores of tiles are invisible to the compiler: what it holds back must be in memory before, and what it has
// read must be read again after.
SFA_INLINE void fence() { __asm__ volatile("" ::: "memory"); }

template <class T>
struct Tile<T, 32> {
  static constexpr int kParts = Product<T>::kParts;
  static constexpr int64_t kColumns = kPanel<T>, kStep = Product<T>::kStepWords;
  static_assert(kColumns == 32 && kStep == 16 && kParts <= 3);
  alignas(64) float sum[32][kColumns];
  // What was multiplied, and what sums started from if not from zeros: to mend them.
  const float* start;
  const uint32_t *left, *right;
  int64_t left_step, words;

  SFA_INLINE void fill(const float* v) {
    start = v;
    fence();
    _tile_loadd(0, v, 0);  // rows 0 bytes apart: the same one 16 times
    _tile_loadd(1, v + 16, 0);
    _tile_loadd(2, v, 0);
    _tile_loadd(3, v + 16, 0);
  }
  SFA_INLINE void clear() {
    start = nullptr;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }

  // As that of the vectors; depth is a multiple of kStep * kParts, depth_step 1. Reads 32 rows of a.
  SFA_INLINE void multiply(const uint32_t* a, int64_t row_step, [[maybe_unused]] int64_t depth_step, const uint32_t* b,
                           int64_t depth) {
    left = a, left_step = row_step, right = b, words = depth;
    fence();
    for (int64_t k = 0; k < depth; k += kStep * kParts, a += kStep * kParts, b += kStep * kParts * kColumns) {
      // Parts of a, of b: small products first.
      if constexpr (kParts == 3) {
        load_left(a + 2 * kStep);
        load_right(b);
        add_product();  // 2, 0
        load_left(a + kStep);
        add_product();  // 1, 0
        load_right(b + kStep * kColumns);
        add_product();  // 1, 1
        load_left(a);
        add_product();  // 0, 1
        load_right(b + 2 * kStep * kColumns);
        add_product();  // 0, 2
      } else if constexpr (kParts == 2) {
        load_left(a + kStep);
        load_right(b);
        add_product();  // 1, 0 of short floats
        load_left(a);
        load_right(b + kStep * kColumns);
        add_product();  // 0, 1 of short floats
      } else {
        load_left(a);
      }
      load_right(b);
      add_product();  // 0, 0
    }
  }
  SFA_INLINE void load_left(const uint32_t* a) {
    _tile_loadd(4, a, left_step * 4);
    _tile_loadd(5, a + 16 * left_step, left_step * 4);
  }
  SFA_INLINE void load_right(const uint32_t* b) {
    _tile_loadd(6, b, kColumns * 4);
    _tile_loadd(7, b + 16, kColumns * 4);
  }
  SFA_INLINE void add_product() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }

  // To memory, so that the registers can take another tile.
  SFA_INLINE void keep() {
    constexpr int64_t kBytes = sizeof(sum[0]);
    _tile_stored(0, sum[0], kBytes);
    _tile_stored(1, sum[0] + 16, kBytes);
    _tile_stored(2, sum[16], kBytes);
    _tile_stored(3, sum[16] + 16, kBytes);
    fence();
  }

  // f(sum, row, column, count) for every vector that was kept and has rows below `rows` and columns below `columns`.
  template <class F>
  SFA_INLINE void emit(int64_t rows, int64_t columns, F&& f) {
    if (rows > 32) rows = 32;
    if constexpr (kParts > 1)
      if (!finite(rows)) mend(rows);
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

  SFA_INLINE bool finite(int64_t rows) const {
    Vec<float> nothing[2] = {};  // stays zero unless a number is infinite or NaN
    for (int64_t r = 0; r < rows; ++r)
      for (int i = 0; i < 2; ++i) nothing[i] = load(sum[r] + 16 * i) * 0.0f + nothing[i];
    return sum_of_lanes<float>(nothing[0] + nothing[1]) == 0;
  }

  // An infinite number times a part that is zero is NaN, where times the whole number it is infinite: rows `rows` of
  // the sums once more, of whole numbers.
  __attribute__((noinline)) void mend(int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) {
      Vec<float> low = start == nullptr ? Vec<float>{} : load(start);
      Vec<float> high = start == nullptr ? Vec<float>{} : load(start + 16);
      for (int64_t k = 0; k < words; k += kStep * kParts)
        for (int64_t i = 0; i < 2 * kStep; ++i) {
          const Vec<float> a = whole(left + r * left_step + k, kStep, i % 2);
          const uint32_t* b = right + (k + i / 2) * kColumns;
          low += a[i / 2] * whole(b, kStep * kColumns, i % 2);
          high += a[i / 2] * whole(b + 16, kStep * kColumns, i % 2);
        }
      store(sum[r], low);
      store(sum[r] + 16, high);
    }
  }
  // Floats whose parts lie in the upper or lower halves of words, `step` words from part to part.
  static SFA_INLINE Vec<float> whole(const uint32_t* p, int64_t step, int64_t upper) {
    const auto part = [&](int64_t i) SFA_INLINE_LAMBDA {
      const Vec<uint32_t> w = load_raw<Vec<uint32_t>>(p + i * step);
      return bit_cast<Vec<float>>(upper == 1 ? w & 0xffff0000 : w << 16);
    };
    const Vec<float> leading = part(0);
    Vec<float> rest{};
    for (int64_t i = kParts - 1; i > 0; --i) rest += part(i);
    return leading - leading == 0 ? rest + leading : leading;
  }
};

// A tile's sums go through memory, and what becomes of them takes about as long as the product that follows: the next
// tile is multiplied before it, since processors look a few hundred instructions ahead and a product is a few dozen.
template <class T>
struct TileUnit<T, true> {
  Tile<T, 32> tiles[2];
  int64_t count = 0, row, column;  // of the last tile

  SFA_INLINE TileUnit() { _tile_loadconfig(&kTileShapes); }
  SFA_INLINE ~TileUnit() { _tile_release(); }

  template <class Start, class Emit>
  SFA_INLINE void run(Int<32>, int64_t r, int64_t c, Start&& start, Emit&& emit) {
    Tile<T, 32>& tile = tiles[count % 2];
    start(tile);
    finish(emit);
    tile.keep();
    row = r, column = c, ++count;
  }
  template <class Emit>
  SFA_INLINE void finish(Emit&& emit) {
    if (count > 0) emit(tiles[(count - 1) % 2], row, column);
  }
};

}  // namespace
}  // namespace sfa::cpu::SFA_ISA_NAMESPACE
