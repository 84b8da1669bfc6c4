// sfa::sparse_adamw_: AdamW (Loshchilov and Hutter, 2019) on selected entries of weights and on nothing else.
//
// A step is bound by memory: of ten per cent of the weights at random, four in five cache lines are touched. So indices
// are read ahead to prefetch those lines, entries are gathered into blocks that fit the first cache, and the arithmetic
// runs over whole blocks, where the compiler vectorises it.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
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
constexpr int64_t kBlock = 256;
constexpr int64_t kAhead = 256;  // entries between the one in work and the one whose line is asked for

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

// W: weights; G: gradients; A: moments and arithmetic.
template <typename W, typename G, typename A>
class Step {
 public:
  Step(const Entries& e, const Settings& s, const Corrections<A>& corrections)
      : e_(e), s_(s), corrections_(corrections) {}

  void run(int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i += kBlock) {
      const int64_t n = std::min(kBlock, end - i);
      prefetch(i + kAhead, std::min(i + kAhead + kBlock, e_.k));
      gather(i, n);
      update(static_cast<A*>(e_.exp_avg) + i, static_cast<A*>(e_.exp_avg_sq) + i, n);
      scatter(i, n);
    }
  }

 private:
  void prefetch(int64_t begin, int64_t end) const {
    for (int64_t i = begin; i < end; ++i) {
      __builtin_prefetch(static_cast<const W*>(e_.weight) + e_.index[i], 1);
      if (!e_.gathered) __builtin_prefetch(static_cast<const G*>(e_.grad) + e_.index[i], 0);
    }
  }

  void gather(int64_t first, int64_t n) {
    const int64_t* index = e_.index + first;
    const int16_t* round = e_.round + first;
    const W* weight = static_cast<const W*>(e_.weight);
    const G* grad = static_cast<const G*>(e_.grad);
    for (int64_t i = 0; i < n; ++i) {
      if constexpr (std::is_same_v<W, A>) {
        weight_[i] = weight[index[i]];
      } else {
        weight_[i] = e_.master[first + i];
      }
      step_size_[i] = corrections_.step_size[round[i]];
      inverse_root_[i] = corrections_.inverse_root[round[i]];
    }
    for (int64_t i = 0; i < n; ++i) grad_[i] = widen(e_.gathered ? grad[first + i] : grad[index[i]]);
  }

  void update(A* exp_avg, A* exp_avg_sq, int64_t n) {
    const A shrink = static_cast<A>(1 - s_.lr * s_.weight_decay);
    const A beta2 = static_cast<A>(s_.beta2), eps = static_cast<A>(s_.eps);
    const A rest1 = static_cast<A>(1 - s_.beta1), rest2 = static_cast<A>(1 - s_.beta2);
    for (int64_t i = 0; i < n; ++i) {
      const A g = grad_[i];
      const A m = exp_avg[i] + rest1 * (g - exp_avg[i]);
      const A v = beta2 * exp_avg_sq[i] + rest2 * (g * g);
      exp_avg[i] = m;
      exp_avg_sq[i] = v;
      weight_[i] = weight_[i] * shrink - step_size_[i] * (m / (std::sqrt(v) * inverse_root_[i] + eps));
    }
  }

  void scatter(int64_t first, int64_t n) {
    const int64_t* index = e_.index + first;
    W* weight = static_cast<W*>(e_.weight);
    if constexpr (!std::is_same_v<W, A>) std::copy(weight_, weight_ + n, e_.master + first);
    for (int64_t i = 0; i < n; ++i) weight[index[i]] = static_cast<W>(weight_[i]);
  }

  const Entries& e_;
  const Settings& s_;
  const Corrections<A>& corrections_;
  A weight_[kBlock], grad_[kBlock], step_size_[kBlock], inverse_root_[kBlock];
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

