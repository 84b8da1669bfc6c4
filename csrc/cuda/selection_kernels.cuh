// The kernels of selection.cuh. A key is a score's bits without the sign: read as an integer it orders like the score's
// magnitude. U is the unsigned integer of the scores' size. A chunk is what one block works on.
#pragma once

#include "scan.cuh"
#include "table.cuh"

namespace sfa::cuda {

constexpr int kDigit = 11;  // bits of a key that one histogram resolves
constexpr int kBins = 1 << kDigit;
constexpr int kCopies = 2;  // of a histogram, so that neighbouring lanes wait less for each other
constexpr int kSelectThreads = 512;
constexpr int kChunk = 1 << 15;
constexpr int kMarkWords = kChunk / 32;  // a bit for each score of a chunk: whether it is excluded
constexpr int kScanThreads = 1024;

// One tensor of scores.
struct SelectEntry {
  const void* scores;
  const int64_t* excluded;  // [n_excluded] strictly increasing positions
  int64_t size;
  int64_t n_excluded;
  int64_t* out;         // the tensor's positions among the selected ones, when they are written
  int64_t out_start;    // how many are selected in the tensors before it
  int64_t first_bound;  // where its bounds stand
};

// What the passes tell each other and, at last, the host.
struct SelectState {
  uint64_t threshold;  // the k-th largest key, as far as its digits are known
  int64_t wanted;      // rank of the k-th largest among the keys that share these digits
  int32_t settled;     // all keys with these digits are selected, or none: the other digits do not matter
  int32_t unsorted;    // some excluded positions are not strictly increasing within their tensor
  long long nan;       // first tensor that holds one; the number of tensors where none does
};

// How the eligible scores of a chunk stand to the threshold; then how many of its ties are taken and where its
// positions start among all that are selected.
struct Tally {
  int32_t above, equal;
};
struct Place {
  int64_t offset;
  int64_t ties;
};

template <class U>
constexpr int kPack = 16 / sizeof(U);  // scores a thread loads at once

template <class U>
__device__ __forceinline__ U key_of(U score) {
  return score & static_cast<U>(static_cast<U>(~U{0}) >> 1);
}

// The part of a tensor that a block works on.
template <class U>
struct ChunkOf {
  int list;       // in the table
  int64_t begin;  // position of its first score in the tensor
  int size;
  const U* scores;
  const int64_t* bounds;  // excluded positions in the chunk are those from number bounds[0] to bounds[1]

