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
#include "common/check.h"
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

struct Settings {
  double lr, beta1, beta2, eps, weight_decay;
};

// What bias correction makes of the learning rate and of the second moment, per round: its entries are of one age.
template <typename A>
struct Corrections {
  std::vector<A> step_size;     // lr / (1 - beta1^age)
  std::vector<A> inverse_root;  // 1 / sqrt(1 - beta2^age)

  Corrections(const Settings& s, const int64_t* ages, int64_t rounds) {
    for (int64_t r = 0; r < rounds; ++r) {
      const double age = static_cast<double>(ages[r]);
      step_size.push_back(static_cast<A>(s.lr / (1 - std::pow(s.beta1, age))));
      inverse_root.push_back(static_cast<A>(1 / std::sqrt(1 - std::pow(s.beta2, age))));
    }
  }
};

// One weight tensor with its k selected entries.
struct Entries {
  void* weight;
  const void* grad;
  const int64_t* index;  // [k]
  const int16_t* round;  // [k]
  void* exp_avg;         // [k]
  void* exp_avg_sq;      // [k]
  float* master;         // [k], null for float32 and float64 weights
  int64_t k;
  bool gathered;  // grad is [k], not of the weight's shape
  ScalarType weight_dtype, grad_dtype;
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
  Step(const Entries& e, const Settings& s, const Corrections<A>& corrections)
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

bool is_half(ScalarType dtype) { return dtype == ScalarType::BFloat16 || dtype == ScalarType::Half; }

// Calls f(weight tag, grad tag, arithmetic tag) for the dtypes of e.
template <typename F>
void dispatch(const Entries& e, F&& f) {
  dispatch_floating(e.weight_dtype, "weights", [&](auto weight) {
    using W = typename decltype(weight)::type;
    if constexpr (std::is_same_v<W, float> || std::is_same_v<W, double>) {
      f(weight, weight, weight);
    } else if (e.grad_dtype == ScalarType::Float) {
      f(weight, TypeTag<float>{}, TypeTag<float>{});
    } else {
      f(weight, weight, TypeTag<float>{});
    }
  });
}

Entries entries_of(const Tensor& weight, const Tensor& grad, const Tensor& index, const Tensor& round,
                   const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor* master) {
  const int64_t k = index.numel();
  const ScalarType wide = weight.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(weight.is_cpu() && grad.is_cpu(), "weights and grads must be on the CPU");
  STD_TORCH_CHECK(grad.scalar_type() == weight.scalar_type() ||
                      (is_half(weight.scalar_type()) && grad.scalar_type() == ScalarType::Float),
                  "grads must have the dtype of the weights");
  const bool gathered = grad.dim() == 1 && grad.numel() == k;
  STD_TORCH_CHECK(gathered || grad.numel() == weight.numel(), "grads must have a weight's shape or be gathered");
  check_tensor(index, "indices", {k}, ScalarType::Long);
  check_tensor(round, "rounds", {k}, ScalarType::Short);
  check_tensor(exp_avg, "exp_avgs", {k}, wide);
  check_tensor(exp_avg_sq, "exp_avg_sqs", {k}, wide);
  if (master != nullptr) check_tensor(*master, "masters", {k}, ScalarType::Float);
  return {weight.mutable_data_ptr(),
          grad.const_data_ptr(),
          static_cast<const int64_t*>(index.const_data_ptr()),
          static_cast<const int16_t*>(round.const_data_ptr()),
          exp_avg.mutable_data_ptr(),
          exp_avg_sq.mutable_data_ptr(),
          master == nullptr ? nullptr : static_cast<float*>(master->mutable_data_ptr()),
          k,
          gathered,
          weight.scalar_type(),
          grad.scalar_type()};
}

void append(std::vector<Tensor>& to, const std::vector<Tensor>& more) { to.insert(to.end(), more.begin(), more.end()); }

// Raises unless every entry's round is one of those with an age of at least 0.
void check_rounds(const std::vector<Entries>& all, const Chunks& chunks, const int64_t* ages, int64_t n_ages) {
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

void update(const std::vector<Entries>& all, const Chunks& chunks, const Settings& settings, const int64_t* ages,
            int64_t n_ages) {
  const Corrections<float> single_precision(settings, ages, n_ages);
  const Corrections<double> double_precision(settings, ages, n_ages);
  for_each_chunk(chunks, [&](int64_t, const Chunk& c) {
    dispatch(all[c.list], [&](auto weight, auto grad, auto wide) {
      using A = typename decltype(wide)::type;
      const Corrections<A>* corrections;
      if constexpr (std::is_same_v<A, double>) {
        corrections = &double_precision;
      } else {
        corrections = &single_precision;
      }
      Step<typename decltype(weight)::type, typename decltype(grad)::type, A>(all[c.list], settings, *corrections)
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
  const size_t n = weights.size();
  const auto halves = std::count_if(weights.begin(), weights.end(), [](auto& w) { return is_half(w.scalar_type()); });
  STD_TORCH_CHECK(
      grads.size() == n && indices.size() == n && rounds.size() == n && exp_avgs.size() == n && exp_avg_sqs.size() == n,
      "grads, indices, rounds, exp_avgs and exp_avg_sqs must be as many as weights");
  STD_TORCH_CHECK(static_cast<int64_t>(masters.size()) == halves, "masters must hold one tensor per half weight");
  check_tensor(ages, "ages", {ages.numel()}, ScalarType::Long);

  std::vector<Tensor> written = weights;
  for (const auto* list : {&exp_avgs, &exp_avg_sqs, &masters}) append(written, *list);
  written.push_back(ages);
  for (const Tensor& t : written) STD_TORCH_CHECK(t.is_contiguous(), "tensors that are updated must be contiguous");
  const std::vector<Tensor> positions = contiguous(indices), gradients = contiguous(grads),
                            numbers = contiguous(rounds);
  std::vector<Tensor> read = positions;
  append(read, gradients);
  append(read, numbers);

  std::vector<Entries> all;
  std::vector<int64_t> lengths, limits;
  auto master = masters.begin();
  for (size_t i = 0; i < n; ++i) {
    const Tensor* own = is_half(weights[i].scalar_type()) ? &*master++ : nullptr;
    all.push_back(entries_of(weights[i], gradients[i], positions[i], numbers[i], exp_avgs[i], exp_avg_sqs[i], own));
    lengths.push_back(all.back().k);
    limits.push_back(weights[i].numel());
  }
  const Chunks chunks(lengths, kChunk);
  int64_t* age = static_cast<int64_t*>(ages.mutable_data_ptr());
  STD_TORCH_CHECK(first_unsorted(positions, limits) < 0, "indices must be strictly increasing positions in the weight");
  STD_TORCH_CHECK(!overlap(written, read), "a tensor that is updated shares memory with another argument");
  check_rounds(all, chunks, age, ages.numel());

  for (int64_t r = 0; r < ages.numel(); ++r) age[r] += age[r] >= 0;
  update(all, chunks, {lr, beta1, beta2, eps, weight_decay}, age, ages.numel());
}

}  // namespace sfa::cpu
