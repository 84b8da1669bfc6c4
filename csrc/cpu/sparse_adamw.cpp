// sfa::sparse_adamw_: AdamW (Loshchilov and Hutter, 2019) on selected entries of weights and on nothing else.
//
// A step is bound by memory: of ten per cent of the weights at random, four in five cache lines are touched. So indices
// are read ahead to prefetch those lines, entries are gathered into blocks that fit the first cache, and the arithmetic
// runs over whole blocks, where the compiler vectorises it.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "chunks.h"
#include "common/adamw_arguments.h"
#include "common/dispatch.h"
#include "kernels.h"
#include "memory.h"
#include "widen.h"

namespace sfa::cpu {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kChunk = 1 << 13;
constexpr int64_t kBlock = 16;   // entries that are loaded, computed and stored together
constexpr int64_t kAhead = 128;  // entries from the block in work to the one whose cache lines are asked for
constexpr int64_t kLine = 64;    // bytes

// What bias correction makes of the learning rate and of the second moment, per round: its entries are of one age.
template <typename A>
struct Corrections {
  std::vector<A> step_size;     // lr / (1 - beta1^age)
  std::vector<A> inverse_root;  // 1 / sqrt(1 - beta2^age)

  Corrections(const AdamWSettings& s, const int64_t* ages, int64_t rounds) {
    for (int64_t r = 0; r < rounds; ++r) {
      const double age = static_cast<double>(ages[r]);
      step_size.push_back(static_cast<A>(s.lr / (1 - std::pow(s.beta1, age))));
      inverse_root.push_back(static_cast<A>(1 / std::sqrt(1 - std::pow(s.beta2, age))));
    }
  }
};

// Asks for the cache lines that hold data[index[0]] ... data[index[kBlock]]. Where most lines of that stretch are
// needed they are asked for in a row, each once, which memory serves fastest. Always inlined: GCC takes a function that
// only prefetches for one without effect, and drops the call.
template <int write, typename T>
[[gnu::always_inline]] inline void prefetch(const T* data, const int64_t* index) {
  constexpr int64_t kPerLine = kLine / sizeof(T);
  const int64_t first = index[0] / kPerLine, last = index[kBlock] / kPerLine;
  if (last - first <= kBlock) {
    for (int64_t line = first; line < last; ++line) __builtin_prefetch(data + line * kPerLine, write);
  } else {
    for (int64_t i = 0; i < kBlock; ++i) __builtin_prefetch(data + index[i], write);
  }
}

// W: weights; G: gradients; A: moments and arithmetic.
template <typename W, typename G, typename A>
class Step {
 public:
  Step(const AdamWEntry& e, const AdamWSettings& s, const Corrections<A>& corrections)
      : weight_(static_cast<W*>(e.weight)),
        grad_(static_cast<const G*>(e.grad)),
        index_(e.index),
        round_(e.round),
        exp_avg_(static_cast<A*>(e.exp_avg)),
        exp_avg_sq_(static_cast<A*>(e.exp_avg_sq)),
        master_(e.master),
        k_(e.k),
        gathered_(e.gathered),
        step_size_(corrections.step_size.data()),
        inverse_root_(corrections.inverse_root.data()),
        keep_(static_cast<A>(1 - s.lr * s.weight_decay)),
        rest1_(static_cast<A>(1 - s.beta1)),
        beta2_(static_cast<A>(s.beta2)),
        rest2_(static_cast<A>(1 - s.beta2)),
        eps_(static_cast<A>(s.eps)) {}

  void run(int64_t begin, int64_t end) const {
    int64_t i = begin;
    for (; i + kBlock <= end; i += kBlock) {
      if (i + kAhead + kBlock < k_) {
        prefetch<1>(weight_, index_ + i + kAhead);
        if (!gathered_) prefetch<0>(grad_, index_ + i + kAhead);
      }
      if (of_one_round(i)) {
        update<kBlock, true>(i);
      } else {
        update<kBlock, false>(i);
      }
    }
    for (; i < end; ++i) update<1, true>(i);
  }

 private:
  // Compares four rounds at a time with the first.
  bool of_one_round(int64_t first) const {
    constexpr int64_t kWord = sizeof(uint64_t) / sizeof(int16_t);
    uint64_t words[kBlock / kWord];
    std::memcpy(words, round_ + first, sizeof(words));
    const uint64_t same = static_cast<uint16_t>(round_[first]) * 0x0001000100010001u;
    uint64_t different = 0;
    for (uint64_t word : words) different |= word ^ same;
    return different == 0;
  }

  // Entries [first, first + n), which spares looking up each entry's round where there is but one.
  template <int64_t n, bool one_round>
  void update(int64_t first) const {
    A value[n], grad[n], step_size[n], inverse_root[n];
    for (int64_t i = 0; i < n; ++i) {
      if constexpr (std::is_same_v<W, A>) {
        value[i] = weight_[index_[first + i]];
      } else {
        value[i] = master_[first + i];
      }
      const int16_t round = round_[one_round ? first : first + i];
      step_size[i] = step_size_[round];
      inverse_root[i] = inverse_root_[round];
    }
    if (gathered_) {
      for (int64_t i = 0; i < n; ++i) grad[i] = widen(grad_[first + i]);
    } else {
      for (int64_t i = 0; i < n; ++i) grad[i] = widen(grad_[index_[first + i]]);
    }
    A* __restrict m = exp_avg_ + first;
    A* __restrict v = exp_avg_sq_ + first;
    for (int64_t i = 0; i < n; ++i) {
      m[i] += rest1_ * (grad[i] - m[i]);
      v[i] = beta2_ * v[i] + rest2_ * (grad[i] * grad[i]);
      value[i] = value[i] * keep_ - step_size[i] * (m[i] / (std::sqrt(v[i]) * inverse_root[i] + eps_));
    }
    for (int64_t i = 0; i < n; ++i) {
      if constexpr (!std::is_same_v<W, A>) master_[first + i] = value[i];
      weight_[index_[first + i]] = static_cast<W>(value[i]);
    }
  }

