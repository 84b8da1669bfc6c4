// Vectors of the instruction set that the including file is compiled for. Included only by files that are compiled
// once per instruction set, inside a namespace of their own: everything here is internal to that file, so that no
// wide instruction can reach code for narrower processors.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC's own headers start from undefined registers on purpose
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#define SFA_INLINE inline __attribute__((always_inline))
#define SFA_INLINE_LAMBDA __attribute__((always_inline))

#if defined(SFA_VECTOR_BYTES)  // tests try the wide code on narrower processors
#elif defined(__AVX512F__)
#define SFA_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define SFA_VECTOR_BYTES 32
#else
#define SFA_VECTOR_BYTES 16
#endif

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

// Storage of the half types: bits only, all arithmetic is in float.
struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

template <class S, int kBytes>
struct VectorOf {
  typedef S type __attribute__((vector_size(kBytes)));
};
template <class S>
using Vec = typename VectorOf<S, SFA_VECTOR_BYTES>::type;
template <class S>
constexpr int kLanes = SFA_VECTOR_BYTES / static_cast<int>(sizeof(S));
// 16-bit numbers that widen to one vector of 32-bit numbers.
using Narrow = typename VectorOf<uint16_t, SFA_VECTOR_BYTES / 2>::type;

template <class To, class From>
SFA_INLINE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(To));
  return to;
}

template <class V>
SFA_INLINE V load_raw(const void* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof(V));
  return v;
}

template <class V>
SFA_INLINE void store_raw(void* p, const V& v) {
  __builtin_memcpy(p, &v, sizeof(V));
}

template <class S>
SFA_INLINE Vec<S> broadcast(S s) {
  return s - Vec<S>{};  // s - 0 is s, also for -0
}

// One instruction, where compilers make two halves of it.
SFA_INLINE Vec<uint32_t> widen(Narrow n) {
#if defined(__AVX512F__)
  return bit_cast<Vec<uint32_t>>(_mm512_cvtepu16_epi32(bit_cast<__m256i>(n)));
#else
  return __builtin_convertvector(n, Vec<uint32_t>);
#endif
}
SFA_INLINE Narrow narrow(Vec<uint32_t> w) {
#if defined(__AVX512F__)
  return bit_cast<Narrow>(_mm512_cvtepi32_epi16(bit_cast<__m512i>(w)));
#else
  return __builtin_convertvector(w, Narrow);
#endif
}

SFA_INLINE Vec<float> to_float(Narrow bits, Bf16) { return bit_cast<Vec<float>>(widen(bits) << 16); }

SFA_INLINE Narrow from_float(Vec<float> v, Bf16) {
#if defined(__AVX512BF16__)
  return bit_cast<Narrow>(_mm512_cvtneps_pbh(bit_cast<__m512>(v)));
#else
  const Vec<uint32_t> u = bit_cast<Vec<uint32_t>>(v);
  const Vec<uint32_t> rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;  // to nearest, ties to even
  const Vec<uint32_t> quiet = (u >> 16) | 0x40;
  return narrow((u & 0x7fffffff) > 0x7f800000 ? quiet : rounded);
#endif
}

SFA_INLINE Vec<float> to_float(Narrow bits, Fp16) {
#if defined(__AVX512F__)
  return bit_cast<Vec<float>>(_mm512_cvtph_ps(bit_cast<__m256i>(bits)));
#elif defined(__AVX2__) && SFA_VECTOR_BYTES == 32
  return bit_cast<Vec<float>>(_mm256_cvtph_ps(bit_cast<__m128i>(bits)));
#else
  const Vec<uint32_t> u = widen(bits);
  // The exponent moves from bias 15 to bias 127 by a product, which is exact and normalises subnormals too.
  const Vec<float> finite = bit_cast<Vec<float>>((u & 0x7fff) << 13) * 0x1p112f;
  const Vec<uint32_t> special = ((u & 0x7fff) << 13) | 0x7f800000;
  const Vec<uint32_t> magnitude = (u & 0x7c00) == 0x7c00 ? special : bit_cast<Vec<uint32_t>>(finite);
  return bit_cast<Vec<float>>(magnitude | (u & 0x8000) << 16);
#endif
}

