// The product for few rows, for which packing the weights would take as long as multiplying them: the rows are packed
// instead, and the weights are read where they lie, once. Sums are added up in the same order as by `product`, so
// results have the same bits. See vec.h for how this file is compiled.
#pragma once

#include "adapter_product.h"

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

constexpr int64_t kFewRows = 64;  // at a time: a multiple of every panel
constexpr int64_t kStrip = 48;    // columns of the result at a time: a multiple of every tile and vector

// Weights that are stored as words can be multiplied without another copy of them, by vectors.
template <class T>
constexpr bool kTakesFew = kStoredAsWords<T> && !kByAmx<T>;

// The same for weights whose rows have `width` numbers.
template <class T>
constexpr bool takes_few(int64_t width) {
  return kTakesFew<T> && width % Product<T>::kPerWord == 0;
}

// Memory for the packed rows and for a strip of the result, which comes out transposed: [panel of rows][column][row].
template <class T>
struct FewScratch {
  using Word = typename Product<T>::Word;
  using Acc = typename Product<T>::Acc;
  Acc* strip;
  Word* rows;

  static int64_t bytes(int64_t width) {
    return kFewRows * static_cast<int64_t>(kStrip * sizeof(Acc) + words<T>(width) * sizeof(Word));
  }
  explicit FewScratch(void* scratch)
      : strip(static_cast<Acc*>(scratch)), rows(reinterpret_cast<Word*>(strip + kFewRows * kStrip)) {}
};

// strip[c] = packed rows * w[c] (+ bias[c]) for columns c < count, k words deep
template <class T, bool kBias>
SFA_INLINE void multiply_strip(const FewScratch<T>& scratch, int64_t panels, const typename Product<T>::Word* w,
                               int64_t depth, int64_t count, const typename Product<T>::Acc* bias) {
  using Acc = typename Product<T>::Acc;
  for_tiles<T>(count, [&](auto tile_rows, int64_t c) SFA_INLINE_LAMBDA {
    for (int64_t p = 0; p < panels; ++p) {
      Tile<T, decltype(tile_rows)::value> tile;
      if constexpr (kBias)
        tile.fill_rows(bias + c);
      else
        tile.clear();
      tile.multiply(w + c * depth, depth, 1, scratch.rows + p * kPanel<T> * depth, depth);
      Acc* to = scratch.strip + (p * kStrip + c) * kPanel<T>;
      tile.emit(kTileRows<T>, kPanel<T>, [&](Vec<Acc> sum, int64_t r, int64_t v, auto) SFA_INLINE_LAMBDA {
        store(to + r * kPanel<T> + v, sum);
      });
    }
  });
}

// rows x columns of a w^T (+ bias): `a` has rows of k numbers `stride` apart, w [columns, k] is not packed; emit as
// for `product`.
template <class T, bool kBias, class F>
SFA_INLINE void product_of_few(const T* a, int64_t rows, int64_t stride, const void* w, int64_t k, int64_t columns,
                               const void* bias, const FewScratch<T>& scratch, F&& emit) {
  using Acc = typename Product<T>::Acc;
  constexpr int kL = kLanes<Acc>;
  const int64_t depth = words<T>(k), panels = (rows + kPanel<T> - 1) / kPanel<T>;
  const auto* weights = static_cast<const typename Product<T>::Word*>(w);
  pack_transposed<T>(a, rows, k, stride, 0, panels, scratch.rows);
  for (int64_t n = 0; n < columns; n += kStrip) {
    const int64_t count = columns - n < kStrip ? columns - n : kStrip;
    multiply_strip<T, kBias>(scratch, panels, weights + n * depth, depth, count, static_cast<const Acc*>(bias) + n);
    for (int64_t row = 0; row < rows; row += kL) {
      const Acc* from = scratch.strip + row / kPanel<T> * kStrip * kPanel<T> + row % kPanel<T>;
      const int64_t row_count = rows - row < kL ? rows - row : kL;
      for (int64_t c = 0; c < count; c += kL) {
        Vec<Acc> sums[kL];
#pragma GCC unroll 16
        for (int i = 0; i < kL; ++i) sums[i] = load(from + (c + i) * kPanel<T>);
        transpose<1>(sums);
        if (row_count == kL && count - c >= kL) {
#pragma GCC unroll 16
          for (int r = 0; r < kL; ++r) emit(sums[r], row + r, n + c, Int<kL>{});
        } else {
          for (int r = 0; r < row_count; ++r) emit(sums[r], row + r, n + c, count - c < kL ? count - c : kL);
        }
      }
    }
  }
}

}  // namespace
}  // namespace sfa::cpu::SFA_ISA_NAMESPACE
