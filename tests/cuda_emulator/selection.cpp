// select_topk's kernels against a stable sort, on every kind of input that breaks a selection by digits.
#include "cuda/selection.cuh"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "check.h"

using namespace sfa::cuda;

namespace {

template <class U>
struct Case {
  std::vector<std::vector<U>> scores;
  std::vector<std::vector<int64_t>> excluded;
};

template <class U>
std::vector<std::vector<int64_t>> by_stable_sort(const Case<U>& c, int64_t k) {
  struct Item {
    U key;
    size_t tensor;
    int64_t position;
  };
  std::vector<Item> items;
  for (size_t t = 0; t < c.scores.size(); ++t) {
    size_t next = 0;
    for (int64_t i = 0; i < static_cast<int64_t>(c.scores[t].size()); ++i) {
      if (next < c.excluded[t].size() && c.excluded[t][next] == i)
        ++next;
      else
        items.push_back({static_cast<U>(c.scores[t][i] & static_cast<U>(~U{0}) >> 1), t, i});
    }
  }
  std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.key > b.key; });
  std::vector<std::vector<int64_t>> best(c.scores.size());
  for (int64_t i = 0; i < k; ++i) best[items[i].tensor].push_back(items[i].position);
  for (auto& positions : best) std::sort(positions.begin(), positions.end());
  return best;
}

constexpr uint64_t infinity_of(size_t bytes) {
  return bytes == 2 ? 0x7c00 : bytes == 4 ? 0x7f800000 : 0x7ff0000000000000;
}

// What the kernels select, or what they found wrong.
struct Result {
  std::vector<std::vector<int64_t>> positions;
  bool unsorted;
  int64_t nan;
};

template <class U>
Result select(const Case<U>& c, int64_t k, int64_t misaligned) {
  std::vector<std::unique_ptr<check::Buffer<U>>> scores;
  std::vector<std::unique_ptr<check::Buffer<int64_t>>> excluded, out;
  std::vector<SelectEntry> tensors;
  for (size_t t = 0; t < c.scores.size(); ++t) {
    scores.push_back(std::make_unique<check::Buffer<U>>(c.scores[t].size(), t % 2 == 0 ? misaligned : 0));
    std::copy(c.scores[t].begin(), c.scores[t].end(), scores[t]->data());
    excluded.push_back(std::make_unique<check::Buffer<int64_t>>(c.excluded[t].size()));
    std::copy(c.excluded[t].begin(), c.excluded[t].end(), excluded[t]->data());
    tensors.push_back({scores[t]->data(), excluded[t]->data(), scores[t]->size(), excluded[t]->size(), 0, 0, 0});
  }
  TopK<U> top(tensors, static_cast<U>(infinity_of(sizeof(U))));
  check::Buffer<char> workspace(top.workspace_bytes());
  top.rank(k, workspace.data(), nullptr);
  const SelectState& state = *reinterpret_cast<const SelectState*>(workspace.data());
  Result result{{}, state.unsorted != 0, state.nan};
  if (result.unsorted || result.nan < static_cast<int64_t>(c.scores.size())) return result;
  std::vector<int64_t*> to;
  for (int64_t length : top.lengths(workspace.data())) {
    check::expect(length >= 0 && length <= k, "a length within [0, k]");
    if (length < 0 || length > k) return result;
    out.push_back(std::make_unique<check::Buffer<int64_t>>(length));
    to.push_back(out.back()->data());
  }
  top.write(to, nullptr);
  for (auto& o : out) {
    o->expect_intact("positions");
    result.positions.push_back(o->values());
  }
  workspace.expect_intact("workspace");
  return result;
}

// In the two greedy orders, or in every order there is.
template <class U>
void compare(const Case<U>& c, int64_t k, int64_t misaligned, const std::string& name, bool every_order = false) {
  using T = emulator::Order::Threads;
  const auto want = by_stable_sort(c, k);
  std::vector<T> orders = {T::kGreedyForward, T::kGreedyBackward};
  if (every_order) orders.insert(orders.end(), {T::kForward, T::kBackward, T::kShuffled});
  for (const T threads : orders) {
    const emulator::Order& order = emulator::order = {threads, true, 1};
    const Result got = select(c, k, misaligned);
    check::expect(!got.unsorted && got.nan == static_cast<int64_t>(c.scores.size()), name + ": nothing is wrong");
    check::expect(got.positions == want, name + ", k = " + std::to_string(k) + ", " + check::order_name(order));
  }
}

std::mt19937_64 bits(7);

template <class U>
U draw(const std::string& kind, U infinity) {
  constexpr U kSign = static_cast<U>(U{1} << (8 * sizeof(U) - 1));
  const U any = static_cast<U>(bits()), sign = any & kSign;
  const U one = infinity / 2 & static_cast<U>(infinity << 1);  // some number with an ordinary exponent
  if (kind == "equal") return one | kSign;
  if (kind == "zeros") return sign;
  if (kind == "many zeros") return bits() % 20 == 0 ? (any & ~kSign) % infinity | sign : sign;
  if (kind == "denormal") return static_cast<U>(bits() % 1000) | sign;
  if (kind == "infinite") return bits() % 5 == 0 ? infinity | sign : one | sign;
  if (kind == "same leading bits") return one | static_cast<U>(bits() % 50) | sign;
  return static_cast<U>((any & ~kSign) % (infinity + U{1})) | sign;
}

