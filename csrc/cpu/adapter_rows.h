// The adapter over a range of rows, in blocks that go through all products while they are in the cache: x is read from
// memory once, the hidden numbers never leave the core, and a panel of weights is read once per block.
#pragma once

#include "adapter_few.h"
#include "adapter_kernels.h"
#include "adapter_norm.h"
#include "adapter_product.h"

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

constexpr int64_t kBlockBytes = 192 * 1024;  // of one operand; a second-level cache of 1 MiB also holds the panels
constexpr int64_t kBlockTiles = 8;

// Rows of one block and the memory that they share.
template <class T>
struct Block {
  using Acc = typename Product<T>::Acc;
  using Elem = typename Product<T>::Elem;
  using Word = typename Product<T>::Word;

  int64_t width, d;            // D, d
  bool few;                    // the weights are not packed
  int64_t step;                // rows of a block
  int64_t row, rows, next;     // first row, rows here, rows of the block that follows
  Word* staged;                // [step, D or d] where the numbers are not stored as words
  Elem *hidden, *grad_hidden;  // [step, padded d]
  Acc* sums;                   // [step, padded D]
  FewScratch<T> few_scratch;

  static int64_t most_rows(int64_t width, bool few) {
    if (few) return kFewRows;
    const int64_t tiles = kBlockBytes / (kTileRows<T> * (width + 1) * static_cast<int64_t>(sizeof(Elem)));
    return kTileRows<T> * (tiles < 1 ? 1 : (tiles > kBlockTiles ? kBlockTiles : tiles));
  }
  static int64_t staged_words(int64_t width, int64_t d) { return staged_step<T>(width > d ? width : d); }
  static int64_t scratch_bytes(int64_t width, int64_t d, bool few) {
    const int64_t row = static_cast<int64_t>(staged_words(width, d) * sizeof(Word) + 2 * padded<T>(d) * sizeof(Elem) +
                                             padded<T>(width) * sizeof(Acc));
    return most_rows(width, few) * row + (few ? FewScratch<T>::bytes(width > d ? width : d) : 0);
  }

  Block(int64_t width, int64_t d, void* scratch, bool few = false)
      : width(width), d(d), few(few), step(most_rows(width, few)), row(0), rows(0), next(0), few_scratch(nullptr) {
    staged = static_cast<Word*>(scratch);
    hidden = reinterpret_cast<Elem*>(staged + step * staged_words(width, d));
    grad_hidden = hidden + step * padded<T>(d);
    sums = reinterpret_cast<Acc*>(grad_hidden + step * padded<T>(d));
    if (few) few_scratch = FewScratch<T>(sums + step * padded<T>(width));
  }
  void move_to(int64_t first, int64_t end) {
    row = first;
    rows = end - first < step ? end - first : step;
    next = end - first - rows < step ? end - first - rows : step;
  }
};

// The last step of the second product may reach numbers beyond d. Their weights are zero, so they must not be NaN.
template <class T>
SFA_INLINE void clear_edge(typename Product<T>::Elem* hidden, int64_t rows, int64_t d) {
  const int64_t reach = words<T>(d) / Product<T>::kParts * Product<T>::kPerWord;
  for (int64_t r = 0; d < reach && r < rows; ++r)
    for (int64_t c = d; c < reach; ++c) hidden[r * padded<T>(d) + c] = {};
}

// hidden = relu(x w_down^T + b_down), for rows from x on; also to `copy` [rows, d] if there is one
template <class T>
__attribute__((noinline)) void to_hidden(const Block<T>& b, const T* x, const void* down, const void* bias, T* copy) {
  using V = Vec<typename Product<T>::Acc>;
  const int64_t stride = padded<T>(b.d);
  const auto ahead = [&](int64_t r, int64_t c, int count) SFA_INLINE_LAMBDA {
    if (r + count <= b.next) prefetch_share(x + (b.rows + r) * b.width, b.width, c, b.d, count);
  };
  const auto emit = [&](V v, int64_t r, int64_t c, auto count) SFA_INLINE_LAMBDA {
    const V h = v < 0 ? V{} : v;  // NaN stays NaN
    store(b.hidden + r * stride + c, h);
    if (copy != nullptr) store_count(copy + r * b.d + c, h, count);
  };
  if constexpr (kTakesFew<T>)
    if (b.few) return product_of_few<T, true>(x, b.rows, b.width, down, b.width, b.d, bias, b.few_scratch, emit);
  product<T, true>(Operand<T>(x, b.rows, b.width, b.staged), b.rows, down, b.width, b.d, bias, ahead, emit);
  clear_edge<T>(b.hidden, b.rows, b.d);
}

