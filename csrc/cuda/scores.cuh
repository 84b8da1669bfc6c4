// sfa::accumulate_scores_: adds a batch's gradients to the scores that weights are ranked by, for many tensors in one
// launch.
//
// Floor, in bytes of device memory: scores read and written, gradients read; 12 for each float32 score with a float32
// gradient, 10 with one of 16 bits.
#pragma once

#include "arithmetic.cuh"
#include "common/criterion.h"
#include "table.cuh"

namespace sfa::cuda {

constexpr int kScoreThreads = 256;
constexpr int kScorePack = 4;  // neighbours that a thread loads at once
constexpr int kScoresPerBlock = kScoreThreads * kScorePack * 4;

struct ScoreEntry {
  void* scores;
  const void* grads;
  int64_t size;
};

template <class T>
struct alignas(sizeof(T) < 4 ? 8 : 16) Pack {
  T v[kScorePack];
};

template <class S>
__device__ __forceinline__ S increment(S g, Criterion criterion) {
  if (criterion == Criterion::kAbsolute) return magnitude(g);
  if (criterion == Criterion::kSquared) return product(g, g);
  return g;
}

// S: scores; G: gradients.
template <class S, class G>
__global__ void __launch_bounds__(kScoreThreads)
    accumulate_kernel(const __grid_constant__ Table<ScoreEntry> table, Criterion criterion) {
  const int list = table.list_of(blockIdx.x);
  const ScoreEntry& e = table.entries[list];
  const int64_t begin = static_cast<int64_t>(static_cast<int>(blockIdx.x) - table.first[list]) * kScoresPerBlock;
  const int64_t left = e.size - begin;
  const int n = left < kScoresPerBlock ? static_cast<int>(left) : kScoresPerBlock;
  S* scores = static_cast<S*>(e.scores) + begin;
  const G* grads = static_cast<const G*>(e.grads) + begin;

  int done = 0;
  const bool aligned = reinterpret_cast<uint64_t>(scores) % alignof(Pack<S>) == 0 &&
                       reinterpret_cast<uint64_t>(grads) % alignof(Pack<G>) == 0;
  if (aligned) {
    done = n / kScorePack * kScorePack;
#pragma unroll 4
    for (int i = threadIdx.x * kScorePack; i < done; i += kScoreThreads * kScorePack) {
      Pack<S> s = *reinterpret_cast<const Pack<S>*>(scores + i);
      const Pack<G> g = *reinterpret_cast<const Pack<G>*>(grads + i);
#pragma unroll
      for (int j = 0; j < kScorePack; ++j) s.v[j] += increment(widened<S>(g.v[j]), criterion);
      *reinterpret_cast<Pack<S>*>(scores + i) = s;
    }
  }
  for (int i = done + threadIdx.x; i < n; i += kScoreThreads) scores[i] += increment(widened<S>(grads[i]), criterion);
}

#if !defined(__CUDACC_RTC__)
// Starts it for lists of one pair of types.
template <class S, class G>
void accumulate(const std::vector<ScoreEntry>& lists, Criterion criterion, cudaStream_t stream) {
  const auto length = [](const ScoreEntry& e) { return e.size; };
  for_each_table(lists, kScoresPerBlock, length, [&](const Table<ScoreEntry>& table, int64_t) {
    launch("accumulate_scores_", &accumulate_kernel<S, G>, dim3(table.first[table.size]), dim3(kScoreThreads), 0,
           stream, table, criterion);
  });
}
#endif

}  // namespace sfa::cuda