SFA_INLINE Narrow from_float(Vec<float> v, Fp16) {
#if defined(__AVX512F__)
  return bit_cast<Narrow>(_mm512_cvtps_ph(bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__) && SFA_VECTOR_BYTES == 32
  return bit_cast<Narrow>(_mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#else
  // Adding a power of two whose last place is that of the result lets the processor round; both products are exact
  // or overflow to the infinity that the result must be.
  const Vec<uint32_t> u = bit_cast<Vec<uint32_t>>(v);
  const Vec<float> scaled = bit_cast<Vec<float>>(u & 0x7fffffff) * 0x1p112f * 0x1p-110f;
  const Vec<uint32_t> twice = u + u;
  const Vec<uint32_t> exponent = twice & 0xff000000;
  const Vec<uint32_t> place = exponent < 0x71000000 ? Vec<uint32_t>{} + 0x71000000 : exponent;
  const Vec<uint32_t> sum = bit_cast<Vec<uint32_t>>(scaled + bit_cast<Vec<float>>((place >> 1) + 0x07800000));
  const Vec<uint32_t> finite = ((sum >> 13) & 0x7c00) + (sum & 0x0fff);
  return narrow((u >> 16 & 0x8000) | (twice > 0xff000000 ? Vec<uint32_t>{} + 0x7e00 : finite));
#endif
}

// load(p) and store(p, v) move one vector of the type that arithmetic on T uses: float for the half types, else T.
SFA_INLINE Vec<float> load(const float* p) { return load_raw<Vec<float>>(p); }
SFA_INLINE Vec<double> load(const double* p) { return load_raw<Vec<double>>(p); }
SFA_INLINE Vec<float> load(const Bf16* p) { return to_float(load_raw<Narrow>(p), Bf16{}); }
SFA_INLINE Vec<float> load(const Fp16* p) { return to_float(load_raw<Narrow>(p), Fp16{}); }
SFA_INLINE void store(float* p, Vec<float> v) { store_raw(p, v); }
SFA_INLINE void store(double* p, Vec<double> v) { store_raw(p, v); }
SFA_INLINE void store(Bf16* p, Vec<float> v) { store_raw(p, from_float(v, Bf16{})); }
SFA_INLINE void store(Fp16* p, Vec<float> v) { store_raw(p, from_float(v, Fp16{})); }

// The first n elements only; the rest are zeros. Never touches memory behind them.
template <class T>
SFA_INLINE auto load_first(const T* p, int64_t n) {
  T buffer[SFA_VECTOR_BYTES / sizeof(T)] = {};
  for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
  return load(buffer);
}

template <class T, class V>
SFA_INLINE void store_first(T* p, V v, int64_t n) {
  T buffer[SFA_VECTOR_BYTES / sizeof(T)];
  store(buffer, v);
  for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
}

template <int... kIndex>
struct Indices {};
template <int kCount, int... kIndex>
struct MakeIndices : MakeIndices<kCount - 1, kCount - 1, kIndex...> {};
template <int... kIndex>
struct MakeIndices<0, kIndex...> {
  using type = Indices<kIndex...>;
};

template <int kWidth, class V, int... kIndex>
SFA_INLINE V add_lanes(V v, Indices<kIndex...> lanes) {
  if constexpr (kWidth == 0)
    return v;
  else
    return add_lanes<kWidth / 2>(v + __builtin_shufflevector(v, v, (kIndex ^ kWidth)...), lanes);
}

template <class S>
SFA_INLINE S sum_of_lanes(Vec<S> v) {
  return add_lanes<kLanes<S> / 2>(v, typename MakeIndices<kLanes<S>>::type{})[0];
}

template <int kValue>
struct Int {
  static constexpr int value = kValue;
};

// Loads and stores of either a whole vector, known at compile time, or its first n elements.
template <class T, int N>
SFA_INLINE auto load_count(const T* p, Int<N>) {
  return load(p);
}
template <class T>
SFA_INLINE auto load_count(const T* p, int64_t n) {
  return load_first(p, n);
}
template <class T, class V, int N>
SFA_INLINE void store_count(T* p, V v, Int<N>) {
  store(p, v);
}
template <class T, class V>
SFA_INLINE void store_count(T* p, V v, int64_t n) {
  store_first(p, v, n);
}

// f(column, lanes) for all columns: whole vectors, then what is left.
template <class Acc, class F>
SFA_INLINE void for_lanes(int64_t n, F&& f) {
  int64_t c = 0;
  for (; c + kLanes<Acc> <= n; c += kLanes<Acc>) f(c, Int<kLanes<Acc>>{});
  if (c < n) f(c, n - c);
}

// One butterfly of a transposition in registers: swaps the off-diagonal blocks of size kStep between two rows.
template <int kStep, class V, int... kIndex>
SFA_INLINE void exchange(V& a, V& b, Indices<kIndex...>) {
  constexpr int kL = sizeof...(kIndex);
  const V low = __builtin_shufflevector(a, b, ((kIndex & kStep) ? kL + kIndex - kStep : kIndex)...);
  const V high = __builtin_shufflevector(a, b, ((kIndex & kStep) ? kL + kIndex : kIndex + kStep)...);
  a = low, b = high;
}

template <int kStep, int kL, class V>
SFA_INLINE void transpose(V (&rows)[kL]) {
  if constexpr (kStep < kL) {
#pragma GCC unroll 16
    for (int i = 0; i < kL; ++i)
      if ((i & kStep) == 0) exchange<kStep>(rows[i], rows[i + kStep], typename MakeIndices<kL>::type{});
    transpose<2 * kStep>(rows);
  }
}

}  // namespace
}  // namespace sfa::cpu::SFA_ISA_NAMESPACE
