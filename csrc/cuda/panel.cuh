// Panels: parts of matrices in shared memory, and their products.
//
// A panel is [rows][128 bytes], so 64 numbers of 2 bytes or 32 of 4 of each row. Unit u (16 bytes) of row r stands at
// unit u ^ (r % 8): eight rows of one unit, which ldmatrix reads at once, then lie in different banks.
#pragma once

#include "builtins.cuh"

namespace sfa::cuda {

constexpr int kPanelBytes = 128;  // of a row
constexpr int kUnitBytes = 16;
constexpr int kUnits = kPanelBytes / kUnitBytes;  // of a row

template <class T>
constexpr int kPanelColumns = kPanelBytes / static_cast<int>(sizeof(T));

// How products are computed. Accumulators are float.
struct HalfMath {
  using Number = Half;
  static constexpr int kOldest = 700;  // generation
};
struct BFloat16Math {
  using Number = BFloat16;
  static constexpr int kOldest = 800;
};
struct Tf32Math {
  using Number = float;
  static constexpr int kOldest = 800;
};
struct FloatMath {  // exact products, on the ordinary units
  using Number = float;
  static constexpr int kOldest = 700;
};

template <class A, class B>
constexpr bool kSame = false;
template <class A>
constexpr bool kSame<A, A> = true;

__device__ __forceinline__ char* unit_at(char* panel, int row, int unit) {
  return panel + row * kPanelBytes + (unit ^ (row & 7)) * kUnitBytes;
}
__device__ __forceinline__ const char* unit_at(const char* panel, int row, int unit) {
  return panel + row * kPanelBytes + (unit ^ (row & 7)) * kUnitBytes;
}

// Address of number `column` (even) of a row; the next number stands behind it.
template <class T>
__device__ __forceinline__ char* pair_at(char* panel, int row, int column) {
  constexpr int kPerUnit = kUnitBytes / sizeof(T);
  return unit_at(panel, row, column / kPerUnit) + column % kPerUnit * sizeof(T);
}

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T first, second;
};
template <class T>
__device__ __forceinline__ float2 load_pair(const void* p) {
  const Pair<T> pair = *static_cast<const Pair<T>*>(p);
  return make_float2(to_float(pair.first), to_float(pair.second));
}
template <class T>
__device__ __forceinline__ void store_pair(void* p, float first, float second) {
  *static_cast<Pair<T>*>(p) = {from_float<T>(first), from_float<T>(second)};
}

// Starts the copy of panel `index` (columns index * 128 bytes on) of rows [row, row + count) of a matrix
// [limit, width]; zeros stand for what lies outside.
template <class T>
__device__ __forceinline__ void fetch_panel(char* to, const T* from, int64_t row, int64_t limit, int width, int index,
                                            int count) {
  constexpr int kPerUnit = kUnitBytes / sizeof(T);
  for (int i = threadIdx.x; i < count * kUnits; i += blockDim.x) {
    const int r = i / kUnits, unit = i % kUnits, column = index * kPanelColumns<T> + unit * kPerUnit;
    const bool inside = row + r < limit && column < width;
    cp_async_16(unit_at(to, r, unit), inside ? from + (row + r) * width + column : from, inside);
  }
}

// A warp's accumulators: 32 rows by 8 kTiles columns, in 16 by 8 tiles of four numbers a lane. Numbers 2h and 2h + 1 of
// a tile are neighbours in a row.
template <int kTiles>
using Accumulators = float[2][kTiles][4];

template <int kTiles>
__device__ __forceinline__ void clear(Accumulators<kTiles>& sum) {
#pragma unroll
  for (int m = 0; m < 2; ++m)
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[m][n][i] = 0;
}

// sm_70 has mma.m8n8k4 alone, whose accumulators lie differently.
template <class Math>
constexpr bool kVolta = kSame<Math, HalfMath> && kArch < 750;

// Where numbers 2h and 2h + 1 of tile (m, n) stand in the warp's part.
template <class Math>
__device__ __forceinline__ int row_of(int lane, int m, int h) {
  if constexpr (kVolta<Math>)
    return m * 16 + (lane / 4 % 2) * 8 + lane / 16 * 4 + h * 2 + lane % 2;
  else
    return m * 16 + h * 8 + lane / 4;
}
template <class Math>
__device__ __forceinline__ int column_of(int lane, int n) {
  if constexpr (kVolta<Math>)
    return n / 2 * 16 + lane / 8 % 2 * 8 + n % 2 * 4 + (lane & 2);
  else
    return n * 8 + lane % 4 * 2;
}

template <class Math>
__device__ __forceinline__ void mma(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (kSame<Math, BFloat16Math>) {
    mma_m16n8k16_bfloat16(sum, a, b);
  } else if constexpr (kSame<Math, Tf32Math>) {
    mma_m16n8k8_tf32(sum, a, b);
  } else if constexpr (kArch >= 800) {
    mma_m16n8k16_half(sum, a, b);
  } else {
    mma_m16n8k8_half(sum, {a[0], a[1]}, b[0]);
    mma_m16n8k8_half(sum, {a[2], a[3]}, b[1]);
  }
}

