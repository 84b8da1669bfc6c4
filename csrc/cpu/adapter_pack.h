// Packing of matrices into panels: [panel][word along the inner dimension][kPanel columns], zeros beyond the edges.
// A panel is then read front to back, whatever the strides of the matrix were.
#pragma once

#include "adapter_gemm.h"

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

template <class T>
constexpr bool kStoredAsWords = sizeof(T) == sizeof(typename Product<T>::Elem) && Product<T>::kParts == 1;

// What is left of numbers without their leading 8 bits. A float has 24: it is the sum of three bfloat16, each the upper
// half of what the one before left; the first two have 16 of them. Of infinity NaN is left.
SFA_INLINE Vec<float> rest_of(Vec<float> v) {
  return v - bit_cast<Vec<float>>(bit_cast<Vec<uint32_t>>(v) & 0xffff0000);
}

// What is left for a part, whose upper half it is: rounded, where it is the last and cannot hold all of it.
template <class T>
SFA_INLINE Vec<float> as_part(Vec<float> v, int part) {
  constexpr int kParts = Product<T>::kParts;
  return kParts < 3 && part == kParts - 1 ? bit_cast<Vec<float>>(bit_cast<Vec<uint32_t>>(v) + 0x8000) : v;
}

// The upper halves of all 32-bit numbers of two vectors, one after the other.
template <int... kIndex>
SFA_INLINE Vec<uint32_t> upper_halves(Vec<float> first, Vec<float> second, Indices<kIndex...>) {
  using Halves = Vec<uint16_t>;
  return bit_cast<Vec<uint32_t>>(
      __builtin_shufflevector(bit_cast<Halves>(first), bit_cast<Halves>(second), (2 * kIndex + 1)...));
}

// f(part, one vector of words) for n neighbouring numbers of a row; n counts numbers, not words.
template <class T, class F>
SFA_INLINE void row_words(const T* p, int64_t n, F&& f) {
  using Word = typename Product<T>::Word;
  constexpr int64_t kAll = kLanes<Word> * Product<T>::kPerWord;
  if constexpr (Product<T>::kParts > 1) {
    constexpr int64_t kL = kLanes<float>;
    Vec<float> first = n >= kL ? load(p) : load_first(p, n);
    Vec<float> second = n >= kAll ? load(p + kL) : load_first(p + kL, n - kL);
    for (int part = 0; part < Product<T>::kParts; ++part, first = rest_of(first), second = rest_of(second))
      f(part, upper_halves(as_part<T>(first, part), as_part<T>(second, part), typename MakeIndices<2 * kL>::type{}));
  } else if constexpr (kStoredAsWords<T>) {
    if (n >= kAll) return f(0, load_raw<Vec<Word>>(p));
    T buffer[kAll] = {};
    for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
    f(0, load_raw<Vec<Word>>(buffer));
  } else {
    f(0, n >= kAll ? load(p) : load_first(p, n));
  }
}

// f(part, one vector of words) for n neighbouring columns: their number in row0 and, where a word holds two, in row1
// (nullptr stands for zeros, in row0 too).
template <class T, class F>
SFA_INLINE void column_words(const T* row0, [[maybe_unused]] const T* row1, int64_t n, F&& f) {
  using Word = typename Product<T>::Word;
  constexpr int64_t kL = kLanes<Word>;
  if constexpr (Product<T>::kParts > 1) {
    const auto row = [&](const T* p) SFA_INLINE_LAMBDA {
      return p == nullptr ? Vec<float>{} : (n >= kL ? load(p) : load_first(p, n));
    };
    Vec<float> low = row(row0), high = row(row1);
    for (int part = 0; part < Product<T>::kParts; ++part, low = rest_of(low), high = rest_of(high))
      f(part,
        bit_cast<Vec<Word>>(as_part<T>(low, part)) >> 16 | (bit_cast<Vec<Word>>(as_part<T>(high, part)) & 0xffff0000));
  } else if constexpr (Product<T>::kPerWord == 2) {
    if (row0 == nullptr) return f(0, Vec<Word>{});
    if (n >= kL) {
      const Vec<uint32_t> first = widen(load_raw<Narrow>(row0));
      return f(0, row1 == nullptr ? first : first | widen(load_raw<Narrow>(row1)) << 16);
    }
    T low[kL] = {}, high[kL] = {};
    for (int64_t i = 0; i < n; ++i) low[i] = row0[i];
    for (int64_t i = 0; row1 != nullptr && i < n; ++i) high[i] = row1[i];
    f(0, widen(load_raw<Narrow>(low)) | widen(load_raw<Narrow>(high)) << 16);
  } else {
    f(0, n >= kL ? load(row0) : load_first(row0, n));
  }
}

