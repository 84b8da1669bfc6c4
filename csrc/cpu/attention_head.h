// One head of one window: softmax(scale cos(q, k) + bias + mask) v, and its backward. See vec.h for how this file is
// compiled. Windows are read where they lie in the map: no roll, no partition, no mask in memory.
#pragma once

#include "attention_exp.h"
#include "attention_kernels.h"
#include "attention_product.h"

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

template <class T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};

constexpr int64_t kQueries = 2 * kBlockRows;  // rows of scores that are worked on at a time

// Cuts one piece of memory into buffers aligned to whole vectors; without memory it counts bytes.
struct Cutter {
  char* at;
  int64_t used = 0;

  template <class N>
  SFA_INLINE N* take(int64_t count) {
    N* taken = reinterpret_cast<N*>(at + used);
    used += (count * static_cast<int64_t>(sizeof(N)) + 63) / 64 * 64;
    return taken;
  }
};

template <class T>
struct Head {
  using S = typename SumOf<T>::type;
  static constexpr int kL = kLanes<S>;
  const Attention& args;
  int64_t tokens, keys, depth;  // N, N and the head's depth in whole vectors
  int64_t* place;               // [tokens] of each token in the map, -1 for one that only fills up
  S* region;                    // [keys]; tokens of different regions do not attend to each other
  bool masked;
  Rows<S> q, k, v;         // [keys, depth], q and k of length 1
  S *q_factor, *k_factor;  // [keys] 1 / length
  Rows<S> k_t;             // [depth, keys]
  Rows<S> scores;          // [kQueries, keys]
  Rows<S> mixed;           // [kQueries, depth]
  // for the backward
  Rows<S> v_t, cosines, grad_scores, grad_q, grad_k, grad_v, q_scaled;

  SFA_INLINE Rows<S> rows(Cutter& cut, int64_t count, int64_t row) { return {cut.take<S>(count * row), row}; }

  SFA_INLINE Head(const Attention& a, Cutter& cut, bool backward) : args(a), masked(false) {
    tokens = a.window_height * a.window_width;
    keys = whole_vectors<S>(tokens);
    depth = whole_vectors<S>(a.depth);
    place = cut.take<int64_t>(tokens);
    region = cut.take<S>(keys);
    q = rows(cut, keys, depth);
    k = rows(cut, keys, depth);
    v = rows(cut, keys, depth);
    q_factor = cut.take<S>(keys);
    k_factor = cut.take<S>(keys);
    k_t = rows(cut, depth, keys);
    scores = rows(cut, kQueries, keys);
    mixed = rows(cut, kQueries, depth);
    if (!backward) return;
    v_t = rows(cut, depth, keys);
    cosines = rows(cut, kQueries, keys);
    grad_scores = rows(cut, kQueries, keys);
    grad_q = rows(cut, kQueries, depth);
    grad_k = rows(cut, keys, depth);
    grad_v = rows(cut, keys, depth);
    q_scaled = rows(cut, keys, depth);
  }

  // Region 0 is what never wrapped around, as timm numbers them: of the last window, what comes before the shift.
  static SFA_INLINE int64_t part(int64_t position, int64_t padded, int64_t window, int64_t shift) {
    if (shift == 0) return 0;
    return position < padded - window ? 0 : (position < padded - shift ? 1 : 2);
  }

  static SFA_INLINE int64_t wrapped(int64_t position, int64_t size) {
    while (position >= size) position -= size;
    return position;
  }

  SFA_INLINE void locate(int64_t window) {
    const int64_t x = window % args.windows_wide, y = window / args.windows_wide % args.windows_high;
    const int64_t image = window / args.windows_wide / args.windows_high;
    const int64_t padded_h = args.windows_high * args.window_height, padded_w = args.windows_wide * args.window_width;
    int64_t t = 0;
    for (int64_t i = y * args.window_height; i < (y + 1) * args.window_height; ++i) {
      const int64_t high = 3 * part(i, padded_h, args.window_height, args.shift_height);
      const int64_t row = wrapped(i + args.shift_height, args.height);
      for (int64_t j = x * args.window_width; j < (x + 1) * args.window_width; ++j, ++t) {
        const int64_t column = wrapped(j + args.shift_width, args.width);
        const bool inside = i < args.height && j < args.width;
        place[t] = inside ? (image * args.height + row) * args.width + column : -1;
        region[t] = static_cast<S>(high + part(j, padded_w, args.window_width, args.shift_width));
        masked = masked || region[t] != region[0];
      }
    }
    for (int64_t t = tokens; t < keys; ++t) region[t] = 0;
  }

