// fused_adapter_norm, fused_adapter_norm_keep and the first pass of fused_adapter_norm_backward.
//
// The adapter's result y stays in shared memory, whole rows of it, rounded as eager rounds it. Then warps take the
// moments of rows, and threads the units of columns: with the weights of the norm in registers they go down the rows.
//
// Floor of the forward, in bytes of device memory: x and the residual read, the result written, 3 N D elements, and
// 4 N D d operations. Floor of the backward's pass: x and grad_out read, the gradient of y written, 3 N D; beside them
// 8 D bytes a block for the sums of the norm's own gradients. grad_out is read twice, the second time from L2.
#pragma once

#include "adapter_tile.cuh"

namespace sfa::cuda {

template <class T>
struct AdapterNormArgs {
  AdapterArgs<T> adapter;
  bool wide_stream;         // the residual, and what has its type, is float
  bool wide_norm;           // the norm's weights are float
  const void* norm_weight;  // [D]
  float eps;

  const void* residual;   // forward: [rows, D]
  const void* norm_bias;  // forward: [D]
  void* out;              // forward: [rows, D]

  const void* grad_out;  // backward: [rows, D]; null in the forward
  T* grad_sum;           // backward: [rows, D], gradient of y
  float* norm_parts;     // backward: [tiles, 2, D], sums of grad_out normed, and of grad_out; or null
};

// The numbers of one unit (16 bytes) of T, as float.
template <class T>
struct Unit {
  static constexpr int kSize = kUnitBytes / sizeof(T);
  float v[kSize];
};

template <class T>
__device__ __forceinline__ Unit<T> load_unit(const void* from) {
  const uint4 words = *static_cast<const uint4*>(from);
  const uint32_t parts[4] = {words.x, words.y, words.z, words.w};
  Unit<T> out;
#pragma unroll
  for (int i = 0; i < Unit<T>::kSize; ++i) {
    if constexpr (sizeof(T) == 4)
      out.v[i] = __uint_as_float(parts[i]);
    else
      out.v[i] = to_float(T{static_cast<uint16_t>(parts[i / 2] >> i % 2 * 16)});
  }
  return out;
}

template <class T>
__device__ __forceinline__ void store_unit(void* to, const Unit<T>& from) {
  uint32_t parts[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (sizeof(T) == 4)
      parts[i] = __float_as_uint(from.v[i]);
    else
      parts[i] = from_float<T>(from.v[2 * i]).bits | static_cast<uint32_t>(from_float<T>(from.v[2 * i + 1]).bits) << 16;
  }
  *static_cast<uint4*>(to) = make_uint4(parts[0], parts[1], parts[2], parts[3]);
}

// As many numbers as a unit of T holds, at number `at` of an array of T, or of float where `wide`.
template <class T>
__device__ __forceinline__ Unit<T> load_numbers(const void* from, int64_t at, bool wide) {
  if constexpr (sizeof(T) == 2) {
    if (wide) {
      Unit<T> out;
      const float* numbers = static_cast<const float*>(from) + at;
      const Unit<float> low = load_unit<float>(numbers), high = load_unit<float>(numbers + 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        out.v[i] = low.v[i];
        out.v[i + 4] = high.v[i];
      }
      return out;
    }
  }
  return load_unit<T>(static_cast<const T*>(from) + at);
}
template <class T>
__device__ __forceinline__ void store_numbers(void* to, int64_t at, bool wide, const Unit<T>& from) {
  if constexpr (sizeof(T) == 2) {
    if (wide) {
      float* numbers = static_cast<float*>(to) + at;
      Unit<float> low, high;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        low.v[i] = from.v[i];
        high.v[i] = from.v[i + 4];
      }
      store_unit<float>(numbers, low);
      return store_unit<float>(numbers + 4, high);
    }
  }
  store_unit<T>(static_cast<T*>(to) + at, from);
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int bits = 16; bits > 0; bits /= 2) v += __shfl_xor_sync(~0u, v, bits);
  return v;
}

template <class Math, int kChunk>
using Tile = AdapterTile<Math, kChunk, false>;

// The norm of a tile whose y stands in the panels of x.
template <class Math, int kChunk>
class NormOfTile {
 public:
  using T = typename Math::Number;
  static constexpr int kSize = Unit<T>::kSize;

