// exp of vectors, for softmax. See vec.h for how this file is compiled.
#pragma once

#include "vec.h"

namespace sfa::cpu::SFA_ISA_NAMESPACE {
namespace {

template <class S>
struct Exponent;
template <>
struct Exponent<float> {
  using Bits = int32_t;
  static constexpr float kRound = 0x1.8p23f;  // added to a number, it leaves the nearest integer in the last bits
  static constexpr float kHigh = 0x1.62e4p-1f, kLow = 0x1.7f7d1cp-20f;  // ln 2 in two parts, the first of few bits
  static constexpr float kLowest = -87.0f;
  static constexpr int kMantissa = 23, kBias = 127, kTerms = 7;
};
template <>
struct Exponent<double> {
  using Bits = int64_t;
  static constexpr double kRound = 0x1.8p52;
  static constexpr double kHigh = 0x1.62e42fefap-1, kLow = 0x1.cf79abc9e3b3ap-40;
  static constexpr double kLowest = -708.0;
  static constexpr int kMantissa = 52, kBias = 1023, kTerms = 13;
};

constexpr double factorial(int n) { return n == 0 ? 1 : n * factorial(n - 1); }

template <class S, int kTerm = 0>
SFA_INLINE Vec<S> taylor(Vec<S> r) {  // the sum of r^n / n! over n from kTerm on, divided by r^kTerm
  constexpr S kFactor = static_cast<S>(1 / factorial(kTerm));
  if constexpr (kTerm == Exponent<S>::kTerms)
    return broadcast(kFactor);
  else
    return taylor<S, kTerm + 1>(r) * r + kFactor;
}

// exp(x) for x <= 0, to two units in the last place; what is below the smallest normal number becomes about that
// number, NaN stays NaN.
template <class S>
SFA_INLINE Vec<S> exp_of_negative(Vec<S> x) {
  using E = Exponent<S>;
  using Bits = Vec<typename E::Bits>;
  x = x < E::kLowest ? broadcast(E::kLowest) : x;
  const Vec<S> shifted = x * S(1.4426950408889634) + E::kRound, whole = shifted - E::kRound;
  const Vec<S> r = (x - whole * E::kHigh) - whole * E::kLow;
  const Bits power = bit_cast<Bits>(shifted) - bit_cast<Bits>(broadcast(E::kRound));
  return taylor<S>(r) * bit_cast<Vec<S>>((power + E::kBias) << E::kMantissa);
}

template <int kWidth, class V, int... kLane>
SFA_INLINE V largest_of(V v, Indices<kLane...> lanes) {
  if constexpr (kWidth == 0) {
    return v;
  } else {
    const V other = __builtin_shufflevector(v, v, (kLane ^ kWidth)...);
    return largest_of<kWidth / 2>(other > v ? other : v, lanes);
  }
}

template <class S>
SFA_INLINE S largest_lane(Vec<S> v) {
  return largest_of<kLanes<S> / 2>(v, typename MakeIndices<kLanes<S>>::type{})[0];
}

}  // namespace
}  // namespace sfa::cpu::SFA_ISA_NAMESPACE