  __device__ __forceinline__ ChunkOf(const Table<SelectEntry>& table, const int64_t* all_bounds)
      : list(table.list_of(blockIdx.x)) {
    const SelectEntry& e = table.entries[list];
    const int number = static_cast<int>(blockIdx.x) - table.first[list];
    begin = static_cast<int64_t>(number) * kChunk;
    const int64_t left = e.size - begin;
    size = left < kChunk ? static_cast<int>(left) : kChunk;
    scores = static_cast<const U*>(e.scores) + begin;
    bounds = all_bounds + e.first_bound + number;
  }
};

// Marks the excluded positions of the chunk and returns the marks, or null where there are none. `marks` is shared
// memory for kMarkWords words. All threads of the block call it.
template <class U>
__device__ __forceinline__ const uint32_t* mark_excluded(const ChunkOf<U>& chunk, const int64_t* excluded,
                                                         uint32_t* marks) {
  const int64_t first = chunk.bounds[0], last = chunk.bounds[1];
  if (first >= last) return nullptr;
  for (int i = threadIdx.x; i < kMarkWords; i += kSelectThreads) marks[i] = 0;
  __syncthreads();  // no mark may be cleared again
  for (int64_t i = first + threadIdx.x; i < last; i += kSelectThreads) {
    const int64_t place = excluded[i] - chunk.begin;
    if (place >= 0 && place < chunk.size) atomicOr(&marks[place / 32], 1u << place % 32);
  }
  __syncthreads();  // all marks are there
  return marks;
}

// Loads the keys from number i of the chunk on; returns a bit for each that is there and not excluded.
template <class U>
__device__ __forceinline__ uint32_t load_keys(const ChunkOf<U>& chunk, const uint32_t* marks, int i,
                                              U (&keys)[kPack<U>]) {
  constexpr int n = kPack<U>;
  uint32_t eligible = 0;
  if (i + n <= chunk.size && reinterpret_cast<uint64_t>(chunk.scores) % 16 == 0) {
    struct alignas(16) Pack {
      U v[n];
    } pack = *reinterpret_cast<const Pack*>(chunk.scores + i);
#pragma unroll
    for (int j = 0; j < n; ++j) keys[j] = key_of(pack.v[j]);
    eligible = (1u << n) - 1;
  } else {
#pragma unroll
    for (int j = 0; j < n; ++j) {
      const bool there = i + j < chunk.size;
      keys[j] = there ? key_of(chunk.scores[i + j]) : U{0};
      eligible |= static_cast<uint32_t>(there) << j;
    }
  }
  if (marks != nullptr && i < chunk.size) eligible &= ~(marks[i / 32] >> i % 32);
  return eligible;
}

// A bit for each key that stands so to the threshold and is eligible.
struct Standing {
  uint32_t above, equal;
};

template <class U>
__device__ __forceinline__ Standing standing_of(const U (&keys)[kPack<U>], uint32_t eligible, U threshold) {
  Standing standing = {0, 0};
#pragma unroll
  for (int j = 0; j < kPack<U>; ++j) {
    standing.above |= static_cast<uint32_t>(keys[j] > threshold) << j;
    standing.equal |= static_cast<uint32_t>(keys[j] == threshold) << j;
  }
  return {standing.above & eligible, standing.equal & eligible};
}

// Sets what the first pass starts from; `words` 64-bit words from `zeroed` on become zero.
__global__ void __launch_bounds__(kSelectThreads)
    start_kernel(SelectState* state, int64_t k, int64_t tensors, unsigned long long* zeroed, int64_t words) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kSelectThreads + threadIdx.x;
  if (first == 0) *state = {k == 0 ? ~uint64_t{0} : 0, k, k == 0, 0, tensors};
  for (int64_t i = first; i < words; i += static_cast<int64_t>(gridDim.x) * kSelectThreads) zeroed[i] = 0;
}

// Checks excluded positions and finds where each chunk's begin. The table's blocks are over these positions; bounds
// start as zeros.
__global__ void __launch_bounds__(kSelectThreads)
    bounds_kernel(const __grid_constant__ Table<SelectEntry> table, int64_t* bounds, SelectState* state) {
  const int list = table.list_of(blockIdx.x);
  const SelectEntry& e = table.entries[list];
  const int64_t i =
      static_cast<int64_t>(static_cast<int>(blockIdx.x) - table.first[list]) * kSelectThreads + threadIdx.x;
  if (i >= e.n_excluded) return;
  const int64_t position = e.excluded[i], previous = i == 0 ? -1 : e.excluded[i - 1];
  if (position <= previous || position >= e.size || previous < -1) {
    atomicOr(&state->unsorted, 1);
    return;
  }
  // The chunks that begin after the previous position and not after this one.
  for (int64_t c = i == 0 ? 0 : previous / kChunk + 1; c <= position / kChunk; ++c) bounds[e.first_bound + c] = i;
  if (i + 1 < e.n_excluded) return;
  for (int64_t c = position / kChunk + 1; c <= (e.size + kChunk - 1) / kChunk; ++c)
    bounds[e.first_bound + c] = e.n_excluded;
}

