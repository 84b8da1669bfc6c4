// The matrix product that all adapter kernels are made of: a tile of rows times a packed panel of columns, held in
// registers. See vec.h for how this file is compiled.
#pragma once

#include "vec.h"

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

// How numbers of type T are multiplied. A word is what one lane consumes per step along the inner dimension: one
// number, or two bfloat16 where the processor has their dot product. Half types without one are widened to float. AMX
// multiplies only bfloat16: a float becomes kParts of them (adapter_pack.h). The inner dimension is padded to whole
// steps of kStepWords; for each step there are the words of one part after the other.
template <class T>
struct Product {
  using Acc = float;
  using Elem = float;
  using Word = float;
  static constexpr int kPerWord = 1, kStepWords = 1, kParts = 1;
  static SFA_INLINE Vec<float> step(Vec<float> acc, float a, Vec<float> b) { return a * b + acc; }
};

template <>
struct Product<double> {
  using Acc = double;
  using Elem = double;
  using Word = double;
  static constexpr int kPerWord = 1, kStepWords = 1, kParts = 1;
  static SFA_INLINE Vec<double> step(Vec<double> acc, double a, Vec<double> b) { return a * b + acc; }
};

#if defined(__AVX512BF16__) || defined(__AMX_BF16__)
template <>
struct Product<Bf16> {
  using Acc = float;
  using Elem = Bf16;
  using Word = uint32_t;
  static constexpr int kPerWord = 2, kParts = 1;
#if defined(__AMX_BF16__)
  static constexpr int kStepWords = 16;
#else
  static constexpr int kStepWords = 1;
  static SFA_INLINE Vec<float> step(Vec<float> acc, uint32_t a, Vec<uint32_t> b) {
    return bit_cast<Vec<float>>(_mm512_dpbf16_ps(
        bit_cast<__m512>(acc), bit_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(a))), bit_cast<__m512bh>(b)));
  }
#endif
};
#endif

#if defined(__AMX_BF16__)
template <>
struct Product<float> : Product<Bf16> {
  using Elem = float;
  static constexpr int kParts = 3;
};

// A float of whose 24 bits products leave out the last 8.
struct ShortFloat {
  float value;
};
SFA_INLINE Vec<float> load(const ShortFloat* p) { return load_raw<Vec<float>>(p); }
SFA_INLINE void store(ShortFloat* p, Vec<float> v) { store_raw(p, v); }

template <>
struct Product<ShortFloat> : Product<float> {
  using Elem = ShortFloat;
  static constexpr int kParts = 2;
};
#endif

// Whether tiles are those of AMX (adapter_amx.h), which computes whole ones only.
template <class T>
constexpr bool kByAmx = Product<T>::kStepWords > 1;

// A tile is kTileRows x 2 vectors: with 32 registers 24 sums, two columns of b and the broadcast numbers of a.
#if SFA_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kVectorRows = 12;
#else
constexpr int kVectorRows = 6;
#endif
template <class T>
constexpr int kTileRows = kByAmx<T> ? 32 : kVectorRows;
template <class T>
constexpr int kPanel = 2 * kLanes<typename Product<T>::Acc>;

// Numbers of one step along the inner dimension, and words of k numbers in whole steps.
template <class T>
constexpr int64_t kStepNumbers = Product<T>::kStepWords * Product<T>::kPerWord;
template <class T>
SFA_INLINE int64_t words(int64_t k) {
  return (k + kStepNumbers<T> - 1) / kStepNumbers<T> * Product<T>::kStepWords * Product<T>::kParts;
}
template <class T>
SFA_INLINE int64_t padded(int64_t n) {
  return (n + kPanel<T> - 1) / kPanel<T> * kPanel<T>;
}

// Calls f(Int<R>, first row) over tiles of R rows that cover [0, rows), by AMX also rows beyond. Sums do not depend on
// R.
template <class T, class F>
SFA_INLINE void for_tiles(int64_t rows, F&& f) {
  constexpr int kRows = kTileRows<T>;
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) f(Int<kRows>{}, r);
  if constexpr (kByAmx<T>) {
    if (r < rows) f(Int<kRows>{}, r);
  } else {
    for (; r + kRows / 3 <= rows; r += kRows / 3) f(Int<kRows / 3>{}, r);
    for (; r < rows; ++r) f(Int<1>{}, r);
  }
}

