// The kernels of accumulate_scores_, sparse_adamw_ and swap_values_ against plain loops in the same arithmetic.
#include <algorithm>
#include <memory>
#include <string>
#include <type_traits>

#include "check.h"
#include "cuda/scores.cuh"
#include "cuda/sparse_adamw.cuh"
#include "cuda/values.cuh"

using namespace sfa;
using namespace sfa::cuda;

namespace {

std::mt19937 bits(5);

template <class T>
T draw() {
  const float v = std::normal_distribution<float>()(bits);
  if constexpr (std::is_same_v<T, double>)
    return v;
  else
    return from_float<T>(v);
}

template <class T>
double number(T v) {
  if constexpr (std::is_same_v<T, double>)
    return v;
  else
    return to_float(v);
}

template <class T>
using Buffers = std::vector<std::unique_ptr<check::Buffer<T>>>;

template <class T>
Buffers<T> drawn(const std::vector<int64_t>& sizes, int64_t misaligned = 0) {
  Buffers<T> out;
  for (int64_t size : sizes) {
    out.push_back(std::make_unique<check::Buffer<T>>(size, misaligned));
    for (int64_t i = 0; i < size; ++i) (*out.back())[i] = draw<T>();
  }
  return out;
}

template <class T>
void expect_intact(const Buffers<T>& buffers, const std::string& name) {
  for (auto& b : buffers) b->expect_intact(name);
}

// Lengths on both sides of what a thread and a block take.
const std::vector<int64_t> kSizes = {1, 0, 3, kScoresPerBlock, kScoresPerBlock + 5, 1030};

template <class S, class G>
void scores(const std::vector<int64_t>& sizes, int64_t misaligned, const std::string& name) {
  for (const Criterion criterion : {Criterion::kGradient, Criterion::kAbsolute, Criterion::kSquared}) {
    const auto sums = drawn<S>(sizes, misaligned);
    const auto grads = drawn<G>(sizes);
    std::vector<ScoreEntry> lists;
    std::vector<std::vector<S>> want;
    for (size_t t = 0; t < sizes.size(); ++t) {
      lists.push_back({sums[t]->data(), grads[t]->data(), sizes[t]});
      want.push_back(sums[t]->values());
      for (int64_t i = 0; i < sizes[t]; ++i) {
        const S g = static_cast<S>(number((*grads[t])[i]));
        want[t][i] += criterion == Criterion::kGradient ? g : criterion == Criterion::kAbsolute ? std::abs(g) : g * g;
      }
    }
    accumulate<S, G>(lists, criterion, nullptr);
    for (size_t t = 0; t < sizes.size(); ++t)
      check::expect(check::same_bits(sums[t]->values(), want[t]), "scores of " + name);
    expect_intact(sums, "scores of " + name);
  }
}

constexpr int64_t kRounds = 4;  // the last one has not selected yet
const AdamWSettings kSettings = {1e-2, 0.9, 0.99, 1e-8, 0.1};

template <class W, class G, class A, class Index = int64_t>
void adamw(const std::vector<int64_t>& sizes, bool gathered, const std::string& name) {
  constexpr bool kMaster = sizeof(W) < sizeof(A);
  const auto weights = drawn<W>(sizes);
  Buffers<Index> index;
  Buffers<int16_t> round;
  std::vector<int64_t> selected;
  for (int64_t size : sizes) {
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < size; ++i)
      if (i == size - 1 || bits() % 3 != 0) positions.push_back(i);
    selected.push_back(static_cast<int64_t>(positions.size()));
    index.push_back(std::make_unique<check::Buffer<Index>>(selected.back()));
    std::copy(positions.begin(), positions.end(), index.back()->data());
    round.push_back(std::make_unique<check::Buffer<int16_t>>(selected.back()));
    for (int64_t i = 0; i < selected.back(); ++i) (*round.back())[i] = static_cast<int16_t>(bits() % (kRounds - 1));
  }
  const auto grads = drawn<G>(gathered ? selected : sizes);
  const auto m = drawn<A>(selected), v = drawn<A>(selected);
  const auto masters = drawn<float>(kMaster ? selected : std::vector<int64_t>(sizes.size()));
  std::vector<AdamWEntry> lists;
  std::vector<std::vector<W>> want;
  std::vector<std::vector<A>> want_m, want_v;
  std::vector<std::vector<float>> want_master;
  std::vector<int64_t> ages = {0, 6, 1000, -1};
  for (size_t t = 0; t < sizes.size(); ++t) {
    for (int64_t i = 0; i < selected[t]; ++i) (*v[t])[i] = std::abs((*v[t])[i]);
    lists.push_back({weights[t]->data(), grads[t]->data(), index[t]->data(), round[t]->data(), m[t]->data(),
                     v[t]->data(), kMaster ? masters[t]->data() : nullptr, selected[t], sizes[t], gathered,
                     sizeof(Index) == sizeof(int32_t)});
    want.push_back(weights[t]->values());
    want_m.push_back(m[t]->values());
    want_v.push_back(v[t]->values());
    want_master.push_back(masters[t]->values());
    for (int64_t i = 0; i < selected[t]; ++i) {
      const int64_t at = (*index[t])[i];
      const double age = static_cast<double>(ages[(*round[t])[i]] + 1);
      const A step_size = static_cast<A>(kSettings.lr / (1 - std::pow(kSettings.beta1, age)));
      const A root = static_cast<A>(1 / std::sqrt(1 - std::pow(kSettings.beta2, age)));
      const A g = static_cast<A>(number((*grads[t])[gathered ? i : at]));
      A& first = want_m[t][i];
      A& second = want_v[t][i];
      first += static_cast<A>(1 - kSettings.beta1) * (g - first);
      second = static_cast<A>(kSettings.beta2) * second + static_cast<A>(1 - kSettings.beta2) * (g * g);
      A value = kMaster ? static_cast<A>(want_master[t][i]) : static_cast<A>(number(want[t][at]));
      value = value * static_cast<A>(1 - kSettings.lr * kSettings.weight_decay) -
              step_size * (first / (std::sqrt(second) * root + static_cast<A>(kSettings.eps)));
      if constexpr (kMaster) want_master[t][i] = value;
      want[t][at] = narrowed<W>(value);
    }
  }
  check::Buffer<int64_t> counted(kRounds);
  std::copy(ages.begin(), ages.end(), counted.data());
  check::Buffer<Rates> rates(kRounds);
  advance_ages(counted.data(), rates.data(), kRounds, kSettings, nullptr);
  step<W, G, A>(lists, rates.data(), kRounds, kSettings, nullptr);
  check::expect(counted.values() == std::vector<int64_t>{1, 7, 1001, -1}, "ages after a step");
  for (size_t t = 0; t < sizes.size(); ++t) {
    const std::string what = " of " + name + ", tensor " + std::to_string(t);
    check::expect(check::same_bits(weights[t]->values(), want[t]), "weights" + what);
    check::expect(check::same_bits(m[t]->values(), want_m[t]), "first moments" + what);
    check::expect(check::same_bits(v[t]->values(), want_v[t]), "second moments" + what);
    check::expect(check::same_bits(masters[t]->values(), want_master[t]), "masters" + what);
  }
  expect_intact(weights, "weights");
  expect_intact(m, "first moments");
  expect_intact(masters, "masters");
}