  __device__ NormOfTile(const AdapterNormArgs<T>& args, const AdapterLayout& layout, Tile<Math, kChunk>& tile)
      : args_(args), layout_(layout), tile_(tile), units_(args.adapter.width / kSize) {
    const int64_t left = args.adapter.rows - tile.first_row();
    rows_ = left < layout.block_rows ? static_cast<int>(left) : layout.block_rows;
    moments_ = reinterpret_cast<float4*>(dynamic_shared() + layout.hidden_at);  // hidden numbers are no longer needed
  }

  __device__ void run() {
    take_moments();
    __syncthreads();
    if (args_.grad_out == nullptr)
      finish_forward();
    else
      finish_backward();
  }

 private:
  __device__ Unit<T> y(int row, int unit) {
    return load_unit<T>(unit_at(tile_.x_panel(unit / kUnits), row, unit % kUnits));
  }
  __device__ int64_t at(int row, int unit) const {
    return (tile_.first_row() + row) * args_.adapter.width + unit * kSize;
  }

  // Of each row: mean, 1 / deviation, and in the backward the means of grad w and of grad w normed.
  __device__ void take_moments() {
    const int lane = threadIdx.x % 32;
    const float scale = 1.0f / args_.adapter.width;
    for (int row = threadIdx.x / 32; row < rows_; row += blockDim.x / 32) {
      const auto mean_of = [&](auto&& term) {
        float sum = 0;
#pragma unroll 1
        for (int unit = lane; unit < units_; unit += 32) sum += term(unit, y(row, unit));
        return warp_sum(sum) * scale;
      };
      const float mean = mean_of([](int, const Unit<T>& v) {
        float sum = 0;
        for (int i = 0; i < kSize; ++i) sum += v.v[i];
        return sum;
      });
      const float variance = mean_of([&](int, const Unit<T>& v) {
        float sum = 0;
        for (int i = 0; i < kSize; ++i) sum += (v.v[i] - mean) * (v.v[i] - mean);
        return sum;
      });
      float4 moments = make_float4(mean, 1.0f / sqrtf(variance + args_.eps), 0, 0);
      if (args_.grad_out != nullptr) {
        float with_normed = 0;
        moments.z = mean_of([&](int unit, const Unit<T>& v) {
          const Unit<T> grad = load_numbers<T>(args_.grad_out, at(row, unit), args_.wide_stream);
          const Unit<T> weight = load_numbers<T>(args_.norm_weight, unit * kSize, args_.wide_norm);
          float sum = 0;
          for (int i = 0; i < kSize; ++i) {
            sum += grad.v[i] * weight.v[i];
            with_normed += grad.v[i] * weight.v[i] * ((v.v[i] - mean) * moments.y);
          }
          return sum;
        });
        moments.w = warp_sum(with_normed) * scale;
      }
      if (lane == 0) moments_[row] = moments;
    }
  }

  __device__ int groups() const { return units_ < static_cast<int>(blockDim.x) ? blockDim.x / units_ : 1; }

  __device__ void finish_forward() {
    const int groups = this->groups();
    for (int item = threadIdx.x; item < units_ * groups; item += blockDim.x) {
      const int unit = item % units_;
      const Unit<T> weight = load_numbers<T>(args_.norm_weight, unit * kSize, args_.wide_norm);
      const Unit<T> bias = load_numbers<T>(args_.norm_bias, unit * kSize, args_.wide_norm);
#pragma unroll 1
      for (int row = item / units_; row < rows_; row += groups) {
        const Unit<T> residual = load_numbers<T>(args_.residual, at(row, unit), args_.wide_stream);
        const Unit<T> v = y(row, unit);
        const float4 moments = moments_[row];
        Unit<T> out;
        for (int i = 0; i < kSize; ++i)
          out.v[i] = residual.v[i] + ((v.v[i] - moments.x) * moments.y * weight.v[i] + bias.v[i]);
        store_numbers<T>(args_.out, at(row, unit), args_.wide_stream, out);
      }
    }
  }