  template <class From>
  SFA_INLINE void widen_row(const From* from, S* to) {
    for_lanes<S>(args.depth,
                 [&](int64_t c, auto lanes) SFA_INLINE_LAMBDA { store(to + c, load_count(from + c, lanes)); });
  }

  // Part `which` (q, k, v are 0, 1, 2) of every token, in rows; those behind the tokens are zeros.
  SFA_INLINE void fetch(Rows<S> to, int64_t which, int64_t head) {
    const int64_t width = args.heads * args.depth, offset = which * width + head * args.depth;
    for (int64_t t = 0; t < tokens; ++t) {
      if (place[t] >= 0)
        widen_row(static_cast<const T*>(args.qkv) + place[t] * 3 * width + offset, to.at + t * to.row);
      else
        widen_row(static_cast<const S*>(args.pad) + offset, to.at + t * to.row);
    }
    clear(to, tokens, keys);
  }

  SFA_INLINE void clear(Rows<S> to, int64_t first, int64_t last) {
    for (int64_t i = first * to.row; i < last * to.row; i += kL) store(to.at + i, Vec<S>{});
  }

  static SFA_INLINE S dot(const S* a, const S* b, int64_t n) {
    Vec<S> sum{};
    for (int64_t c = 0; c < n; c += kL) sum += load(a + c) * load(b + c);
    return sum_of_lanes<S>(sum);
  }

  static SFA_INLINE void scale_row(const S* from, S factor, S* to, int64_t n) {
    const Vec<S> f = broadcast(factor);
    for (int64_t c = 0; c < n; c += kL) store(to + c, load(from + c) * f);
  }

  // Makes rows as long as `length`, as F.normalize does: a vector shorter than 1e-12 is divided by that.
  SFA_INLINE void normalise(Rows<S> vectors, S* factor, S length) {
    for (int64_t t = 0; t < tokens; ++t) {
      S* row = vectors.at + t * vectors.row;
      const S square = dot(row, row, depth), norm = root(square);
      factor[t] = 1 / (norm < S(1e-12) ? S(1e-12) : norm);
      scale_row(row, factor[t] * length, row, depth);
    }
  }
  static SFA_INLINE float root(float x) { return __builtin_sqrtf(x); }
  static SFA_INLINE double root(double x) { return __builtin_sqrt(x); }

  static SFA_INLINE Left<S> left(Rows<S> m, int64_t first = 0) { return {m.at + first * m.row, m.row, 1}; }
  static SFA_INLINE Left<S> left_transposed(Rows<S> m) { return {m.at, 1, m.row}; }
  static SFA_INLINE Rows<const S> right(Rows<S> m, int64_t first = 0) { return {m.at + first * m.row, m.row}; }

  SFA_INLINE void load_keys(int64_t head) {
    fetch(k, 1, head);
    normalise(k, k_factor, 1);
    transpose<S>(right(k), k_t, keys, depth);
    fetch(v, 2, head);
  }

  // scores = exp(scores + bias + mask - their maximum), in place, zeros behind the keys; returns 1 / their sum.
  SFA_INLINE S exponentials(S* row, int64_t query, int64_t head) {
    const S* bias = static_cast<const S*>(args.bias) + (head * tokens + query) * tokens;
    const Vec<S> own = broadcast(masked ? region[query] : S(0)), hidden = broadcast(S(-100)), none{};
    const int64_t whole = tokens / kL * kL;
    Vec<S> largest = broadcast(Exponent<S>::kLowest * S(1e30));
    const auto logits = [&](int64_t c, Vec<S> added) SFA_INLINE_LAMBDA {
      Vec<S> x = load(row + c) + added;
      if (masked) x += load(region + c) != own ? hidden : none;
      return x;
    };
    for (int64_t c = 0; c < whole; c += kL) {
      const Vec<S> x = logits(c, load(bias + c));
      store(row + c, x);
      largest = x > largest ? x : largest;
    }
    if (whole < tokens) {
      // Lanes behind the last key take part as copies of the first one, and are cleared at the end.
      Vec<S> x = logits(whole, load_first(bias + whole, tokens - whole));
      store(row + whole, x);
      for (int64_t c = tokens; c < keys; ++c) row[c] = row[whole];
      x = load(row + whole);
      largest = x > largest ? x : largest;
    }
    const S top = largest_lane<S>(largest);
    Vec<S> sum{};
    for (int64_t c = 0; c < keys; c += kL) {
      Vec<S> e = exp_of_negative<S>(load(row + c) - top);
      if (c == whole) {
        store(row + c, e);
        for (int64_t i = tokens; i < keys; ++i) row[i] = 0;
        e = load(row + c);
      }
      store(row + c, e);
      sum += e;
    }
    return 1 / sum_of_lanes<S>(sum);
  }
};