// Counts the digits [low, high) of the eligible keys that agree with the threshold from bit `high` on. In the first
// pass (infinity is not zero) it also looks for NaN.
template <class U>
__global__ void __launch_bounds__(kSelectThreads)
    histogram_kernel(const __grid_constant__ Table<SelectEntry> table, const int64_t* bounds, int64_t first_list,
                     int low, int high, U infinity, SelectState* state, unsigned long long* total) {
  uint32_t* bins = dynamic_shared<uint32_t>();  // [kCopies, kBins]
  if (infinity == 0 && state->settled) return;
  const U upper = static_cast<U>(state->threshold) >> high;
  const ChunkOf<U> chunk(table, bounds);
  for (int i = threadIdx.x; i < kCopies * kBins; i += kSelectThreads) bins[i] = 0;
  const uint32_t* marks = mark_excluded(chunk, table.entries[chunk.list].excluded, bins + kCopies * kBins);
  __syncthreads();  // no bin may be cleared again

  const int lane = threadIdx.x % 32;
  uint32_t* own = bins + lane % kCopies * kBins;
  const uint32_t mask = (1u << (high - low)) - 1;
  U largest = 0;
  // Whole warps go round together, since lanes count for each other.
  for (int start = threadIdx.x - lane; start * kPack<U> < chunk.size; start += kSelectThreads) {
    U keys[kPack<U>];
    uint32_t counted = load_keys(chunk, marks, (start + lane) * kPack<U>, keys);
    uint32_t digits[kPack<U>];
#pragma unroll
    for (int j = 0; j < kPack<U>; ++j) {
      largest = keys[j] > largest ? keys[j] : largest;
      digits[j] = static_cast<uint32_t>(keys[j] >> low) & mask;
      if (static_cast<U>(keys[j] >> high) != upper) counted &= ~(1u << j);
    }
    // Where one digit is frequent lanes would wait for each other at its counter: one lane counts it for all.
    const uint32_t frequent = __shfl_sync(~0u, (counted & 1) != 0 ? digits[0] : ~0u, 0);
    if (frequent != ~0u) {
      uint32_t times = 0;
#pragma unroll
      for (int j = 0; j < kPack<U>; ++j) {
        const bool is = (counted >> j & 1) != 0 && digits[j] == frequent;
        times += __popc(__ballot_sync(~0u, is));
        if (is) counted &= ~(1u << j);
      }
      if (lane == 0) atomicAdd(&own[frequent], times);
    }
#pragma unroll
    for (int j = 0; j < kPack<U>; ++j) {
      if ((counted >> j & 1) != 0) atomicAdd(&own[digits[j]], 1u);
    }
  }
  if (infinity != 0 && largest > infinity) atomicMin(&state->nan, static_cast<long long>(first_list + chunk.list));
  __syncthreads();  // all have counted
  for (int b = threadIdx.x; b < kBins; b += kSelectThreads) {
    uint32_t sum = 0;
    for (int copy = 0; copy < kCopies; ++copy) sum += bins[copy * kBins + b];
    if (sum != 0) atomicAdd(&total[b], static_cast<unsigned long long>(sum));
  }
}

// One block: finds the digit from bit `low` on of the wanted key, and clears the bins for the next pass.
__global__ void __launch_bounds__(kScanThreads) digit_kernel(int low, SelectState* state, unsigned long long* total) {
  constexpr int kOwn = kBins / kScanThreads;  // bins of a thread, the largest digits first
  if (state->settled) return;
  const int64_t wanted = state->wanted;
  int64_t counts[kOwn], sum = 0;
  for (int j = 0; j < kOwn; ++j) {
    unsigned long long& bin = total[kBins - 1 - (static_cast<int>(threadIdx.x) * kOwn + j)];
    counts[j] = static_cast<int64_t>(bin);
    bin = 0;
    sum += counts[j];
  }
  int64_t larger = block_scan(sum, dynamic_shared<int64_t>()).before;
  for (int j = 0; j < kOwn; ++j) {
    if (larger < wanted && wanted <= larger + counts[j]) {  // in one thread, once
      const uint64_t digit = kBins - 1 - (threadIdx.x * kOwn + j);
      state->threshold += digit << low;
      state->wanted = wanted - larger;
      state->settled = wanted == larger + counts[j];
    }
    larger += counts[j];
  }
}