// Panels [first, last) of w^T, where w is [n, k] with rows `stride` apart: columns are rows of w.
template <class T>
void pack_transposed(const T* w, int64_t n, int64_t k, int64_t stride, int64_t first, int64_t last,
                     typename Product<T>::Word* out) {
  using Word = typename Product<T>::Word;
  constexpr int kL = kLanes<Word>, kPer = Product<T>::kPerWord, kParts = Product<T>::kParts;
  const int64_t depth = words<T>(k);
  for (int64_t column = first * kPanel<T>; column < last * kPanel<T>; column += kL) {
    Word* panel = out + column / kPanel<T> * kPanel<T> * depth + column % kPanel<T>;
    for (int64_t word = 0; word < depth; word += kL * kParts) {
      const int64_t number = word / kParts * kPer;
      Vec<Word> rows[kParts][kL];
#pragma GCC unroll 16
      for (int i = 0; i < kL; ++i) {
        const auto keep = [&](int part, Vec<Word> v) SFA_INLINE_LAMBDA { rows[part][i] = v; };
        if (column + i < n)
          row_words<T>(w + (column + i) * stride + number, k - number, keep);
        else
          for (int part = 0; part < kParts; ++part) keep(part, Vec<Word>{});
      }
      for (int part = 0; part < kParts; ++part) {
        const int64_t at = word + part * kL;
        transpose<1>(rows[part]);
        if (at + kL <= depth) {
#pragma GCC unroll 16
          for (int i = 0; i < kL; ++i) store_raw(panel + (at + i) * kPanel<T>, rows[part][i]);
        } else {
          for (int i = 0; i < depth - at; ++i) store_raw(panel + (at + i) * kPanel<T>, rows[part][i]);
        }
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
  using Word = typename Product<T>::Word;
  constexpr int kL = kLanes<Word>, kPer = Product<T>::kPerWord, kStep = Product<T>::kStepWords;
  constexpr int64_t kParts = Product<T>::kParts, kPart = kStep * kWidth;  // from part to part
  for (int64_t word = 0; word < words<T>(k) / kParts; ++word) {
    const int64_t row = word * kPer;
    auto* to = out + word / kStep * kParts * kPart + word % kStep * kWidth;
    for (int64_t c = 0; c < n; c += kWidth, to += group)
      for (int64_t v = 0; v < kWidth && c + v < n; v += kL)
        column_words<T>(row_at(w, row, k, stride, c + v), row_at(w, row + 1, k, stride, c + v), n - c - v,
                        [&](int part, Vec<Word> words) SFA_INLINE_LAMBDA { store_raw(to + part * kPart + v, words); });
  }
}

// w is [k, n] with rows `stride` apart; word i of column c goes to out + c * step + i: columns become rows of words.
// Whole vectors of columns are stored.
template <class T>
SFA_INLINE void pack_columns(const T* w, int64_t k, int64_t n, int64_t stride, typename Product<T>::Word* out,
                             int64_t step) {
  using Word = typename Product<T>::Word;
  constexpr int kL = kLanes<Word>, kPer = Product<T>::kPerWord, kParts = Product<T>::kParts;
  for (int64_t c = 0; c < n; c += kL)
    for (int64_t word = 0; word < words<T>(k); word += kL * kParts) {
      Vec<Word> columns[kParts][kL];
#pragma GCC unroll 16
      for (int i = 0; i < kL; ++i) {
        const int64_t row = (word / kParts + i) * kPer;
        column_words<T>(row_at(w, row, k, stride, c), row_at(w, row + 1, k, stride, c), n - c,
                        [&](int part, Vec<Word> v) SFA_INLINE_LAMBDA { columns[part][i] = v; });
      }
      for (int part = 0; part < kParts; ++part) {
        transpose<1>(columns[part]);
#pragma GCC unroll 16
        for (int i = 0; i < kL; ++i) store_raw(out + (c + i) * step + word + part * kL, columns[part][i]);
      }
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