template <class T>
int64_t scratch_bytes(const Attention& args, bool backward) {
  Cutter cut{nullptr};
  Head<T> head(args, cut, backward);
  return cut.used;
}

template <class T>
void forward(const Attention& args, int64_t window, int64_t head, void* scratch) {
  using S = typename Head<T>::S;
  Cutter cut{static_cast<char*>(scratch)};
  Head<T> h(args, cut, false);
  h.locate(window);
  h.load_keys(head);
  h.fetch(h.q, 0, head);
  h.normalise(h.q, h.q_factor, static_cast<const S*>(args.scale)[head]);
  for (int64_t first = 0; first < h.tokens; first += kQueries) {
    const int64_t count = h.tokens - first < kQueries ? h.tokens - first : kQueries;
    multiply<false, S>(h.left(h.q, first), h.right(h.k_t), h.scores, count, h.keys, h.depth);
    S factor[kQueries];
    for (int64_t i = 0; i < count; ++i) factor[i] = h.exponentials(h.scores.at + i * h.scores.row, first + i, head);
    multiply<false, S>(h.left(h.scores), h.right(h.v), h.mixed, count, h.depth, h.tokens);
    for (int64_t i = 0; i < count; ++i) {
      if (h.place[first + i] < 0) continue;
      T* out = static_cast<T*>(args.out) + (h.place[first + i] * args.heads + head) * args.depth;
      const S* row = h.mixed.at + i * h.mixed.row;
      const Vec<S> f = broadcast(factor[i]);
      for_lanes<S>(args.depth,
                   [&](int64_t c, auto lanes) SFA_INLINE_LAMBDA { store_count(out + c, load(row + c) * f, lanes); });
    }
  }
}

// Adds or writes the gradient of part `which` of the tokens.
template <class T>
SFA_INLINE void give(const Head<T>& h, const typename Head<T>::S* row, int64_t token, int64_t which, int64_t head) {
  using S = typename Head<T>::S;
  const Attention& args = h.args;
  const int64_t offset = (which * args.heads + head) * args.depth;
  if (h.place[token] >= 0 && args.grad_qkv != nullptr) {
    T* to = static_cast<T*>(args.grad_qkv) + h.place[token] * 3 * args.heads * args.depth + offset;
    for_lanes<S>(args.depth,
                 [&](int64_t c, auto lanes) SFA_INLINE_LAMBDA { store_count(to + c, load(row + c), lanes); });
  } else if (h.place[token] < 0 && args.grad_pad != nullptr) {
    S* to = static_cast<S*>(args.grad_pad) + offset;
    for (int64_t c = 0; c < args.depth; ++c) to[c] += row[c];
  }
}

// From the gradient of a unit vector to that of the vector it was made of; one shorter than 1e-12 was only scaled.
template <class T>
SFA_INLINE void through_norm(const Head<T>& h, typename Head<T>::S* grad, const typename Head<T>::S* unit,
                             typename Head<T>::S factor) {
  using S = typename Head<T>::S;
  const Vec<S> along = broadcast(factor < S(1e12) ? h.dot(grad, unit, h.depth) : S(0)), f = broadcast(factor);
  for (int64_t c = 0; c < h.depth; c += h.kL) store(grad + c, (load(grad + c) - along * load(unit + c)) * f);
}