// Rows [rows, columns] that the forward kept, to rows of whole panels.
template <class T, class To>
SFA_INLINE void load_kept(const T* kept, int64_t rows, int64_t columns, To* to) {
  using Acc = typename Product<T>::Acc;
  for (int64_t r = 0; r < rows; ++r, kept += columns, to += padded<T>(columns))
    for_lanes<Acc>(columns,
                   [&](int64_t c, auto lanes) SFA_INLINE_LAMBDA { store(to + c, load_count(kept + c, lanes)); });
}

// out = hidden w^T (+ bias) + x, where w is packed [D] columns deep d; for w_up of the forward and w_down of the
// backward
template <class T, bool kBias>
__attribute__((noinline)) void from_hidden(const Block<T>& b, const typename Product<T>::Elem* hidden, const void* w,
                                           const void* bias, const T* x, T* out) {
  using V = Vec<typename Product<T>::Acc>;
  const auto ahead = [&](int64_t r, int64_t c, int count)
                         SFA_INLINE_LAMBDA { prefetch_tile(out + r * b.width + c, b.width, count); };
  const auto emit = [&](V v, int64_t r, int64_t c, auto count) SFA_INLINE_LAMBDA {
    const int64_t at = r * b.width + c;
    store_count(out + at, v + load_count(x + at, count), count);
  };
  if constexpr (kTakesFew<T>)
    if (b.few)
      return product_of_few<T, kBias>(hidden, b.rows, padded<T>(b.d), w, b.d, b.width, bias, b.few_scratch, emit);
  const Operand<T> a(hidden, b.rows, b.d, padded<T>(b.d), b.staged);
  product<T, kBias>(a, b.rows, w, b.d, b.width, bias, ahead, emit);
}

// sums = hidden w_up^T + b_up + x: what the norm works on, not yet rounded to T; also to `copy` [rows, D] if there is
// one
template <class T>
__attribute__((noinline)) void to_sums(const Block<T>& b, const void* up, const void* bias, const T* x, T* copy) {
  using V = Vec<typename Product<T>::Acc>;
  const auto emit = [&](V v, int64_t r, int64_t c, auto count) SFA_INLINE_LAMBDA {
    const int64_t at = r * b.width + c;
    const V sum = v + load_count(x + at, count);
    store(b.sums + r * padded<T>(b.width) + c, sum);
    if (copy != nullptr) store_count(copy + at, sum, count);
  };
  if constexpr (kTakesFew<T>)
    if (b.few)
      return product_of_few<T, true>(b.hidden, b.rows, padded<T>(b.d), up, b.d, b.width, bias, b.few_scratch, emit);
  const Operand<T> a(b.hidden, b.rows, b.d, padded<T>(b.d), b.staged);
  product<T, true>(a, b.rows, up, b.d, b.width, bias, no_prefetch, emit);
}

// grad_hidden = grad w_up where hidden is positive; also to `copy` [rows, d] if there is one
template <class T>
__attribute__((noinline)) void to_grad_hidden(const Block<T>& b, const T* grad, bool prefetch, const void* up_plain,
                                              T* copy) {
  using V = Vec<typename Product<T>::Acc>;
  const int64_t stride = padded<T>(b.d);
  const auto ahead = [&](int64_t r, int64_t c, int count) SFA_INLINE_LAMBDA {
    if (prefetch && r + count <= b.next) prefetch_share(grad + (b.rows + r) * b.width, b.width, c, b.d, count);
  };
  const Operand<T> a(grad, b.rows, b.width, b.staged);
  product<T, false>(a, b.rows, up_plain, b.width, b.d, nullptr, ahead,
                    [&](V v, int64_t r, int64_t c, auto count) SFA_INLINE_LAMBDA {
                      const V masked = load(b.hidden + r * stride + c) <= 0 ? V{} : v;
                      store(b.grad_hidden + r * stride + c, masked);
                      if (copy != nullptr) store_count(copy + r * b.d + c, masked, count);
                    });
  clear_edge<T>(b.grad_hidden, b.rows, b.d);
}

// The rows of the block in an array [rows, columns], if there is one.
template <class T>
SFA_INLINE T* rows_of(void* all, const Block<T>& b, int64_t columns) {
  return all == nullptr ? nullptr : static_cast<T*>(all) + b.row * columns;
}

