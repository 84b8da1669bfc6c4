// Weight gradients: products that run over the rows. See vec.h for how this file is compiled.
#pragma once

#include "adapter_kernels.h"
#include "adapter_pack.h"

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

template <class T>
constexpr int64_t kOuterRows = kByAmx<T> ? 256 : 264;  // of the result, a multiple of the tile's
constexpr int64_t kOuterColumns = 256;
constexpr int64_t kOuterDepth = 192;  // words: a panel and a tile fit the first-level cache, both operands the second

// Room for one packed group of columns of each operand; one vector may hang over the end of it.
template <class T, int64_t kWidth>
constexpr int64_t kGroup = kOuterDepth * kWidth + kLanes<typename Product<T>::Word>;

template <class T>
int64_t outer_scratch() {
  const int64_t a = kOuterRows<T> / kTileRows<T> * kGroup<T, kTileRows<T>>,
                b = kOuterColumns / kPanel<T> * kGroup<T, kPanel<T>>;
  return (a + b) * static_cast<int64_t>(sizeof(typename Product<T>::Word));
}

// Columns [0, n) of a [k, n], rows `stride` apart, as the rows of tiles: a group for each tile, by AMX a row for each.
template <class T>
SFA_INLINE void pack_left(const T* a, int64_t k, int64_t n, int64_t stride, typename Product<T>::Word* out) {
  if constexpr (kByAmx<T>)
    pack_columns<T>(a, k, n, stride, out, kOuterDepth);
  else
    pack_groups<T, kTileRows<T>>(a, k, n, stride, out, kGroup<T, kTileRows<T>>);
}
template <class T, class Tile>
SFA_INLINE void multiply_left(Tile& tile, const typename Product<T>::Word* packed, int64_t row,
                              const typename Product<T>::Word* b, int64_t depth) {
  constexpr int64_t kRows = kTileRows<T>;
  if constexpr (kByAmx<T>)
    tile.multiply(packed + row * kOuterDepth, kOuterDepth, 1, b, depth);
  else
    tile.multiply(packed + row / kRows * kGroup<T, kRows> + row % kRows, 1, kRows, b, depth);
}

// Asks for columns [c, c_end) of rows [row, row_end).
template <class T>
SFA_INLINE void prefetch_rows(const void* p, int64_t stride, int64_t row, int64_t row_end, int64_t c, int64_t c_end) {
  for (; row < row_end; ++row) {
    const char* line = reinterpret_cast<const char*>(static_cast<const T*>(p) + row * stride + c);
    for (int64_t byte = 0; byte < (c_end - c) * static_cast<int64_t>(sizeof(T)); byte += 64)
      __builtin_prefetch(line + byte, 0, 2);
  }
}