// From probabilities to the gradient of the logits, row by row; adds those of bias and scale.
template <class T>
SFA_INLINE void through_softmax(const Head<T>& h, int64_t i, int64_t query, int64_t head) {
  using S = typename Head<T>::S;
  const S* p = h.scores.at + i * h.scores.row;
  S* grad = h.grad_scores.at + i * h.grad_scores.row;
  const Vec<S> mean = broadcast(h.dot(p, grad, h.keys));
  for (int64_t c = 0; c < h.keys; c += h.kL) store(grad + c, load(p + c) * (load(grad + c) - mean));
  if (h.args.grad_bias != nullptr) {
    S* bias = static_cast<S*>(h.args.grad_bias) + (head * h.tokens + query) * h.tokens;
    for (int64_t c = 0; c < h.tokens; ++c) bias[c] += grad[c];
  }
  if (h.args.grad_scale != nullptr)
    static_cast<S*>(h.args.grad_scale)[head] += h.dot(grad, h.cosines.at + i * h.cosines.row, h.keys);
}

template <class T>
void backward(const Attention& args, int64_t window, int64_t head, void* scratch) {
  using S = typename Head<T>::S;
  Cutter cut{static_cast<char*>(scratch)};
  Head<T> h(args, cut, true);
  const S scale = static_cast<const S*>(args.scale)[head];
  h.locate(window);
  h.load_keys(head);
  transpose<S>(h.right(h.v), h.v_t, h.keys, h.depth);
  h.fetch(h.q, 0, head);
  h.normalise(h.q, h.q_factor, 1);
  for (int64_t t = 0; t < h.tokens; ++t)
    h.scale_row(h.q.at + t * h.q.row, scale, h.q_scaled.at + t * h.q_scaled.row, h.depth);
  h.clear(h.grad_k, 0, h.keys);
  h.clear(h.grad_v, 0, h.keys);
  for (int64_t first = 0; first < h.tokens; first += kQueries) {
    const int64_t count = h.tokens - first < kQueries ? h.tokens - first : kQueries;
    multiply<false, S>(h.left(h.q, first), h.right(h.k_t), h.cosines, count, h.keys, h.depth);
    for (int64_t i = 0; i < count; ++i) {
      S* row = h.scores.at + i * h.scores.row;
      h.scale_row(h.cosines.at + i * h.cosines.row, scale, row, h.keys);
      h.scale_row(row, h.exponentials(row, first + i, head), row, h.keys);
      S* out = h.mixed.at + i * h.mixed.row;
      const int64_t place = h.place[first + i];
      if (place >= 0)
        h.widen_row(static_cast<const T*>(args.grad_out) + (place * args.heads + head) * args.depth, out);
      else
        h.clear({out, h.depth}, 0, 1);
    }
    multiply<true, S>(h.left_transposed(h.scores), h.right(h.mixed), h.grad_v, h.tokens, h.depth, count);
    multiply<false, S>(h.left(h.mixed), h.right(h.v_t), h.grad_scores, count, h.keys, h.depth);
    for (int64_t i = 0; i < count; ++i) through_softmax(h, i, first + i, head);
    multiply<true, S>(h.left_transposed(h.grad_scores), h.right(h.q_scaled, first), h.grad_k, h.tokens, h.depth, count);
    multiply<false, S>(h.left(h.grad_scores), h.right(h.k), h.grad_q, count, h.depth, h.tokens);
    for (int64_t i = 0; i < count; ++i) {
      S* row = h.grad_q.at + i * h.grad_q.row;
      h.scale_row(row, scale, row, h.depth);
      through_norm(h, row, h.q.at + (first + i) * h.q.row, h.q_factor[first + i]);
      give(h, row, first + i, 0, head);
    }
  }
  for (int64_t t = 0; t < h.tokens; ++t) {
    S* row = h.grad_k.at + t * h.grad_k.row;
    through_norm(h, row, h.k.at + t * h.k.row, h.k_factor[t]);
    give(h, row, t, 1, head);
    give(h, h.grad_v.at + t * h.grad_v.row, t, 2, head);
  }
}

template <class T>
constexpr AttentionKernels make_attention() {
  return {[](const Attention& args) { return scratch_bytes<T>(args, false); },
          [](const Attention& args) { return scratch_bytes<T>(args, true); }, forward<T>, backward<T>};
}

}  // namespace

const AttentionKernels kAttention[4] = {make_attention<float>(), make_attention<double>(), make_attention<Bf16>(),
                                        make_attention<Fp16>()};

}  // namespace sfa::cpu::SFA_ISA_NAMESPACE