// out = x + relu(x w_down^T + b_down) w_up^T + b_up
template <class T>
void forward(const AdapterForward& p, int64_t begin, int64_t end, void* scratch) {
  Block<T> b(p.width, p.hidden, scratch, p.few);
  for (b.move_to(begin, end); b.rows > 0; b.move_to(b.row + b.rows, end)) {
    const T* x = static_cast<const T*>(p.x) + b.row * p.width;
    to_hidden<T>(b, x, p.down, p.bias_down, rows_of<T>(p.activation, b, b.d));
    from_hidden<T, true>(b, b.hidden, p.up, p.bias_up, x, static_cast<T*>(p.out) + b.row * p.width);
  }
}

// out = residual + LayerNorm of that; R is the type of the residual and of out
template <class T, class R>
void forward_norm(const AdapterForward& p, int64_t begin, int64_t end, void* scratch) {
  Block<T> b(p.width, p.hidden, scratch, p.few);
  for (b.move_to(begin, end); b.rows > 0; b.move_to(b.row + b.rows, end)) {
    const T* x = static_cast<const T*>(p.x) + b.row * p.width;
    to_hidden<T>(b, x, p.down, p.bias_down, rows_of<T>(p.activation, b, b.d));
    to_sums<T>(b, p.up, p.bias_up, x, rows_of<T>(p.adapted, b, p.width));
    for (int64_t r = 0; r < b.rows; ++r)
      norm_row(b.sums + r * padded<T>(p.width), static_cast<const R*>(p.residual) + (b.row + r) * p.width, p,
               static_cast<R*>(p.out) + (b.row + r) * p.width);
  }
}

// What a block still needs once `grad`, the gradient of the adapter's result, is known.
template <class T>
SFA_INLINE void backward_block(const Block<T>& b, const AdapterBackward& p, const T* grad, bool prefetch) {
  if (p.grad_hidden == nullptr && p.grad_x == nullptr) return;
  to_grad_hidden<T>(b, grad, prefetch, p.up_plain, rows_of<T>(p.grad_hidden, b, b.d));
  if (p.grad_x == nullptr) return;
  from_hidden<T, false>(b, b.grad_hidden, p.down_plain, nullptr, grad, static_cast<T*>(p.grad_x) + b.row * p.width);
}

template <class T>
SFA_INLINE void recall_hidden(const Block<T>& b, const AdapterBackward& p, const T* x) {
  if (p.kept == nullptr) return to_hidden<T>(b, x, p.down, p.bias_down, rows_of<T>(p.activation, b, b.d));
  load_kept(static_cast<const T*>(p.kept) + b.row * b.d, b.rows, b.d, b.hidden);
  clear_edge<T>(b.hidden, b.rows, b.d);
}

template <class T>
SFA_INLINE void recall_sums(const Block<T>& b, const AdapterBackward& p, const T* x) {
  if (p.adapted == nullptr) return to_sums<T>(b, p.up, p.bias_up, x, nullptr);
  load_kept(static_cast<const T*>(p.adapted) + b.row * b.width, b.rows, b.width, b.sums);
}

// The gradient of the hidden numbers and that of x.
template <class T>
void backward(const AdapterBackward& p, int64_t begin, int64_t end, void* scratch) {
  Block<T> b(p.width, p.hidden, scratch);
  for (b.move_to(begin, end); b.rows > 0; b.move_to(b.row + b.rows, end)) {
    recall_hidden<T>(b, p, static_cast<const T*>(p.x) + b.row * p.width);
    backward_block<T>(b, p, static_cast<const T*>(p.grad_out) + b.row * p.width, true);
  }
}

// The same behind the norm: the adapter's result, kept or once more, and from it the gradient of that result.
template <class T, class R>
void backward_norm(const AdapterBackward& p, int64_t begin, int64_t end, void* scratch) {
  using Acc = typename Product<T>::Acc;
  Block<T> b(p.width, p.hidden, scratch);
  for (b.move_to(begin, end); b.rows > 0; b.move_to(b.row + b.rows, end)) {
    const T* x = static_cast<const T*>(p.x) + b.row * p.width;
    T* grad = static_cast<T*>(p.grad_sum) + b.row * p.width;
    recall_hidden<T>(b, p, x);
    recall_sums<T>(b, p, x);
    for (int64_t r = 0; r < b.rows; ++r) {
      Acc* parts = p.norm_parts == nullptr ? nullptr
                                           : static_cast<Acc*>(p.norm_parts) + (b.row + r) / kTileRows<T> * 2 * p.width;
      norm_row_backward(b.sums + r * padded<T>(p.width), static_cast<const R*>(p.grad_out) + (b.row + r) * p.width, p,
                        grad + r * p.width, parts, (b.row + r) % kTileRows<T> == 0);
    }
    backward_block<T>(b, p, grad, false);
  }
}

}  // namespace
}  // namespace sfa::cpu::SFA_ISA_NAMESPACE