// Indices are constants from the start, never loop counters: only then do compilers keep every sum in a register.
template <class T, int R>
struct Tile {
  using Acc = typename Product<T>::Acc;
  using Word = typename Product<T>::Word;
  using Rows = typename MakeIndices<R>::type;
  static constexpr int kL = kLanes<Acc>;
  Vec<Acc> sum[R][2];

  // Every row starts from these numbers, or from zeros.
  SFA_INLINE void fill(const Acc* v) { fill(load(v), load(v + kL), Rows{}); }
  SFA_INLINE void clear() { fill(Vec<Acc>{}, Vec<Acc>{}, Rows{}); }
  template <int... kRow>
  SFA_INLINE void fill(Vec<Acc> first, Vec<Acc> second, Indices<kRow...>) {
    ((sum[kRow][0] = first, sum[kRow][1] = second), ...);
  }

  // Every number of row r becomes v[r].
  SFA_INLINE void fill_rows(const Acc* v) { fill_rows(v, Rows{}); }
  template <int... kRow>
  SFA_INLINE void fill_rows(const Acc* v, Indices<kRow...>) {
    ((sum[kRow][0] = broadcast(v[kRow]), sum[kRow][1] = sum[kRow][0]), ...);
  }

  // sum[r] += a(r, k) * b(k) for k < depth words; a(r, k) is at a + r * row_step + k * depth_step.
  SFA_INLINE void multiply(const Word* a, int64_t row_step, int64_t depth_step, const Word* b, int64_t depth) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < depth; ++k, a += depth_step, b += 2 * kL) step(a, row_step, b, Rows{});
  }
  template <int... kRow>
  SFA_INLINE void step(const Word* a, int64_t row_step, const Word* b, Indices<kRow...>) {
    const Vec<Word> b0 = load_raw<Vec<Word>>(b), b1 = load_raw<Vec<Word>>(b + kL);
    (step_row<kRow>(load_raw<Word>(a + kRow * row_step), b0, b1), ...);
  }
  template <int kRow>
  SFA_INLINE void step_row(Word a, Vec<Word> b0, Vec<Word> b1) {
    sum[kRow][0] = Product<T>::step(sum[kRow][0], a, b0);
    sum[kRow][1] = Product<T>::step(sum[kRow][1], a, b1);
  }

  // f(sum, row, column, count) for every vector of the tile that has columns below `columns`. All its rows are wanted.
  template <class F>
  SFA_INLINE void emit([[maybe_unused]] int64_t rows, int64_t columns, F&& f) {
    if (columns >= 2 * kL) return emit_whole(f, Rows{});
    Vec<Acc> copy[R][2];
    copy_to(copy, Rows{});
    for (int64_t r = 0; r < R; ++r)
      for (int64_t c = 0; c < columns; c += kL) f(copy[r][c / kL], r, c, columns - c < kL ? columns - c : kL);
  }
  template <class F, int... kRow>
  SFA_INLINE void emit_whole(F&& f, Indices<kRow...>) {
    ((f(sum[kRow][0], kRow, 0, Int<kL>{}), f(sum[kRow][1], kRow, kL, Int<kL>{})), ...);
  }
  template <int... kRow>
  SFA_INLINE void copy_to(Vec<Acc> (&copy)[R][2], Indices<kRow...>) {
    ((copy[kRow][0] = sum[kRow][0], copy[kRow][1] = sum[kRow][1]), ...);
  }
};

// Computes tiles one after the other: start(tile) fills and multiplies it, emit(tile, row, column) takes it from there,
// by AMX while the next one is multiplied. `finish` must follow the last one.
template <class T, bool = kByAmx<T>>
struct TileUnit {
  template <int R, class Start, class Emit>
  SFA_INLINE void run(Int<R>, int64_t row, int64_t column, Start&& start, Emit&& emit) {
    Tile<T, R> tile;
    start(tile);
    emit(tile, row, column);
  }
  template <class Emit>
  SFA_INLINE void finish(Emit&&) {}
};

}  // namespace
}  // namespace sfa::cpu::SFA_ISA_NAMESPACE

#if defined(__AMX_BF16__)
#include "adapter_amx.h"
#endif