template <class T>
void outer(const AdapterOuter& p, int64_t begin, int64_t end, int64_t i0, int64_t i_end, int64_t j0, int64_t j_end,
           void* scratch) {
  using Acc = typename Product<T>::Acc;
  using Word = typename Product<T>::Word;
  constexpr int64_t kParts = Product<T>::kParts, kStep = kOuterDepth / kParts * Product<T>::kPerWord;
  static_assert(kOuterDepth % (Product<T>::kStepWords * kParts) == 0);
  Word* a = static_cast<Word*>(scratch);
  Word* b = a + kOuterRows<T> / kTileRows<T> * kGroup<T, kTileRows<T>>;
  const int64_t columns = j_end - j0;
  for (int64_t row = begin; row < end; row += kStep) {
    const int64_t k = end - row < kStep ? end - row : kStep, depth = words<T>(k);
    pack_left<T>(static_cast<const T*>(p.a) + row * p.a_stride + i0, k, i_end - i0, p.a_stride, a);
    pack_groups<T, kPanel<T>>(static_cast<const T*>(p.b) + row * p.b_stride + j0, k, columns, p.b_stride, b,
                              kGroup<T, kPanel<T>>);
    const int64_t next = row + k, next_rows = end - next < kStep ? end - next : kStep;
    const int64_t all = (columns + kPanel<T> - 1) / kPanel<T> * (i_end - i0);
    const auto emit_tile = [&](auto& tile, int64_t i, int64_t n) SFA_INLINE_LAMBDA {
      Acc* c = static_cast<Acc*>(p.c) + (i0 + i) * p.b_stride + j0 + n;
      tile.emit(i_end - i0 - i, columns - n,
                [&](Vec<Acc> sum, int64_t r, int64_t column, auto count) SFA_INLINE_LAMBDA {
                  const int64_t at = r * p.b_stride + column;
                  const Vec<Acc> total = row == begin ? sum : sum + load_count(c + at, count);
                  if (p.out != nullptr && next == end)
                    store_count(static_cast<T*>(p.out) + (c - static_cast<Acc*>(p.c)) + at, total, count);
                  else
                    store_count(c + at, total, count);
                });
    };
    TileUnit<T> unit;
    for (int64_t n = 0; n < columns; n += kPanel<T>) {
      for_tiles<T>(i_end - i0, [&](auto tile_rows, int64_t i) SFA_INLINE_LAMBDA {
        const int64_t done = n / kPanel<T> * (i_end - i0) + i, then = done + decltype(tile_rows)::value;
        prefetch_rows<T>(p.a, p.a_stride, next + done * next_rows / all, next + then * next_rows / all, i0, i_end);
        prefetch_rows<T>(p.b, p.b_stride, next + done * next_rows / all, next + then * next_rows / all, j0, j_end);
        const auto start = [&](auto& tile) SFA_INLINE_LAMBDA {
          tile.clear();
          multiply_left<T>(tile, a, i, b + n / kPanel<T> * kGroup<T, kPanel<T>>, depth);
        };
        unit.run(tile_rows, i, n, start, emit_tile);
      });
    }
    unit.finish(emit_tile);
  }
}

template <class T>
void column_sums(const void* v, int64_t rows, int64_t n, void* out) {
  using Acc = typename Product<T>::Acc;
  constexpr int64_t kRows = 16;  // at a time, so that a sum leaves its register rarely
  for (int64_t row = 0; row < rows; row += kRows) {
    const T* first = static_cast<const T*>(v) + row * n;
    const int64_t count = rows - row < kRows ? rows - row : kRows;
    const auto add = [&](int64_t c, auto lanes) SFA_INLINE_LAMBDA {
      Vec<Acc> sum{};
      for (int64_t r = 0; r < count; ++r) sum += load_count(first + r * n + c, lanes);
      Acc* at = static_cast<Acc*>(out) + c;
      store_count(at, row == 0 ? sum : sum + load_count(at, lanes), lanes);
    };
    int64_t c = 0;
    for (; c + kLanes<Acc> <= n; c += kLanes<Acc>) add(c, Int<kLanes<Acc>>{});
    if (c < n) add(c, n - c);
  }
}

template <class T>
void finish(const void* parts, int64_t count, int64_t part_stride, int64_t begin, int64_t end, void* out) {
  using Acc = typename Product<T>::Acc;
  const auto sum = [&](int64_t i, auto lanes) SFA_INLINE_LAMBDA {
    const Acc* at = static_cast<const Acc*>(parts) + i;
    Vec<Acc> total = load_count(at, lanes);
    for (int64_t part = 1; part < count; ++part) total += load_count(at + part * part_stride, lanes);
    store_count(static_cast<T*>(out) + i, total, lanes);
  };
  int64_t i = begin;
  for (; i + kLanes<Acc> <= end; i += kLanes<Acc>) sum(i, Int<kLanes<Acc>>{});
  if (i < end) sum(i, end - i);
}

}  // namespace
}  // namespace sfa::cpu::SFA_ISA_NAMESPACE
