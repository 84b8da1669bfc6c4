// A step of AdamW on selected entries of one weight. See vec.h for how this file is compiled.
//
// A step is bound by memory: of ten per cent of the weights at random, four in five cache lines are touched. So
// positions are read ahead to prefetch those lines, and entries are worked on in blocks. Products must not be fused
// into sums: results have the same bits on every processor, GPUs among them.
#pragma once

#include "sparse_adamw_kernels.h"
#include "vec.h"

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

constexpr int64_t kBlock = 16;   // entries that are loaded, computed and stored together
constexpr int64_t kAhead = 128;  // entries from the block in work to the one that is asked for
constexpr int64_t kLine = 64;    // bytes

SFA_INLINE Vec<float> square_root(Vec<float> v) {
#if defined(__AVX512F__)
  return bit_cast<Vec<float>>(_mm512_sqrt_ps(bit_cast<__m512>(v)));
#elif defined(__AVX2__)
  return bit_cast<Vec<float>>(_mm256_sqrt_ps(bit_cast<__m256>(v)));
#else
  for (int i = 0; i < kLanes<float>; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}
SFA_INLINE Vec<double> square_root(Vec<double> v) {
  for (int i = 0; i < kLanes<double>; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
}

// Numbers of one block.
template <class T>
struct alignas(kLine) Numbers {
  T at[kBlock];
};

// W: weights; G: gradients; A: moments and arithmetic.
template <class W, class G, class A, class Index>
class Step {
 public:
  SFA_INLINE Step(const AdamWEntry& e, const AdamWSettings& s, const Corrections<A>& corrections)
      : weight_(static_cast<W*>(e.weight)),
        grad_(static_cast<const G*>(e.grad)),
        index_(static_cast<const Index*>(e.index)),
        round_(e.round),
        exp_avg_(static_cast<A*>(e.exp_avg)),
        exp_avg_sq_(static_cast<A*>(e.exp_avg_sq)),
        master_(e.master),
        k_(e.k),
        gathered_(e.gathered),
        corrections_(corrections),
        keep_(static_cast<A>(1 - s.lr * s.weight_decay)),
        rest1_(static_cast<A>(1 - s.beta1)),
        beta2_(static_cast<A>(s.beta2)),
        rest2_(static_cast<A>(1 - s.beta2)),
        eps_(static_cast<A>(s.eps)) {}

  SFA_INLINE void run(int64_t begin, int64_t end) const {
    int64_t i = begin;
    for (; i + kBlock <= end; i += kBlock) {
      if (i + kAhead + kBlock < k_) ask_for(i + kAhead);
      update(i, Int<kBlock>{});
    }
    if (i < end) update(i, end - i);
  }

 private:
  static constexpr bool kMaster = sizeof(W) < sizeof(A);

  template <int N>
  static SFA_INLINE constexpr int64_t number(Int<N>) {
    return N;
  }
  static SFA_INLINE int64_t number(int64_t n) { return n; }

  // Asks for what the block from `first` on needs. Positions are read here, and asked for before.
  SFA_INLINE void ask_for(int64_t first) const {
    ask_for<1>(weight_, index_ + first);
    if (gathered_)
      ask_row<0>(grad_ + first);
    else
      ask_for<0>(grad_, index_ + first);
    ask_row<0>(index_ + first + kAhead);
    ask_row<0>(round_ + first);
    ask_row<1>(exp_avg_ + first);
    ask_row<1>(exp_avg_sq_ + first);
    if constexpr (kMaster) ask_row<1>(master_ + first);
  }
  template <int write, class T>
  static SFA_INLINE void ask_row(const T* data) {
    for (int64_t i = 0; i < kBlock; i += kLine / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(data + i, write);
  }

  // Asks for the cache lines that hold data[index[0]] ... data[index[kBlock]]. Where most lines of that stretch are
  // needed they are asked for in a row, each once, which memory serves fastest. Always inlined: GCC takes a function
  // that only prefetches for one without effect, and drops the call.
  template <int write, class T>
  static SFA_INLINE void ask_for(const T* data, const Index* index) {
    constexpr int64_t kPerLine = kLine / sizeof(T);
    const int64_t first = index[0] / kPerLine, last = index[kBlock] / kPerLine;
    if (last - first <= kBlock) {
      for (int64_t line = first; line < last; ++line) __builtin_prefetch(data + line * kPerLine, write);
    } else {
      for (int64_t i = 0; i < kBlock; ++i) __builtin_prefetch(data + index[i], write);
    }
  }

  // Whether a block is of one round; compares four at a time with the first.
  static SFA_INLINE bool alike(const int16_t* round, Int<kBlock>) {
    uint64_t words[kBlock * sizeof(int16_t) / sizeof(uint64_t)];
    __builtin_memcpy(words, round, sizeof(words));
    const uint64_t same = static_cast<uint16_t>(round[0]) * 0x0001000100010001u;
    uint64_t different = 0;
    for (uint64_t word : words) different |= word ^ same;
    return different == 0;
  }
  static SFA_INLINE bool alike(const int16_t*, int64_t) { return false; }

  // What corrections are for each entry. Most blocks are of one round.
  template <class Count>
  SFA_INLINE void correct(const int16_t* round, Count count, Numbers<A>& step_size, Numbers<A>& inverse_root) const {
    const bool one = alike(round, count);
    for (int64_t i = 0; i < number(count); ++i) {
      step_size.at[i] = corrections_.step_size[round[one ? 0 : i]];
      inverse_root.at[i] = corrections_.inverse_root[round[one ? 0 : i]];
    }
  }

  template <class T, class Count>
  SFA_INLINE void gather(const T* data, int64_t first, Count count, Numbers<T>& to) const {
    for (int64_t i = 0; i < number(count); ++i) to.at[i] = data[index_[first + i]];
  }

  template <class Count>
  SFA_INLINE void update(int64_t first, Count count) const {
    Numbers<A> step_size{}, inverse_root{};
    Numbers<W> weight{};
    Numbers<G> grad{};
    correct(round_ + first, count, step_size, inverse_root);
    if constexpr (!kMaster) gather(weight_, first, count, weight);
    if (!gathered_) gather(grad_, first, count, grad);
    for_lanes<A>(number(count), [&](int64_t c, auto lanes) SFA_INLINE_LAMBDA {
      const int64_t at = first + c;
      const Vec<A> g = gathered_ ? load_count(grad_ + at, lanes) : load(grad.at + c);
      Vec<A> m = load_count(exp_avg_ + at, lanes), v = load_count(exp_avg_sq_ + at, lanes), value;
      if constexpr (kMaster)
        value = load_count(master_ + at, lanes);
      else
        value = load(weight.at + c);
      m += rest1_ * (g - m);
      v = beta2_ * v + rest2_ * (g * g);
      const Vec<A> change = m / (square_root(v) * load(inverse_root.at + c) + eps_);
      value = value * keep_ - load(step_size.at + c) * change;
      store_count(exp_avg_ + at, m, lanes);
      store_count(exp_avg_sq_ + at, v, lanes);
      if constexpr (kMaster) store_count(master_ + at, value, lanes);
      store(weight.at + c, value);
    });
    for (int64_t i = 0; i < number(count); ++i) weight_[index_[first + i]] = weight.at[i];
  }

  W* weight_;
  const G* grad_;
  const Index* index_;
  const int16_t* round_;
  A* exp_avg_;
  A* exp_avg_sq_;
  float* master_;
  int64_t k_;
  bool gathered_;
  Corrections<A> corrections_;
  A keep_, rest1_, beta2_, rest2_, eps_;
};

template <class W, class G, class A, class Index>
void step(const AdamWEntry& entry, const AdamWSettings& settings, const Corrections<A>& corrections, int64_t begin,
          int64_t end) {
  Step<W, G, A, Index>(entry, settings, corrections).run(begin, end);
}

}  // namespace

const AdamWKernels kAdamW = {
    .single =
        {
            {step<float, float, float, int64_t>, step<float, float, float, int32_t>},
            {step<Bf16, Bf16, float, int64_t>, step<Bf16, Bf16, float, int32_t>},
            {step<Bf16, float, float, int64_t>, step<Bf16, float, float, int32_t>},
            {step<Fp16, Fp16, float, int64_t>, step<Fp16, Fp16, float, int32_t>},
            {step<Fp16, float, float, int64_t>, step<Fp16, float, float, int32_t>},
        },
    .wide = {step<double, double, double, int64_t>, step<double, double, double, int32_t>},
};

}  // namespace sfa::cpu::SFA_ISA_NAMESPACE
