// Small matrix products and transpositions between buffers that lie in the first caches. See vec.h for how this file is
// compiled. Buffers have rows of whole vectors, zeros behind the numbers that count.
#pragma once

#include "vec.h"

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

// R rows of C vectors are held in registers: of 16 they leave room for the vectors of b and one number of a.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kBlockRows = 12;
#else
constexpr int kBlockRows = 6;
#endif

template <class S>
SFA_INLINE int64_t whole_vectors(int64_t n) {
  return (n + kLanes<S> - 1) / kLanes<S> * kLanes<S>;
}

// a(i, k) is at a + i * row + k * step: a transposed matrix is one with other steps.
template <class S>
struct Left {
  const S* at;
  int64_t row, step;
};

template <class S>
struct Rows {
  S* at;
  int64_t row;  // from one row to the next, a multiple of a vector
};

// Indices are constants from the start, never loop counters: only then do compilers keep every sum in a register.
template <class S, int R, int C>
struct Block {
  Vec<S> sum[R][C];

  template <int... kRow>
  SFA_INLINE void start(const S* c, int64_t row, Indices<kRow...>) {
    ((sum[kRow][0] = load(c + kRow * row)), ...);
    if constexpr (C == 2) ((sum[kRow][1] = load(c + kRow * row + kLanes<S>)), ...);
  }
  template <int... kRow>
  SFA_INLINE void clear(Indices<kRow...>) {
    ((sum[kRow][0] = Vec<S>{}, sum[kRow][C - 1] = Vec<S>{}), ...);
  }
  template <int... kRow>
  SFA_INLINE void step(const S* a, int64_t row, const S* b, Indices<kRow...>) {
    const Vec<S> first = load(b), second = load(b + (C - 1) * kLanes<S>);
    (step_row<kRow>(a[kRow * row], first, second), ...);
  }
  template <int kRow>
  SFA_INLINE void step_row(S a, Vec<S> first, Vec<S> second) {
    sum[kRow][0] += a * first;
    if constexpr (C == 2) sum[kRow][1] += a * second;
  }
  template <int... kRow>
  SFA_INLINE void put(S* c, int64_t row, Indices<kRow...>) {
    (store(c + kRow * row, sum[kRow][0]), ...);
    if constexpr (C == 2) (store(c + kRow * row + kLanes<S>, sum[kRow][1]), ...);
  }
};

template <class S, bool kAdd, int R, int C>
SFA_INLINE void block(Left<S> a, const S* b, int64_t b_row, S* c, int64_t c_row, int64_t depth) {
  using Numbers = typename MakeIndices<R>::type;
  Block<S, R, C> block;
  if constexpr (kAdd)
    block.start(c, c_row, Numbers{});
  else
    block.clear(Numbers{});
  for (int64_t k = 0; k < depth; ++k) block.step(a.at + k * a.step, a.row, b + k * b_row, Numbers{});
  block.put(c, c_row, Numbers{});
}

// As many rows from `i` on as whole blocks of R cover; returns the first that is left.
template <class S, bool kAdd, int R>
SFA_INLINE int64_t blocks(Left<S> a, Rows<const S> b, Rows<S> c, int64_t i, int64_t rows, int64_t columns,
                          int64_t depth) {
  for (; i + R <= rows; i += R) {
    const Left<S> left = {a.at + i * a.row, a.row, a.step};
    S* to = c.at + i * c.row;
    int64_t j = 0;
    for (; j + 2 * kLanes<S> <= columns; j += 2 * kLanes<S>)
      block<S, kAdd, R, 2>(left, b.at + j, b.row, to + j, c.row, depth);
    if (j < columns) block<S, kAdd, R, 1>(left, b.at + j, b.row, to + j, c.row, depth);
  }
  return i;
}

// c = a b, or c += a b, with c [rows, columns] of whole vectors and b [depth, columns].
template <bool kAdd, class S>
void multiply(Left<S> a, Rows<const S> b, Rows<S> c, int64_t rows, int64_t columns, int64_t depth) {
  int64_t i = blocks<S, kAdd, kBlockRows>(a, b, c, 0, rows, columns, depth);
  i = blocks<S, kAdd, kBlockRows / 3>(a, b, c, i, rows, columns, depth);
  blocks<S, kAdd, 1>(a, b, c, i, rows, columns, depth);
}

template <class S, int... kLane>
SFA_INLINE void transpose_block(const S* from, int64_t from_row, S* to, int64_t to_row, Indices<kLane...>) {
  Vec<S> square[sizeof...(kLane)] = {load(from + kLane * from_row)...};
  transpose<1>(square);
  (store(to + kLane * to_row, square[kLane]), ...);
}

// to [columns, rows] = from [rows, columns]^T, both of whole vectors.
template <class S>
void transpose(Rows<const S> from, Rows<S> to, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; i += kLanes<S>)
    for (int64_t j = 0; j < columns; j += kLanes<S>)
      transpose_block<S>(from.at + i * from.row + j, from.row, to.at + j * to.row + i, to.row,
                         typename MakeIndices<kLanes<S>>::type{});
}

}  // namespace
}  // namespace sfa::cpu::SFA_ISA_NAMESPACE
