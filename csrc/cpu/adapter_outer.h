// Weight gradients: products that run over the rows. See vec.h for how this file is compiled.
#pragma once

#include "adapter_kernels.h"
#include "adapter_pack.h"

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

constexpr int64_t kOuterRows = 132, kOuterColumns = 128;  // of the result; the first a multiple of the tile's rows
constexpr int64_t kOuterDepth = 256;                      // words: both packed operands stay in the second-level cache
constexpr int64_t kOuterStep = 160;                       // not a power of two, which would crowd one set of the cache

template <class T>
int64_t outer_scratch() {
  return kOuterDepth * (kOuterStep + kOuterColumns) * sizeof(typename Product<T>::Word);
}

template <class T>
void outer(const AdapterOuter& p, int64_t begin, int64_t end, int64_t i0, int64_t i_end, int64_t j0, int64_t j_end,
           void* scratch) {
  using Acc = typename Product<T>::Acc;
  using Word = typename Product<T>::Word;
  constexpr int64_t kStep = kOuterDepth * Product<T>::kPerWord;
  Word* a = static_cast<Word*>(scratch);
  Word* b = a + kOuterDepth * kOuterStep;
  const int64_t columns = j_end - j0;
  for (int64_t row = begin; row < end; row += kStep) {
    const int64_t k = end - row < kStep ? end - row : kStep, depth = words<T>(k);
    pack_block<T>(static_cast<const T*>(p.a) + row * p.a_stride + i0, k, i_end - i0, p.a_stride, a, kOuterStep);
    pack_plain<T>(static_cast<const T*>(p.b) + row * p.b_stride + j0, k, columns, p.b_stride, 0, (columns + kPanel<T> - 1) / kPanel<T>, b);
    for (int64_t n = 0; n < columns; n += kPanel<T>) {
      for_tiles(i_end - i0, [&](auto tile_rows, int64_t i) SFA_INLINE_LAMBDA {
        Tile<T, decltype(tile_rows)::value> tile;
        tile.fill(Vec<Acc>{}, Vec<Acc>{});
        tile.multiply(a + i, 1, kOuterStep, b + n * depth, depth);
        Acc* c = static_cast<Acc*>(p.c) + (i0 + i) * p.b_stride + j0 + n;
        tile.emit(columns - n, [&](Vec<Acc> sum, int64_t r, int64_t column, auto count) SFA_INLINE_LAMBDA {
          Acc* at = c + r * p.b_stride + column;
          store_count(at, row == begin ? sum : sum + load_count(at, count), count);
        });
      });
    }
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
