// One product over a block of rows. See vec.h for how this file is compiled.
#pragma once

#include "adapter_pack.h"

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

// Words from row to row of numbers that were copied.
template <class T>
SFA_INLINE int64_t staged_step(int64_t width) {
  using Word = typename Product<T>::Word;
  return (words<T>(width) + kLanes<Word> - 1) / kLanes<Word> * kLanes<Word>;
}

// Rows as words: in place where the numbers are stored so, else copied to `scratch`.
template <class T>
struct Operand {
  using Word = typename Product<T>::Word;
  const Word* data;
  int64_t step;  // words from row to row

  // hidden numbers, rows `stride` apart, with zeros up to whole steps
  Operand(const typename Product<T>::Elem* hidden, [[maybe_unused]] int64_t rows, [[maybe_unused]] int64_t width,
          int64_t stride, [[maybe_unused]] Word* scratch)
      : data(reinterpret_cast<const Word*>(hidden)), step(stride / Product<T>::kPerWord) {
    if constexpr (Product<T>::kParts > 1) copy(hidden, rows, width, stride, scratch);
  }

  // AMX reads whole steps of whole tiles, which may reach beyond the rows: then it is given a copy. What it computes
  // from rows beyond is not looked at.
  Operand(const T* x, int64_t rows, int64_t width, Word* scratch)
      : data(reinterpret_cast<const Word*>(x)), step(width / Product<T>::kPerWord) {
    const bool whole = !kByAmx<T> || rows % kTileRows<T> == 0;
    if (!kStoredAsWords<T> || width % kStepNumbers<T> != 0 || !whole) copy(x, rows, width, width, scratch);
  }

  SFA_INLINE void copy(const T* x, int64_t rows, int64_t width, int64_t stride, Word* scratch) {
    constexpr int64_t kL = kLanes<Word>, kNumbers = kL * Product<T>::kPerWord;
    data = scratch;
    step = staged_step<T>(width);
    for (int64_t r = 0; r < rows; ++r, x += stride, scratch += step) {
      for (int64_t c = 0; c < width; c += kNumbers)
        row_words<T>(x + c, width - c, [&](int part, Vec<Word> v) SFA_INLINE_LAMBDA {
          store_raw(scratch + (c / kNumbers * Product<T>::kParts + part) * kL, v);
        });
    }
  }
};

// Asks for memory that a tile will write or read when its sums are ready: the product hides the wait.
template <class T>
SFA_INLINE void prefetch_tile(const T* p, int64_t stride, int rows) {
  for (int r = 0; r < rows; ++r, p += stride)
    for (int64_t byte = 0; byte < kPanel<T> * static_cast<int64_t>(sizeof(T)); byte += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(p) + byte, 1);
}

// Asks for the share of `rows` rows that belongs to the panel at column c of `columns`: over all panels, all of them.
template <class T>
SFA_INLINE void prefetch_share(const T* p, int64_t width, int64_t c, int64_t columns, int rows) {
  const int64_t all = rows * width * static_cast<int64_t>(sizeof(T)), panels = (columns + kPanel<T> - 1) / kPanel<T>;
  const int64_t share = (all / panels + 63) / 64 * 64;
  for (int64_t byte = c / kPanel<T> * share; byte < (c / kPanel<T> + 1) * share && byte < all; byte += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(p) + byte, 0, 2);
}

constexpr auto no_prefetch = [](int64_t, int64_t, int) {};

// rows x columns of a product: emit(sum, row, column, count) gets every vector of the result; ahead(row, column, rows)
// hears of a tile before it is computed.
template <class T, bool kBias, class A, class F>
SFA_INLINE void product(const Operand<T>& a, int64_t rows, const void* packed, int64_t k, int64_t columns,
                        const void* bias, A&& ahead, F&& emit) {
  using Acc = typename Product<T>::Acc;
  const int64_t depth = words<T>(k);
  const auto* panel = static_cast<const typename Product<T>::Word*>(packed);
  const auto emit_tile = [&](auto& tile, int64_t row, int64_t column) SFA_INLINE_LAMBDA {
    tile.emit(rows - row, columns - column, [&](Vec<Acc> sum, int64_t r, int64_t c, auto count) SFA_INLINE_LAMBDA {
      emit(sum, row + r, column + c, count);
    });
  };
  TileUnit<T> unit;
  for (int64_t n = 0; n < columns; n += kPanel<T>, panel += kPanel<T> * depth) {
    for_tiles<T>(rows, [&](auto tile_rows, int64_t row) SFA_INLINE_LAMBDA {
      const auto start = [&](auto& tile) SFA_INLINE_LAMBDA {
        if constexpr (kBias)
          tile.fill(static_cast<const Acc*>(bias) + n);
        else
          tile.clear();
        ahead(row, n, decltype(tile_rows)::value);
        tile.multiply(a.data + row * a.step, a.step, 1, panel, depth);
      };
      unit.run(tile_rows, row, n, start, emit_tile);
    });
  }
  unit.finish(emit_tile);
}

}  // namespace
}  // namespace sfa::cpu::SFA_ISA_NAMESPACE
