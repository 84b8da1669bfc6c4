// Packing of matrices into panels: [panel][word along the inner dimension][kPanel columns], zeros beyond the edges.
// A panel is then read front to back, whatever the strides of the matrix were.
#pragma once

#include "adapter_gemm.h"

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

template <class T>
constexpr bool kStoredAsWords = sizeof(T) == sizeof(typename Product<T>::Elem);

// One vector of words from n neighbouring numbers of a row; n counts numbers, not words.
template <class T>
SFA_INLINE Vec<typename Product<T>::Word> row_words(const T* p, int64_t n) {
  using Word = typename Product<T>::Word;
  constexpr int64_t kAll = kLanes<Word> * Product<T>::kPerWord;
  if constexpr (kStoredAsWords<T>) {
    if (n >= kAll) return load_raw<Vec<Word>>(p);
    T buffer[kAll] = {};
    for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
    return load_raw<Vec<Word>>(buffer);
  } else {
    return n >= kAll ? load(p) : load_first(p, n);
  }
}

// One vector of words for n neighbouring columns: their number in row0 and, where a word holds two, in row1 (nullptr
// stands for zeros, in row0 too).
template <class T>
SFA_INLINE Vec<typename Product<T>::Word> column_words(const T* row0, [[maybe_unused]] const T* row1, int64_t n) {
  using Word = typename Product<T>::Word;
  if (kByAmx<T> && row0 == nullptr) return Vec<Word>{};
  if constexpr (Product<T>::kPerWord == 2) {
    T low[kLanes<Word>] = {}, high[kLanes<Word>] = {};
    if (n >= kLanes<Word>) {
      const Vec<uint32_t> first = widen(load_raw<Narrow>(row0));
      return row1 == nullptr ? first : first | widen(load_raw<Narrow>(row1)) << 16;
    }
    for (int64_t i = 0; i < n; ++i) low[i] = row0[i];
    for (int64_t i = 0; row1 != nullptr && i < n; ++i) high[i] = row1[i];
    return widen(load_raw<Narrow>(low)) | widen(load_raw<Narrow>(high)) << 16;
  } else {
    return n >= kLanes<Word> ? load(row0) : load_first(row0, n);
  }
}

// Panels [first, last) of w^T, where w is [n, k] with rows `stride` apart: columns are rows of w.
template <class T>
void pack_transposed(const T* w, int64_t n, int64_t k, int64_t stride, int64_t first, int64_t last,
                     typename Product<T>::Word* out) {
  using Word = typename Product<T>::Word;
  constexpr int kL = kLanes<Word>, kPer = Product<T>::kPerWord;
  const int64_t depth = words<T>(k);
  for (int64_t column = first * kPanel<T>; column < last * kPanel<T>; column += kL) {
    Word* panel = out + column / kPanel<T> * kPanel<T> * depth + column % kPanel<T>;
    for (int64_t word = 0; word < depth; word += kL) {
      Vec<Word> rows[kL];
#pragma GCC unroll 16
      for (int i = 0; i < kL; ++i)
        rows[i] = column + i < n ? row_words<T>(w + (column + i) * stride + word * kPer, k - word * kPer) : Vec<Word>{};
      transpose<1>(rows);
      if (word + kL <= depth) {
#pragma GCC unroll 16
        for (int i = 0; i < kL; ++i) store_raw(panel + (word + i) * kPanel<T>, rows[i]);
      } else {
        for (int i = 0; i < depth - word; ++i) store_raw(panel + (word + i) * kPanel<T>, rows[i]);
      }
    }
  }
}

// Number `column` of a row of w, or nullptr for rows from k on.
template <class T>
SFA_INLINE const T* row_at(const T* w, int64_t row, int64_t k, int64_t stride, int64_t column) {
  return row < k ? w + row * stride + column : nullptr;
}

// w is [k, n] with rows `stride` apart; word i of columns [c, c + kWidth) goes to out + c / kWidth * group + i *
// kWidth. Rows are read front to back. Whole vectors are stored, so groups have room for one more vector.
template <class T, int64_t kWidth>
SFA_INLINE void pack_groups(const T* w, int64_t k, int64_t n, int64_t stride, typename Product<T>::Word* out,
                            int64_t group) {
  constexpr int kL = kLanes<typename Product<T>::Word>, kPer = Product<T>::kPerWord;
  for (int64_t row = 0; row < words<T>(k) * kPer; row += kPer, out += kWidth) {
    auto* to = out;
    for (int64_t c = 0; c < n; c += kWidth, to += group)
      for (int64_t v = 0; v < kWidth && c + v < n; v += kL)
        store_raw(to + v,
                  column_words<T>(row_at(w, row, k, stride, c + v), row_at(w, row + 1, k, stride, c + v), n - c - v));
  }
}

// w is [k, n] with rows `stride` apart; word i of column c goes to out + c * step + i: columns become rows of words.
// Whole vectors of columns are stored.
template <class T>
SFA_INLINE void pack_columns(const T* w, int64_t k, int64_t n, int64_t stride, typename Product<T>::Word* out,
                             int64_t step) {
  using Word = typename Product<T>::Word;
  constexpr int kL = kLanes<Word>, kPer = Product<T>::kPerWord;
  for (int64_t c = 0; c < n; c += kL)
    for (int64_t word = 0; word < words<T>(k); word += kL) {
      Vec<Word> columns[kL];
#pragma GCC unroll 16
      for (int i = 0; i < kL; ++i) {
        const int64_t row = (word + i) * kPer;
        columns[i] = column_words<T>(row_at(w, row, k, stride, c), row_at(w, row + 1, k, stride, c), n - c);
      }
      transpose<1>(columns);
#pragma GCC unroll 16
      for (int i = 0; i < kL; ++i) store_raw(out + (c + i) * step + word, columns[i]);
    }
}

// Panels [first, last) of w, which is [k, n].
template <class T>
void pack_plain(const T* w, int64_t k, int64_t n, int64_t first, int64_t last, typename Product<T>::Word* out) {
  constexpr int64_t kPanels = 8;  // at a time: one alone would fetch rows line by line, all of them write too far apart
  const int64_t group = kPanel<T> * words<T>(k);
  if (last * kPanel<T> > n) __builtin_memset(out + (last - 1) * group, 0, group * sizeof(*out));
  for (int64_t panel = first; panel < last; panel += kPanels) {
    const int64_t end = panel + kPanels < last ? panel + kPanels : last, column = panel * kPanel<T>;
    const int64_t columns = end * kPanel<T> < n ? end * kPanel<T> - column : n - column;
    pack_groups<T, kPanel<T>>(w + column, k, columns, n, out + panel * group, group);
  }
}

}  // namespace
}  // namespace sfa::cpu::SFA_ISA_NAMESPACE