  W* weight_;
  const G* grad_;
  const int64_t* index_;
  const int16_t* round_;
  A* exp_avg_;
  A* exp_avg_sq_;
  float* master_;
  int64_t k_;
  bool gathered_;
  const A* step_size_;
  const A* inverse_root_;
  A keep_, rest1_, beta2_, rest2_, eps_;
};

// Calls f(weight tag, grad tag, arithmetic tag).
template <typename F>
void dispatch(ScalarType weight_dtype, ScalarType grad_dtype, F&& f) {
  dispatch_floating(weight_dtype, "weights", [&](auto weight) {
    using W = typename decltype(weight)::type;
    if constexpr (std::is_same_v<W, float> || std::is_same_v<W, double>) {
      f(weight, weight, weight);
    } else if (grad_dtype == ScalarType::Float) {
      f(weight, TypeTag<float>{}, TypeTag<float>{});
    } else {
      f(weight, weight, TypeTag<float>{});
    }
  });
}

// Raises unless every entry's round is one of those with an age of at least 0.
void check_rounds(const std::vector<AdamWEntry>& all, const Chunks& chunks, const int64_t* ages, int64_t n_ages) {
  std::vector<uint8_t> selected;
  for (int64_t r = 0; r < n_ages; ++r) selected.push_back(ages[r] >= 0);
  const bool every = std::all_of(selected.begin(), selected.end(), [](uint8_t s) { return s != 0; });
  std::atomic<bool> good{true};
  for_each_chunk(chunks, [&](int64_t, const Chunk& c) {
    const int16_t* round = all[c.list].round;
    int16_t smallest = 0, largest = 0;
    for (int64_t i = c.begin; i < c.end; ++i) {
      smallest = std::min(smallest, round[i]);
      largest = std::max(largest, round[i]);
    }
    bool fine = smallest == 0 && largest < n_ages;
    if (fine && !every) fine = std::all_of(round + c.begin, round + c.end, [&](int16_t r) { return selected[r] != 0; });
    if (!fine) good = false;
  });
  STD_TORCH_CHECK(good, "rounds names a round that is not in ages or has not been selected");
}

void update(const AdamWArguments& given, const std::vector<Tensor>& weights, const Chunks& chunks,
            const AdamWSettings& settings, const int64_t* ages, int64_t n_ages) {
  const Corrections<float> single_precision(settings, ages, n_ages);
  const Corrections<double> double_precision(settings, ages, n_ages);
  for_each_chunk(chunks, [&](int64_t, const Chunk& c) {
    const ScalarType weight_dtype = weights[c.list].scalar_type(), grad_dtype = given.gradients[c.list].scalar_type();
    dispatch(weight_dtype, grad_dtype, [&](auto weight, auto grad, auto wide) {
      using A = typename decltype(wide)::type;
      const Corrections<A>* corrections;
      if constexpr (std::is_same_v<A, double>) {
        corrections = &double_precision;
      } else {
        corrections = &single_precision;
      }
      Step<typename decltype(weight)::type, typename decltype(grad)::type, A>(given.entries[c.list], settings,
                                                                              *corrections)
          .run(c.begin, c.end);
    });
  });
}

}  // namespace

void sparse_adamw_(const std::vector<Tensor>& weights,      // any shapes, contiguous
                   const std::vector<Tensor>& grads,        // of the weights' shapes, or [k_i]: gathered at indices[i]
                   const std::vector<Tensor>& indices,      // [k_i] int64, strictly increasing flat positions
                   const std::vector<Tensor>& rounds,       // [k_i] int16: which round selected the entry
                   const std::vector<Tensor>& exp_avgs,     // [k_i] float32; float64 for float64 weights
                   const std::vector<Tensor>& exp_avg_sqs,  // [k_i], as exp_avgs
                   const std::vector<Tensor>& masters,      // [k_i] float32, one for every bf16 or fp16 weight
                   const Tensor& ages,                      // [rounds] int64: steps taken; -1: not selected yet
                   double lr, double beta1, double beta2, double eps, double weight_decay) {
  for (const Tensor& t :
       AdamWArguments::joined({weights, grads, indices, rounds, exp_avgs, exp_avg_sqs, masters, {ages}}))
    STD_TORCH_CHECK(t.is_cpu(), "all tensors must be on the CPU");
  const AdamWArguments given(weights, grads, indices, rounds, exp_avgs, exp_avg_sqs, masters, ages);
  std::vector<int64_t> lengths, limits;
  for (const AdamWEntry& e : given.entries) {
    lengths.push_back(e.k);
    limits.push_back(e.numel);
  }
  const Chunks chunks(lengths, kChunk);
  int64_t* age = static_cast<int64_t*>(ages.mutable_data_ptr());
  STD_TORCH_CHECK(first_unsorted(given.positions, limits) < 0,
                  "indices must be strictly increasing positions in the weight");
  check_rounds(given.entries, chunks, age, ages.numel());

  for (int64_t r = 0; r < ages.numel(); ++r) age[r] += age[r] >= 0;
  update(given, weights, chunks, {lr, beta1, beta2, eps, weight_decay}, age, ages.numel());
}

}  // namespace sfa::cpu