// Counts per chunk what lies above the threshold and at it.
template <class U>
__global__ void __launch_bounds__(kSelectThreads)
    tally_kernel(const __grid_constant__ Table<SelectEntry> table, const int64_t* bounds, const SelectState* state,
                 Tally* tallies) {
  uint32_t* sums = dynamic_shared<uint32_t>();  // [32]
  const U threshold = static_cast<U>(state->threshold);
  const ChunkOf<U> chunk(table, bounds);
  const uint32_t* marks = mark_excluded(chunk, table.entries[chunk.list].excluded, sums + 32);
  static_assert(kChunk < 1 << 16, "both counts of a chunk fit a word");
  uint32_t both = 0;
  for (int i = threadIdx.x * kPack<U>; i < chunk.size; i += kSelectThreads * kPack<U>) {
    U keys[kPack<U>];
    const uint32_t eligible = load_keys(chunk, marks, i, keys);
    const Standing standing = standing_of(keys, eligible, threshold);
    both += __popc(standing.above) | __popc(standing.equal) << 16;
  }
  both = block_scan(both, sums).total;
  if (threadIdx.x == 0) tallies[blockIdx.x] = {static_cast<int32_t>(both & 0xffff), static_cast<int32_t>(both >> 16)};
}

// One block: of the keys at the threshold the first `k` minus those above it are taken; places[chunks] holds the total.
__global__ void __launch_bounds__(kScanThreads)
    place_kernel(int64_t k, int64_t chunks, const Tally* tallies, Place* places) {
  int64_t* sums = dynamic_shared<int64_t>();  // [2, 32]: two scans take turns, the barrier of one serves the other
  int64_t above = 0;
  for (int64_t c = threadIdx.x; c < chunks; c += kScanThreads) above += tallies[c].above;
  int64_t ties_left = k - block_scan(above, sums + 32).total;
  int64_t placed = 0;
  for (int64_t first = 0; first < chunks; first += kScanThreads) {
    const int64_t c = first + threadIdx.x;
    const Tally tally = c < chunks ? tallies[c] : Tally{0, 0};
    const Scan<int64_t> equal = block_scan(static_cast<int64_t>(tally.equal), sums);
    int64_t ties = ties_left - equal.before;
    ties = ties < 0 ? 0 : ties < tally.equal ? ties : tally.equal;
    const Scan<int64_t> taken = block_scan(tally.above + ties, sums + 32);
    if (c < chunks) places[c] = {placed + taken.before, ties};
    ties_left -= equal.total;
    placed += taken.total;
  }
  if (threadIdx.x == 0) places[chunks] = {placed, 0};
}

// Writes the positions of the selected scores, in order.
template <class U>
__global__ void __launch_bounds__(kSelectThreads)
    write_kernel(const __grid_constant__ Table<SelectEntry> table, const int64_t* bounds, const SelectState* state,
                 const Place* places) {
  uint32_t* sums = dynamic_shared<uint32_t>();  // [2, 32]
  const int64_t start = places[blockIdx.x].offset;
  if (start == places[blockIdx.x + 1].offset) return;
  const U threshold = static_cast<U>(state->threshold);
  const ChunkOf<U> chunk(table, bounds);
  const SelectEntry& e = table.entries[chunk.list];
  const uint32_t* marks = mark_excluded(chunk, e.excluded, sums + 64);
  int64_t* out = e.out + (start - e.out_start);
  const int limit = static_cast<int>(places[blockIdx.x].ties);

  int above_before = 0, ties_before = 0, turn = 0;
  for (int tile = 0; tile < chunk.size; tile += kSelectThreads * kPack<U>, turn ^= 1) {
    const int i = tile + threadIdx.x * kPack<U>;
    U keys[kPack<U>];
    const uint32_t eligible = load_keys(chunk, marks, i, keys);
    const auto [above, ties] = standing_of(keys, eligible, threshold);
    // Both counts of a tile in one word. The scans of two tiles use different sums: its barrier then serves them all.
    const Scan<uint32_t> scan = block_scan<uint32_t>(__popc(above) | __popc(ties) << 16, sums + 32 * turn);
    int tie = ties_before + static_cast<int>(scan.before >> 16);
    int to = above_before + static_cast<int>(scan.before & 0xffff) + (tie < limit ? tie : limit);
#pragma unroll
    for (int j = 0; j < kPack<U>; ++j) {
      const bool is_tie = (ties >> j & 1) != 0;
      if ((above >> j & 1) != 0 || (is_tie && tie < limit)) out[to++] = chunk.begin + i + j;
      tie += is_tie;
    }
    above_before += static_cast<int>(scan.total & 0xffff);
    ties_before += static_cast<int>(scan.total >> 16);
  }
}

}  // namespace sfa::cuda
