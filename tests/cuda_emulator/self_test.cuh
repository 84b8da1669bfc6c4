// A kernel that uses what the emulator offers: c[M, N] = a[M, K] b[N, K]^T, and the sum of each row of c.
#pragma once

#include "cuda/builtins.cuh"

namespace sfa::cuda {

constexpr int kRows = 32, kColumns = 32, kDepth = 32, kStages = 2;  // of a tile; two warps, each 16 rows

__device__ __forceinline__ void load(Half* tile, const Half* from, int64_t row, int64_t rows, int64_t depth,
                                     int64_t k) {
  for (int i = threadIdx.x; i < kRows * kDepth / 8; i += blockDim.x) {
    const int r = i / (kDepth / 8), unit = i % (kDepth / 8);
    const bool valid = row + r < rows;
    cp_async_16(tile + r * (kDepth + 8) + unit * 8, from + (valid ? (row + r) * depth + k + unit * 8 : 0), valid);
  }
}

__global__ void self_test(const Half* a, const Half* b, float* c, float* row_sums, int* finished, int64_t m, int64_t n,
                          int64_t depth) {
  constexpr int kTile = kRows * (kDepth + 8);
  Half* tiles = dynamic_shared<Half>();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t row = blockIdx.y * int64_t{kRows}, column = blockIdx.x * int64_t{kColumns};
  float sum[4][4] = {};
  const auto fetch = [&](int64_t k) {
    Half* stage = tiles + k / kDepth % kStages * 2 * kTile;
    load(stage, a, row, m, depth, k);
    load(stage + kTile, b, column, n, depth, k);
    cp_async_commit();
  };
  fetch(0);
  for (int64_t k = 0; k < depth; k += kDepth) {
    cp_async_wait<0>();
    __syncthreads();  // this stage is there, and the other one is read
    if (k + kDepth < depth) fetch(k + kDepth);
    const Half* stage = tiles + k / kDepth % kStages * 2 * kTile;
    for (int step = 0; step < kDepth; step += 16) {
      uint32_t left[4], right[4];
      ldmatrix_x4(left, stage + (warp * 16 + lane % 16) * (kDepth + 8) + step + lane / 16 * 8);
      for (int j = 0; j < 2; ++j) {
        const int r = j * 16 + lane / 16 * 8 + lane % 8;
        ldmatrix_x4(right, stage + kTile + r * (kDepth + 8) + step + lane / 8 % 2 * 8);
        mma_m16n8k16_half(sum[2 * j], left, {right[0], right[1]});
        mma_m16n8k16_half(sum[2 * j + 1], left, {right[2], right[3]});
      }
    }
  }
  for (int half = 0; half < 2; ++half) {
    const int64_t r = row + warp * 16 + half * 8 + lane / 4;
    float total = 0;
    for (int j = 0; j < 4; ++j)
      for (int i = 0; i < 2; ++i) {
        const int64_t to = column + j * 8 + lane % 4 * 2 + i;
        if (r < m && to < n) c[r * n + to] = sum[j][half * 2 + i];
        total += sum[j][half * 2 + i];
      }
    total += __shfl_xor_sync(~0u, total, 1);
    total += __shfl_xor_sync(~0u, total, 2);
    if (lane % 4 == 0 && r < m) atomicAdd(row_sums + r, total);
  }
  if (__syncthreads_count(1) == static_cast<int>(blockDim.x) && threadIdx.x == 0) atomicAdd(finished, 1);
}

inline void run_self_test(const Half* a, const Half* b, float* c, float* row_sums, int* finished, int64_t m, int64_t n,
                          int64_t depth) {
  const dim3 grid((n + kColumns - 1) / kColumns, (m + kRows - 1) / kRows);
  launch("self_test", &self_test, grid, dim3(64), kStages * 2 * kRows * (kDepth + 8) * sizeof(Half), nullptr, a, b, c,
         row_sums, finished, m, n, depth);
}

}  // namespace sfa::cuda