  __device__ void finish_backward() {
    const int groups = this->groups();
    // Sums down the rows. Set here too: as undefined numbers they would occupy registers back to the kernel's start.
    Unit<T> of_weight{}, of_bias{};
    for (int item = threadIdx.x; item < units_ * groups; item += blockDim.x) {
      const int unit = item % units_;
      const Unit<T> weight = load_numbers<T>(args_.norm_weight, unit * kSize, args_.wide_norm);
      for (int i = 0; i < kSize; ++i) of_weight.v[i] = of_bias.v[i] = 0;
#pragma unroll 1
      for (int row = item / units_; row < rows_; row += groups) {
        const Unit<T> grad = load_numbers<T>(args_.grad_out, at(row, unit), args_.wide_stream);
        const Unit<T> v = y(row, unit);
        const float4 moments = moments_[row];
        Unit<T> out;
        for (int i = 0; i < kSize; ++i) {
          const float normed = (v.v[i] - moments.x) * moments.y;
          out.v[i] = (grad.v[i] * weight.v[i] - moments.z - normed * moments.w) * moments.y;
          of_weight.v[i] += grad.v[i] * normed;
          of_bias.v[i] += grad.v[i];
        }
        store_unit<T>(args_.grad_sum + at(row, unit), out);
      }
      if (groups == 1 && args_.norm_parts != nullptr) keep_sums(part(0), unit, of_weight, of_bias);
    }
    if (groups > 1 && args_.norm_parts != nullptr) sum_groups(groups, of_weight, of_bias);
  }

  __device__ float* part(int which) {
    return args_.norm_parts + (2 * static_cast<int64_t>(tile_.number()) + which) * args_.adapter.width;
  }

  __device__ void keep_sums(float* to, int unit, const Unit<T>& of_weight, const Unit<T>& of_bias) {
    for (int i = 0; i < kSize; ++i) {
      to[unit * kSize + i] = of_weight.v[i];
      to[args_.adapter.width + unit * kSize + i] = of_bias.v[i];
    }
  }

  // Adds up the groups of threads that shared out the rows; their sums, [groups, 2, D], fit into the panels of x.
  __device__ void sum_groups(int groups, const Unit<T>& of_weight, const Unit<T>& of_bias) {
    const int size = 2 * args_.adapter.width;
    float* sums = reinterpret_cast<float*>(dynamic_shared());
    __syncthreads();  // y has been read
    const int item = threadIdx.x;
    if (item < units_ * groups) keep_sums(sums + item / units_ * size, item % units_, of_weight, of_bias);
    __syncthreads();
    for (int i = threadIdx.x; i < size; i += blockDim.x) {
      float sum = 0;
      for (int group = 0; group < groups; ++group) sum += sums[group * size + i];
      part(0)[i] = sum;
    }
  }

  const AdapterNormArgs<T>& args_;
  const AdapterLayout& layout_;
  Tile<Math, kChunk>& tile_;
  const int units_;  // of a row
  int rows_;
  float4* moments_;
};

template <class Math, int kChunk>
__global__ void __launch_bounds__(kMaxThreads, kBlocks<kChunk>)
    adapter_norm_kernel(const __grid_constant__ AdapterNormArgs<typename Math::Number> args,
                        const __grid_constant__ AdapterLayout layout) {
  if constexpr (kArch >= Math::kOldest) {
    Tile<Math, kChunk> tile(args.adapter, layout);
    tile.fetch_weights();
    for (int number = blockIdx.x; number < layout.tiles; number += gridDim.x) {
      tile.run(number, [](int, char*) {});
      __syncthreads();  // y is whole
      NormOfTile<Math, kChunk>(args, layout, tile).run();
      __syncthreads();  // all have read the panels that the next tile overwrites
    }
  }
}

// out[i] = sum of parts[0][i], parts[1][i], ..., parts[count - 1][i], in an order that depends on count alone: each of
// the block's rows of threads adds every 32nd, then the first row adds theirs. parts[k] is at parts + k * step.
constexpr int kSumRows = 32;

template <class T>
__global__ void __launch_bounds__(32 * kSumRows)
    sum_parts_kernel(const float* parts, int64_t count, int64_t step, int width, T* out) {
  float* sums = dynamic_shared<float>();  // [kSumRows, 32]
  const int column = blockIdx.x * 32 + threadIdx.x;
  float sum = 0;
  if (column < width) {
#pragma unroll 4
    for (int64_t k = threadIdx.y; k < count; k += kSumRows) sum += parts[k * step + column];
  }
  sums[threadIdx.y * 32 + threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y != 0 || column >= width) return;
  for (int row = 1; row < kSumRows; ++row) sum += sums[row * 32 + threadIdx.x];
  out[column] = from_float<T>(sum);
}

}  // namespace sfa::cuda