template <class Bits, class Index>
void swaps(int64_t size) {
  check::Buffer<Bits> weight(size), values(size / 2);
  check::Buffer<Index> index(size / 2);
  for (int64_t i = 0; i < size; ++i) std::memset(&weight[i], static_cast<int>(bits() % 256), sizeof(Bits));
  for (int64_t i = 0; i < size / 2; ++i) {
    std::memset(&values[i], static_cast<int>(bits() % 256), sizeof(Bits));
    index[i] = 2 * i + 1;
  }
  const auto old_weight = weight.values(), old_values = values.values();
  auto want = old_weight;
  for (int64_t i = 0; i < size / 2; ++i) want[2 * i + 1] = old_values[i];
  const auto run = [&] { swap<Bits>(weight.data(), size, index.data(), values.data(), size / 2, nullptr); };
  run();
  check::expect(check::same_bits(weight.values(), want), "the weight after a swap");
  run();
  check::expect(check::same_bits(weight.values(), old_weight), "the weight after two swaps");
  check::expect(check::same_bits(values.values(), old_values), "the values after two swaps");
  weight.expect_intact("weight");
  values.expect_intact("values");
}

template <class Bits>
void swap_at(std::vector<Bits> weight, std::vector<int64_t> index) {
  std::vector<Bits> values(index.size());
  swap<Bits>(weight.data(), weight.size(), index.data(), values.data(), index.size(), nullptr);
}

// A step of one entry with one thing wrong; the kernel has to stop the program.
void misuse(const std::string& what) {
  float weight[3] = {}, m[1] = {}, v[1] = {};
  int64_t index[1] = {what == "position" ? 3 : 0}, ages[2] = {0, -1};
  int16_t round[1] = {static_cast<int16_t>(what == "round" ? 2 : what == "age" ? 1 : 0)};
  Rates rates[2];
  if (what == "swap") return swap_at<uint32_t>({1, 2, 3}, {0, 3});
  if (what == "swap twice") return swap_at<uint32_t>({1, 2, 3}, {1, 1});
  advance_ages(ages, rates, 2, kSettings, nullptr);
  step<float, float, float>({{weight, weight, index, round, m, v, nullptr, 1, 3, true, false}}, rates, 2, kSettings,
                            nullptr);
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1 && std::string(arguments[1]) == "misuse") {
    misuse(arguments[2]);
    return 0;
  }
  using T = emulator::Order::Threads;
  for (const T threads : {T::kGreedyForward, T::kShuffled}) {
    emulator::order = {threads, true, 1};
    scores<float, float>(kSizes, 0, "float32");
    scores<float, float>({77, 2000}, 1, "float32, misaligned");
    scores<float, Half>(kSizes, 0, "float32 from float16");
    scores<float, BFloat16>({5, 1030}, 0, "float32 from bfloat16");
    scores<double, float>({5, 1030}, 0, "float64 from float32");
    scores<double, double>({5, 1030}, 1, "float64, misaligned");
    adamw<float, float, float>({1, 0, 3, 1030, 5000}, true, "float32, gathered gradients");
    adamw<float, float, float>({700, 2}, false, "float32");
    adamw<float, float, float, int32_t>({700, 2}, false, "float32, positions of 32 bits");
    adamw<double, double, double>({1030}, false, "float64");
    adamw<Half, Half, float>({700}, true, "float16");
    adamw<BFloat16, float, float>({700}, false, "bfloat16 with float32 gradients");
    swaps<uint8_t, int64_t>(1000);
    swaps<uint64_t, int32_t>(517);
    swaps<Bits128, int64_t>(40);
  }
  const std::vector<int64_t> many(Table<AdamWEntry>::kCapacity + 3, 2);
  adamw<float, float, float>(many, true, "more tensors than a table holds");
  return check::exit_status();
}
