// The adapter over a range of rows. A block of rows goes through both products while it is in the cache: x is read
// from memory once, the hidden numbers never leave the core, and a panel of weights is read once per block.
#pragma once

#include "adapter_kernels.h"
#include "adapter_norm.h"
#include "adapter_pack.h"

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

constexpr int64_t kBlockBytes = 192 * 1024;  // of one operand; a second-level cache of 1 MiB also holds the panels

template <class T>
SFA_INLINE int64_t block_rows(int64_t width) {
  const int64_t tiles = kBlockBytes / (kTileRows * (width + 1) * static_cast<int64_t>(sizeof(typename Product<T>::Elem)));
  return kTileRows * (tiles < 1 ? 1 : (tiles > 8 ? 8 : tiles));
}

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

  Operand(const typename Product<T>::Elem* hidden, int64_t stride)
      : data(reinterpret_cast<const Word*>(hidden)), step(stride / Product<T>::kPerWord) {}

  Operand(const T* x, int64_t rows, int64_t width, Word* scratch) : data(scratch), step(staged_step<T>(width)) {
    if (kStoredAsWords<T> && width % Product<T>::kPerWord == 0) {
      data = reinterpret_cast<const Word*>(x);
      step = width / Product<T>::kPerWord;
      return;
    }
    constexpr int64_t kNumbers = kLanes<Word> * Product<T>::kPerWord;
    for (int64_t r = 0; r < rows; ++r, x += width, scratch += step)
      for (int64_t c = 0; c < width; c += kNumbers)
        store_raw(scratch + c / Product<T>::kPerWord, row_words<T>(x + c, width - c));
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

// rows x columns of a product: emit(sum, row, column, count) gets every vector of the result; ahead(row, column, rows)
// hears of a tile before it is computed.
template <class T, bool kBias, class A, class F>
SFA_INLINE void product(const Operand<T>& a, int64_t rows, const void* packed, int64_t k, int64_t columns,
                        const void* bias, A&& ahead, F&& emit) {
  using Acc = typename Product<T>::Acc;
  const int64_t depth = words<T>(k);
  const auto* panel = static_cast<const typename Product<T>::Word*>(packed);
  for (int64_t n = 0; n < columns; n += kPanel<T>, panel += kPanel<T> * depth) {
    for_tiles(rows, [&](auto tile_rows, int64_t row) SFA_INLINE_LAMBDA {
      Tile<T, decltype(tile_rows)::value> tile;
      if constexpr (kBias)
        tile.fill(load(static_cast<const Acc*>(bias) + n), load(static_cast<const Acc*>(bias) + n + kLanes<Acc>));
      else
        tile.fill(Vec<Acc>{}, Vec<Acc>{});
      ahead(row, n, decltype(tile_rows)::value);
      tile.multiply(a.data + row * a.step, a.step, 1, panel, depth);
      tile.emit(columns - n, [&](Vec<Acc> sum, int64_t r, int64_t c, auto count)
                                 SFA_INLINE_LAMBDA { emit(sum, row + r, n + c, count); });
    });
  }
}

constexpr auto nothing = [](int64_t, int64_t, int) {};

// A word of the second product may reach one number beyond d. Its weight is zero, so it must not be NaN.
template <class T>
SFA_INLINE void clear_edge(typename Product<T>::Elem* hidden, int64_t rows, int64_t d) {
  if (d % Product<T>::kPerWord == 0) return;
  for (int64_t r = 0; r < rows; ++r) hidden[r * padded<T>(d) + d] = {};
}

template <class T>
struct ForwardScratch {
  typename Product<T>::Word* x;
  typename Product<T>::Elem* hidden;
  typename Product<T>::Acc* sums;  // [rows, D] of the norm's input

  static int64_t bytes(int64_t width, int64_t d) {
    const int64_t row = staged_step<T>(width) * sizeof(*x) + padded<T>(d) * sizeof(*hidden) + padded<T>(width) * sizeof(*sums);
    return block_rows<T>(width) * row;
  }
  ForwardScratch(void* p, int64_t width, int64_t d)
      : x(static_cast<typename Product<T>::Word*>(p)),
        hidden(reinterpret_cast<typename Product<T>::Elem*>(x + block_rows<T>(width) * staged_step<T>(width))),
        sums(reinterpret_cast<typename Product<T>::Acc*>(hidden + block_rows<T>(width) * padded<T>(d))) {}
};

// out = x + relu(x w_down^T + b_down) w_up^T + b_up, or with the norm residual + LayerNorm of that. R is the type of
// the residual and of out.
template <class T, class R, bool kNorm>
void forward(const AdapterForward& p, int64_t begin, int64_t end, void* scratch) {
  using V = Vec<typename Product<T>::Acc>;
  const int64_t width = p.width, d = p.hidden, stride = padded<T>(d), step = block_rows<T>(width);
  const ForwardScratch<T> s(scratch, width, d);
  for (int64_t row = begin; row < end; row += step) {
    const int64_t rows = end - row < step ? end - row : step;
    const T* x = static_cast<const T*>(p.x) + row * width;
    R* out = static_cast<R*>(p.out) + row * width;
    const Operand<T> a(x, rows, width, s.x);
    const int64_t next = end - row - rows < step ? end - row - rows : step;
    const auto ahead_x = [&](int64_t r, int64_t c, int count) SFA_INLINE_LAMBDA {
      if (r + count <= next) prefetch_share(x + (rows + r) * width, width, c, d, count);
    };
    product<T, true>(a, rows, p.down, width, d, p.bias_down, ahead_x, [&](V v, int64_t r, int64_t c, auto) SFA_INLINE_LAMBDA {
      store(s.hidden + r * stride + c, v < 0 ? V{} : v);  // NaN stays NaN
    });
    clear_edge<T>(s.hidden, rows, d);
    const Operand<T> h(s.hidden, stride);
    const auto ahead = [&](int64_t r, int64_t c, int count) SFA_INLINE_LAMBDA {
      if constexpr (!kNorm) prefetch_tile(out + r * width + c, width, count);
    };
    product<T, true>(h, rows, p.up, d, width, p.bias_up, ahead, [&](V v, int64_t r, int64_t c, auto count) SFA_INLINE_LAMBDA {
      const V sum = v + load_count(x + r * width + c, count);
      if constexpr (kNorm)
        store(s.sums + r * padded<T>(width) + c, sum);
      else
        store_count(out + r * width + c, sum, count);
    });
    if constexpr (kNorm)
      for (int64_t r = 0; r < rows; ++r)
        norm_row(s.sums + r * padded<T>(width), static_cast<const R*>(p.residual) + (row + r) * width, p, out + r * width);
  }
}

template <class T>
struct BackwardScratch {
  typename Product<T>::Word *x, *grad_out;
  typename Product<T>::Elem *hidden, *grad_hidden;

  static int64_t bytes(int64_t width, int64_t d) {
    return block_rows<T>(width) * 2 * (staged_step<T>(width) * sizeof(*x) + padded<T>(d) * sizeof(*hidden));
  }
  BackwardScratch(void* p, int64_t width, int64_t d)
      : x(static_cast<typename Product<T>::Word*>(p)),
        grad_out(x + block_rows<T>(width) * staged_step<T>(width)),
        hidden(reinterpret_cast<typename Product<T>::Elem*>(grad_out + block_rows<T>(width) * staged_step<T>(width))),
        grad_hidden(hidden + block_rows<T>(width) * padded<T>(d)) {}
};

// The hidden numbers once more, their gradient, and the gradient of x.
template <class T>
void backward(const AdapterBackward& p, int64_t begin, int64_t end, void* scratch) {
  using V = Vec<typename Product<T>::Acc>;
  const int64_t width = p.width, d = p.hidden, stride = padded<T>(d), step = block_rows<T>(width);
  const BackwardScratch<T> s(scratch, width, d);
  for (int64_t row = begin; row < end; row += step) {
    const int64_t rows = end - row < step ? end - row : step;
    T* activation = p.activation == nullptr ? nullptr : static_cast<T*>(p.activation) + row * d;
    T* grad_hidden = p.grad_hidden == nullptr ? nullptr : static_cast<T*>(p.grad_hidden) + row * d;
    const T* grad_out = static_cast<const T*>(p.grad_out) + row * width;
    const Operand<T> x(static_cast<const T*>(p.x) + row * width, rows, width, s.x);
    const int64_t next = end - row - rows < step ? end - row - rows : step;
    const auto ahead_x = [&](int64_t r, int64_t c, int count) SFA_INLINE_LAMBDA {
      if (r + count <= next) prefetch_share(static_cast<const T*>(p.x) + (row + rows + r) * width, width, c, d, count);
    };
    product<T, true>(x, rows, p.down, width, d, p.bias_down, ahead_x, [&](V v, int64_t r, int64_t c, auto count) SFA_INLINE_LAMBDA {
      const V h = v < 0 ? V{} : v;
      store(s.hidden + r * stride + c, h);
      if (activation != nullptr) store_count(activation + r * d + c, h, count);
    });
    if (grad_hidden == nullptr && p.grad_x == nullptr) continue;
    const auto ahead_g = [&](int64_t r, int64_t c, int count) SFA_INLINE_LAMBDA {
      if (r + count <= next) prefetch_share(grad_out + (rows + r) * width, width, c, d, count);
    };
    const Operand<T> g(grad_out, rows, width, s.grad_out);
    product<T, false>(g, rows, p.up_plain, width, d, nullptr, ahead_g, [&](V v, int64_t r, int64_t c, auto count) SFA_INLINE_LAMBDA {
      const V masked = load(s.hidden + r * stride + c) <= 0 ? V{} : v;
      store(s.grad_hidden + r * stride + c, masked);
      if (grad_hidden != nullptr) store_count(grad_hidden + r * d + c, masked, count);
    });
    if (p.grad_x == nullptr) continue;
    T* grad_x = static_cast<T*>(p.grad_x) + row * width;
    clear_edge<T>(s.grad_hidden, rows, d);
    const Operand<T> gh(s.grad_hidden, stride);
    const auto ahead = [&](int64_t r, int64_t c, int count) SFA_INLINE_LAMBDA {
      prefetch_tile(grad_x + r * width + c, width, count);
    };
    product<T, false>(gh, rows, p.down_plain, d, width, nullptr, ahead, [&](V v, int64_t r, int64_t c, auto count) SFA_INLINE_LAMBDA {
      store_count(grad_x + r * width + c, v + load_count(grad_out + r * width + c, count), count);
    });
  }
}

}  // namespace
}  // namespace sfa::cpu::SFA_ISA_NAMESPACE
