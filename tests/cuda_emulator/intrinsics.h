// CUDA's built-in functions and vector types for the emulator; matrix instructions stand in matrix.h.
#pragma once

#include <bit>
#include <cmath>
#include <limits>

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Barriers and fences
inline void __syncthreads() { emulator::barrier(); }
inline int __syncthreads_count(int value) { return emulator::barrier(value != 0); }
inline int __syncthreads_or(int value) { return emulator::barrier(value != 0) != 0; }
inline int __syncthreads_and(int value) { return emulator::barrier(value == 0) == 0; }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __syncwarp(unsigned mask = ~0u) {
  emulator::meet("__syncwarp", mask, nullptr, nullptr, [](const emulator::Meeting&) {});
}

namespace emulator {

// Lane i of the meeting receives what lane from(i, argument of i) brought; its own where that one is not there.
template <class T, class From>
T shuffle(const char* operation, unsigned mask, T value, int argument, int width, From from) {
  struct In {
    T value;
    int argument, width;
  } in{value, argument, width};
  T out;
  meet(operation, mask, &in, &out, [&](const Meeting& m) {
    for (int lane = 0; lane < 32; ++lane) {
      if ((m.mask >> lane & 1) == 0) continue;
      const In& mine = *static_cast<const In*>(m.in[lane]);
      const int base = lane / mine.width * mine.width;
      int source = from(lane, mine.argument, base, mine.width);
      if (source < base || source >= base + mine.width) source = lane;
      if ((m.mask >> source & 1) == 0) fail(std::string(operation) + " reads from a lane outside its mask");
      *static_cast<T*>(m.out[lane]) = static_cast<const In*>(m.in[source])->value;
    }
  });
  return out;
}

// Every lane receives the bits of the lanes that brought true.
inline unsigned vote(const char* operation, unsigned mask, bool value) {
  unsigned out = 0;
  meet(operation, mask, &value, &out, [](const Meeting& m) {
    unsigned bits = 0;
    for (int lane = 0; lane < 32; ++lane)
      if ((m.mask >> lane & 1) != 0 && *static_cast<const bool*>(m.in[lane])) bits |= 1u << lane;
    for (int lane = 0; lane < 32; ++lane)
      if ((m.mask >> lane & 1) != 0) *static_cast<unsigned*>(m.out[lane]) = bits;
  });
  return out;
}

}  // namespace emulator

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  return emulator::shuffle("__shfl_sync", mask, value, source, width,
                           [](int, int s, int base, int w) { return base + (s & (w - 1)); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
  return emulator::shuffle("__shfl_xor_sync", mask, value, bits, width,
                           [](int lane, int b, int, int) { return lane ^ b; });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulator::shuffle("__shfl_up_sync", mask, value, static_cast<int>(delta), width,
                           [](int lane, int d, int, int) { return lane - d; });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return emulator::shuffle("__shfl_down_sync", mask, value, static_cast<int>(delta), width,
                           [](int lane, int d, int, int) { return lane + d; });
}
inline unsigned __ballot_sync(unsigned mask, int value) { return emulator::vote("__ballot_sync", mask, value != 0); }
inline int __any_sync(unsigned mask, int value) { return emulator::vote("__any_sync", mask, value != 0) != 0; }
inline int __all_sync(unsigned mask, int value) { return emulator::vote("__all_sync", mask, value == 0) == 0; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  unsigned out = 0;
  emulator::meet("__match_any_sync", mask, &value, &out, [](const emulator::Meeting& m) {
    for (int lane = 0; lane < 32; ++lane) {
      if ((m.mask >> lane & 1) == 0) continue;
      unsigned same = 0;
      for (int other = 0; other < 32; ++other)
        if ((m.mask >> other & 1) != 0 && *static_cast<const T*>(m.in[lane]) == *static_cast<const T*>(m.in[other]))
          same |= 1u << other;
      *static_cast<unsigned*>(m.out[lane]) = same;
    }
  });
  return out;
}

// Bits and numbers
inline int __popc(unsigned v) { return std::popcount(v); }
inline int __popcll(unsigned long long v) { return std::popcount(v); }
inline int __clz(int v) { return std::countl_zero(static_cast<unsigned>(v)); }
inline int __clzll(long long v) { return std::countl_zero(static_cast<unsigned long long>(v)); }
inline int __ffs(int v) { return v == 0 ? 0 : std::countr_zero(static_cast<unsigned>(v)) + 1; }
inline int __ffsll(long long v) { return v == 0 ? 0 : std::countr_zero(static_cast<unsigned long long>(v)) + 1; }
inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline int __float_as_int(float v) { return std::bit_cast<int>(v); }
inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline float __int_as_float(int v) { return std::bit_cast<float>(v); }
inline long long __double_as_longlong(double v) { return std::bit_cast<long long>(v); }
inline double __longlong_as_double(long long v) { return std::bit_cast<double>(v); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float rsqrtf(float v) { return 1.0f / std::sqrt(v); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T value) {
  *p = value;
}

// Atomics, each returning the old value
namespace emulator {
template <class T, class F>
T replace(T* p, F f) {
  const T old = *p;
  *p = f(old);
  return old;
}
}  // namespace emulator
template <class T>
T atomicAdd(T* p, T value) {
  return emulator::replace(p, [&](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicSub(T* p, T value) {
  return emulator::replace(p, [&](T old) { return static_cast<T>(old - value); });
}
template <class T>
T atomicMax(T* p, T value) {
  return emulator::replace(p, [&](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* p, T value) {
  return emulator::replace(p, [&](T old) { return value < old ? value : old; });
}
template <class T>
T atomicOr(T* p, T value) {
  return emulator::replace(p, [&](T old) { return old | value; });
}
template <class T>
T atomicAnd(T* p, T value) {
  return emulator::replace(p, [&](T old) { return old & value; });
}
template <class T>
T atomicExch(T* p, T value) {
  return emulator::replace(p, [&](T) { return value; });
}
template <class T>
T atomicCAS(T* p, T compare, T value) {
  return emulator::replace(p, [&](T old) { return old == compare ? value : old; });
}