// Tensor cores from sm_75 on: 32 bytes of depth a step.
template <class Math, int kTiles>
__device__ __forceinline__ void multiply_mma(Accumulators<kTiles>& sum, const char* left, int left_row,
                                             const char* right, int right_row) {
  const int lane = fresh_lane();
  const auto rounded = [](uint32_t (&words)[4]) {
    if constexpr (kSame<Math, Tf32Math>)
      for (uint32_t& word : words) word = round_to_tf32(word);
  };
#pragma unroll(kSame<Math, Tf32Math> ? 2 : 4)  // rounding needs registers
  for (int step = 0; step < kUnits / 2; ++step) {
    uint32_t a[2][4], b[4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      ldmatrix_x4(a[m], unit_at(left, left_row + m * 16 + lane % 16, 2 * step + lane / 16));
      rounded(a[m]);
    }
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      ldmatrix_x4(b, unit_at(right, right_row + n * 8 + lane / 16 * 8 + lane % 8, 2 * step + lane / 8 % 2));
      rounded(b);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        mma<Math>(sum[m][n], a[m], {b[0], b[1]});
        mma<Math>(sum[m][n + 1], a[m], {b[2], b[3]});
      }
    }
  }
}

// sm_70: the four pairs of quads share out 16 rows by 16 columns.
template <int kTiles>
__device__ __forceinline__ void multiply_volta(Accumulators<kTiles>& sum, const char* left, int left_row,
                                               const char* right, int right_row) {
  const int lane = fresh_lane(), in_quads = lane % 4 + lane / 16 * 4;
#pragma unroll
  for (int unit = 0; unit < kUnits; ++unit) {
    uint4 a[2];
#pragma unroll
    for (int m = 0; m < 2; ++m)
      a[m] = *reinterpret_cast<const uint4*>(unit_at(left, left_row + m * 16 + lane / 4 % 2 * 8 + in_quads, unit));
#pragma unroll
    for (int n = 0; n < kTiles; n += 2) {
      const int row = right_row + n * 8 + lane / 8 % 2 * 8 + in_quads;
      const uint4 b = *reinterpret_cast<const uint4*>(unit_at(right, row, unit));
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        float d[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) d[i] = sum[m][n + i / 4][i % 4];
        mma_m8n8k4_half(d, {a[m].x, a[m].y}, {b.x, b.y});
        mma_m8n8k4_half(d, {a[m].z, a[m].w}, {b.z, b.w});
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[m][n + i / 4][i % 4] = d[i];
      }
    }
  }
}

__device__ __forceinline__ void add_products(float& sum, const float4& a, const float4& b) {
  sum = __fmaf_rn(a.x, b.x, sum);
  sum = __fmaf_rn(a.y, b.y, sum);
  sum = __fmaf_rn(a.z, b.z, sum);
  sum = __fmaf_rn(a.w, b.w, sum);
}

template <int kTiles>
__device__ __forceinline__ void multiply_float(Accumulators<kTiles>& sum, const char* left, int left_row,
                                               const char* right, int right_row) {
  const int lane = fresh_lane();
#pragma unroll 1
  for (int unit = 0; unit < kUnits; ++unit) {
    float4 a[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      a[i] = *reinterpret_cast<const float4*>(unit_at(left, left_row + row_of<FloatMath>(lane, i / 2, i % 2), unit));
#pragma unroll
    for (int n = 0; n < kTiles; ++n)
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int row = right_row + column_of<FloatMath>(lane, n) + j;
        const float4 b = *reinterpret_cast<const float4*>(unit_at(right, row, unit));
#pragma unroll
        for (int i = 0; i < 4; ++i) add_products(sum[i / 2][n][i % 2 * 2 + j], a[i], b);
      }
  }
}

// sum += left right^T over the depth of a panel: rows left_row.. and right_row.. of the panels, both multiples of 8.
template <class Math, int kTiles>
__device__ __forceinline__ void multiply(Accumulators<kTiles>& sum, const char* left, int left_row, const char* right,
                                         int right_row) {
  if constexpr (kSame<Math, FloatMath>)
    multiply_float<kTiles>(sum, left, left_row, right, right_row);
  else if constexpr (kVolta<Math>)
    multiply_volta<kTiles>(sum, left, left_row, right, right_row);
  else
    multiply_mma<Math, kTiles>(sum, left, left_row, right, right_row);
}

// f(m, n, h) for every pair of a lane's numbers, [m][n][2h] and [m][n][2h + 1].
template <int kTiles, class F>
__device__ __forceinline__ void for_pairs(F&& f) {
#pragma unroll
  for (int n = 0; n < kTiles; ++n)
#pragma unroll
    for (int m = 0; m < 2; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) f(m, n, h);
}

}  // namespace sfa::cuda