// Raises unless every entry's round is one of those with an age of at least 0.
void check_rounds(const std::vector<Entries>& all, const std::vector<int64_t>& lengths,
                  const std::vector<int64_t>& ages) {
  std::vector<uint8_t> selected;
  for (int64_t age : ages) selected.push_back(age >= 0);
  const bool every = std::all_of(selected.begin(), selected.end(), [](uint8_t s) { return s != 0; });
  std::atomic<bool> good{true};
  for_each_chunk(Chunks(lengths, kChunk), [&](int64_t, const Chunk& c) {
    const int16_t* round = all[c.list].round;
    uint16_t largest = 0;  // a negative round becomes a large one
    for (int64_t i = c.begin; i < c.end; ++i) largest = std::max(largest, static_cast<uint16_t>(round[i]));
    bool fine = largest < ages.size();
    if (fine && !every) fine = std::all_of(round + c.begin, round + c.end, [&](int16_t r) { return selected[r] != 0; });
    if (!fine) good = false;
  });
  STD_TORCH_CHECK(good, "rounds names a round that is not in ages or has not been selected");
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
  STD_TORCH_CHECK(
      grads.size() == n && indices.size() == n && rounds.size() == n && exp_avgs.size() == n && exp_avg_sqs.size() == n,
      "grads, indices, rounds, exp_avgs and exp_avg_sqs must be as many as weights");
  const auto halves = std::count_if(weights.begin(), weights.end(), [](auto& w) { return is_half(w.scalar_type()); });
  STD_TORCH_CHECK(static_cast<int64_t>(masters.size()) == halves, "masters must hold one tensor per half weight");
  check_tensor(ages, "ages", {ages.numel()}, ScalarType::Long);

  std::vector<Tensor> written = weights, read = contiguous(indices);
  const std::vector<Tensor> gradients = contiguous(grads), numbers = contiguous(rounds);
  for (const auto* list : {&exp_avgs, &exp_avg_sqs, &masters}) append(written, *list);
  written.push_back(ages);
  for (const Tensor& t : written) STD_TORCH_CHECK(t.is_contiguous(), "tensors that are updated must be contiguous");

  std::vector<Entries> all;
  std::vector<int64_t> lengths, limits;
  auto master = masters.begin();
  for (size_t i = 0; i < n; ++i) {
    const Tensor* own = is_half(weights[i].scalar_type()) ? &*master++ : nullptr;
    all.push_back(entries_of(weights[i], gradients[i], read[i], numbers[i], exp_avgs[i], exp_avg_sqs[i], own));
    lengths.push_back(all.back().k);
    limits.push_back(weights[i].numel());
  }
  STD_TORCH_CHECK(first_unsorted(read, limits) < 0,
                  "indices must be strictly increasing flat positions in their weight");
  int64_t* age = static_cast<int64_t*>(ages.mutable_data_ptr());
  check_rounds(all, lengths, {age, age + ages.numel()});
  append(read, gradients);
  append(read, numbers);
  STD_TORCH_CHECK(!overlap(written, read), "a tensor that is updated shares memory with another argument");

  for (int64_t r = 0; r < ages.numel(); ++r) age[r] += age[r] >= 0;
  const Settings settings{lr, beta1, beta2, eps, weight_decay};
  const Corrections<float> single(settings, age, ages.numel());
  const Corrections<double> twice(settings, age, ages.numel());
  for_each_chunk(Chunks(lengths, kChunk), [&](int64_t, const Chunk& c) {
    dispatch(all[c.list], [&](auto weight, auto grad, auto wide) {
      using A = typename decltype(wide)::type;
      const Corrections<A>* corrections;
      if constexpr (std::is_same_v<A, double>) {
        corrections = &twice;
      } else {
        corrections = &single;
      }
      Step<typename decltype(weight)::type, typename decltype(grad)::type, A>(all[c.list], settings, *corrections)
          .run(c.begin, c.end);
    });
  });
}

}  // namespace sfa::cpu