template <class U>
Case<U> make(const std::vector<int64_t>& sizes, const std::string& kind, int excluded_percent) {
  Case<U> c;
  for (int64_t size : sizes) {
    c.scores.emplace_back();
    c.excluded.emplace_back();
    for (int64_t i = 0; i < size; ++i) {
      c.scores.back().push_back(draw<U>(kind, static_cast<U>(infinity_of(sizeof(U)))));
      if (static_cast<int>(bits() % 100) < excluded_percent) c.excluded.back().push_back(i);
    }
  }
  return c;
}

template <class U>
void every_kind(const std::vector<int64_t>& sizes, const std::string& type) {
  for (const char* kind : {"random", "equal", "zeros", "many zeros", "denormal", "infinite", "same leading bits"}) {
    for (int percent : {0, 30}) {
      const Case<U> c = make<U>(sizes, kind, percent);
      int64_t eligible = 0;
      for (size_t t = 0; t < sizes.size(); ++t) eligible += sizes[t] - static_cast<int64_t>(c.excluded[t].size());
      compare(c, eligible / 3, percent == 0, type + " " + kind + ", excluded " + std::to_string(percent) + " %");
    }
  }
  const Case<U> c = make<U>(sizes, "many zeros", 30);
  int64_t eligible = 0;
  for (size_t t = 0; t < sizes.size(); ++t) eligible += sizes[t] - static_cast<int64_t>(c.excluded[t].size());
  for (int64_t k : {int64_t{0}, int64_t{1}, eligible / 2, eligible}) compare(c, k, 1, type + " of any number", k > 1);
}

// Tensors of several chunks, and positions that exclude whole chunks and none of others.
void several_chunks() {
  Case<uint16_t> c = make<uint16_t>({2 * kChunk + 77, 3, kChunk}, "random", 0);
  for (int64_t i = 5; i < kChunk + 9; ++i) c.excluded[0].push_back(i);
  c.excluded[2] = {kChunk - 1};
  compare(c, 40000, 3, "several chunks");
  Case<uint32_t> all = make<uint32_t>({kChunk + 1}, "equal", 0);
  compare(all, kChunk + 1, 0, "a tie over two chunks, all of it");
  compare(all, kChunk, 0, "a tie over two chunks, but one");
}

void more_tensors_than_a_table_holds() {
  std::vector<int64_t> sizes;
  for (int i = 0; i < Table<SelectEntry>::kCapacity + 40; ++i) sizes.push_back(i % 7);
  compare(make<uint32_t>(sizes, "random", 20), 300, false, "many tensors");
}

// More chunks than the one block of place_kernel has threads.
void places_of_many_chunks() {
  constexpr int64_t kChunks = 2 * kScanThreads + 77;
  check::Buffer<Tally> tallies(kChunks);
  int64_t above = 0, equal = 0;
  for (int64_t c = 0; c < kChunks; ++c) {
    tallies[c] = {static_cast<int32_t>(bits() % 100), static_cast<int32_t>(bits() % 10)};
    above += tallies[c].above;
    equal += tallies[c].equal;
  }
  for (const int64_t k : {above, above + equal / 2, above + equal}) {
    check::Buffer<Place> places(kChunks + 1);
    launch("place", &place_kernel, dim3(1), dim3(kScanThreads), 64 * sizeof(int64_t), nullptr, k, kChunks,
           static_cast<const Tally*>(tallies.data()), places.data());
    int64_t offset = 0, ties_left = k - above;
    bool right = true;
    for (int64_t c = 0; c < kChunks; ++c) {
      const int64_t ties = std::min<int64_t>(ties_left, tallies[c].equal);
      right = right && places[c].offset == offset && places[c].ties == ties;
      offset += tallies[c].above + ties;
      ties_left -= ties;
    }
    check::expect(right && offset == k && places[kChunks].offset == k, "places of many chunks");
    places.expect_intact("places");
  }
}

void refusals() {
  emulator::order = {};
  Case<uint32_t> c = make<uint32_t>({50, 40, 60}, "random", 10);
  c.scores[1][7] = 0xffc00000;
  c.scores[2][0] = 0x7f800001;
  c.excluded[1] = {7};
  check::expect(select(c, 5, 0).nan == 1, "NaN is found, excluded or not, and its first tensor named");
  check::expect(select(c, 0, 0).nan == 1, "NaN is found where nothing is wanted");
  c = make<uint32_t>({50, 40}, "random", 0);
  for (const std::vector<int64_t>& wrong :
       std::vector<std::vector<int64_t>>{{3, 3}, {5, 4}, {-1, 2}, {39, 40}, {40}, {1 << 30}, {-5}, {39, 38, 37, -9}}) {
    c.excluded[1] = wrong;
    check::expect(select(c, 5, 0).unsorted, "positions that are not sorted or not there are found");
  }
}

}  // namespace

// "reduced": for sanitizers and injected faults, which need not be looked for in every type.
int main(int count, char** arguments) {
  const bool reduced = count > 1 && std::string(arguments[1]) == "reduced";
  const std::vector<int64_t> sizes =
      reduced ? std::vector<int64_t>{33, 0, 7, 700} : std::vector<int64_t>{77, 1, 15, 2000, 0, 150};
  every_kind<uint32_t>(sizes, "float32");
  several_chunks();
  if (!reduced) {
    every_kind<uint16_t>(sizes, "float16");
    every_kind<uint64_t>(sizes, "float64");
    more_tensors_than_a_table_holds();
    places_of_many_chunks();
  }
  refusals();
  return check::exit_status();
}
