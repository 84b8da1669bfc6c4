// The adapter and its gradients in double, on numbers as a type holds them.
#pragma once

#include <cmath>
#include <random>
#include <vector>

#include "check.h"
#include "cuda/number.cuh"

namespace check {

using Numbers = std::vector<double>;

template <class T>
void draw(Buffer<T>& to, std::mt19937& random, double scale) {
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < to.size(); ++i) to[i] = sfa::cuda::from_float<T>(static_cast<float>(normal(random) * scale));
}

template <class T>
Numbers numbers(Buffer<T>& from) {
  Numbers out(from.size());
  for (int64_t i = 0; i < from.size(); ++i) out[i] = sfa::cuda::to_float(from[i]);
  return out;
}

// a [n, depth] b [m, depth]^T
inline Numbers times_transposed(const Numbers& a, const Numbers& b, int64_t n, int64_t m, int64_t depth) {
  Numbers out(n * m);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < m; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < depth; ++k) sum += a[i * depth + k] * b[j * depth + k];
      out[i * m + j] = sum;
    }
  return out;
}

template <class T>
Numbers transposed(const std::vector<T>& a, int64_t n, int64_t m) {
  Numbers out(n * m);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < m; ++j) out[j * n + i] = a[i * m + j];
  return out;
}

// relu(x w_down^T + b_down); an empty b_down is none.
inline Numbers hidden_of(const Numbers& x, const Numbers& w_down, const Numbers& b_down, int64_t rows, int64_t width,
                         int64_t hidden) {
  Numbers out = times_transposed(x, w_down, rows, hidden, width);
  for (int64_t i = 0; i < rows * hidden; ++i)
    out[i] = std::max(out[i] + (b_down.empty() ? 0 : b_down[i % hidden]), 0.0);
  return out;
}

inline Numbers adapter_of(const Numbers& x, const Numbers& hidden_numbers, const Numbers& w_up, const Numbers& b_up,
                          int64_t rows, int64_t width, int64_t hidden) {
  Numbers out = times_transposed(hidden_numbers, w_up, rows, width, hidden);
  for (int64_t i = 0; i < rows * width; ++i) out[i] += x[i] + (b_up.empty() ? 0 : b_up[i % width]);
  return out;
}

struct Moments {
  double mean, scale;
};
inline Moments moments_of_row(const double* y, int64_t width, double eps) {
  double mean = 0, variance = 0;
  for (int64_t j = 0; j < width; ++j) mean += y[j] / width;
  for (int64_t j = 0; j < width; ++j) variance += (y[j] - mean) * (y[j] - mean) / width;
  return {mean, 1 / std::sqrt(variance + eps)};
}

}  // namespace check
