// The adapter's kernels for AMX against plain loops of double. Numbers of bfloat16 are small integers, so that every
// sum is exact and results must be equal, whatever the order. Those of float have all their bits, and results may be
// wrong by what adding up floats costs. With AddressSanitizer nothing beyond an array may be touched.
#include "emulated_amx.h"  // before the kernels, whose intrinsics it may replace
#define SFA_ISA_NAMESPACE amx
#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <type_traits>
#include <vector>

#include "cpu/adapter_outer.h"
#include "cpu/adapter_rows.h"

namespace {

using namespace sfa::cpu;
using namespace sfa::cpu::amx;
using Matrix = std::vector<double>;  // [rows, columns], row by row

std::mt19937 generator(0);
int failures = 0;

template <class T>
Matrix random_matrix(int64_t count, int most) {
  std::uniform_int_distribution<int> integer(-most, most);
  std::uniform_real_distribution<float> real(-most, most);
  Matrix out(count);
  for (double& v : out) v = std::is_same_v<T, Bf16> ? integer(generator) : real(generator);
  return out;
}

float rounded(double v, float) { return static_cast<float>(v); }
ShortFloat rounded(double v, ShortFloat) { return {static_cast<float>(v)}; }
Bf16 rounded(double v, Bf16) {
  const float f = static_cast<float>(v);
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  if (std::isnan(f)) return {0x7fc0};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
double exact(float v) { return v; }
double exact(ShortFloat v) { return v.value; }
double exact(Bf16 v) {
  const uint32_t bits = uint32_t{v.bits} << 16;
  float f;
  std::memcpy(&f, &bits, 4);
  return f;
}
template <class T>
std::vector<T> rounded(const Matrix& m) {
  std::vector<T> out;
  for (const double v : m) out.push_back(rounded(v, T{}));
  return out;
}

void expect(const char* what, double got, double wanted, double error = 0) {
  if (std::isnan(wanted) ? std::isnan(got) : got == wanted || std::abs(got - wanted) <= error) return;
  if (++failures <= 10) std::fprintf(stderr, "%s: %g instead of %g\n", what, got, wanted);
}
// What a product may be wrong by, of numbers of about 1: those of integers are exact, a short float has 16 bits.
template <class T>
constexpr double kError = std::is_same_v<T, Bf16> ? 0 : (std::is_same_v<T, float> ? 1e-6 : 3e-5);

// Sums of about `terms` products.
template <class T>
void expect(const char* what, const std::vector<T>& got, const Matrix& wanted, int64_t terms) {
  const double error = kError<T> * std::sqrt(static_cast<double>(terms));
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double w = exact(rounded(wanted[i], T{}));
    expect(what, exact(got[i]), w, error * std::max(1.0, std::abs(w)));
  }
}

// a [rows, k] times b [columns, k]^T, plus `plus` [columns]
Matrix times(const Matrix& a, const Matrix& b, int64_t k, const Matrix& plus) {
  const int64_t rows = a.size() / k, columns = b.size() / k;
  Matrix out(rows * columns);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      double sum = plus.empty() ? 0 : plus[c];
      for (int64_t i = 0; i < k; ++i) sum += a[r * k + i] * b[c * k + i];
      out[r * columns + c] = sum;
    }
  return out;
}
Matrix transposed(const Matrix& m, int64_t columns) {
  const int64_t rows = m.size() / columns;
  Matrix out(m.size());
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) out[c * rows + r] = m[r * columns + c];
  return out;
}

template <class T>
std::vector<uint32_t> packed(const Matrix& w, int64_t n, int64_t k, bool plain) {
  const std::vector<T> source = rounded<T>(w);
  std::vector<uint32_t> out(padded<T>(n) * words<T>(k), 0x7fc07fc0);  // NaN where nothing is written
  const int64_t panels = padded<T>(n) / kPanel<T>;
  if (plain)
    pack_plain<T>(source.data(), k, n, 0, panels, out.data());
  else
    pack_transposed<T>(source.data(), n, k, k, 0, panels, out.data());
  return out;
}
std::vector<float> widened(const Matrix& v) {
  std::vector<float> out((v.size() + 31) / 32 * 32);
  for (size_t i = 0; i < v.size(); ++i) out[i] = static_cast<float>(v[i]);
  return out;
}

template <class T>
struct Case {
  int64_t rows, width, hidden;
  Matrix x, w_down, b_down, w_up, b_up;
  Case(int64_t rows, int64_t width, int64_t hidden)
      : rows(rows),
        width(width),
        hidden(hidden),
        x(random_matrix<T>(rows * width, 2)),
        w_down(random_matrix<T>(hidden * width, 1)),
        b_down(random_matrix<T>(hidden, 3)),
        w_up(random_matrix<T>(width * hidden, 1)),
        b_up(random_matrix<T>(width, 3)) {}
  Matrix activation() const {
    Matrix h = times(x, w_down, width, b_down);
    for (double& v : h) v = exact(rounded(v < 0 ? 0 : v, T{}));
    return h;
  }
  std::vector<char> scratch() const {
    return std::vector<char>(Block<T>::scratch_bytes(width, hidden, false) + 64, 0x7f);
  }
};

char* aligned(std::vector<char>& memory) {
  return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
}

template <class T>
void try_forward(const Case<T>& c, bool infinite) {
  Case<T> used = c;
  if (infinite) {  // row 0 becomes infinite, not NaN, and all others keep their bits
    used.x[used.width / 2] = std::numeric_limits<double>::infinity();
    for (double& w : used.w_down) w = 1;
    for (double& w : used.w_up) w = 1;
  }
  const Matrix h = used.activation();
  Matrix wanted = times(h, used.w_up, used.hidden, used.b_up);
  for (size_t i = 0; i < wanted.size(); ++i) wanted[i] += used.x[i];
  const auto down = packed<T>(used.w_down, used.hidden, used.width, false),
             up = packed<T>(used.w_up, used.width, used.hidden, false);
  const auto bias_down = widened(used.b_down), bias_up = widened(used.b_up);
  const std::vector<T> x = rounded<T>(used.x);
  std::vector<T> out(used.rows * used.width), kept(used.rows * used.hidden);
  AdapterForward args{};
  args.width = used.width, args.hidden = used.hidden;
  args.x = x.data(), args.down = down.data(), args.up = up.data();
  args.bias_down = bias_down.data(), args.bias_up = bias_up.data();
  args.out = out.data(), args.activation = kept.data();
  auto scratch = used.scratch();
  forward<T>(args, 0, used.rows, aligned(scratch));
  expect("out", out, wanted, used.width * used.hidden);
  expect("activation", kept, h, used.width);
}

template <class T>
void try_norm(const Case<T>& c) {
  Matrix sums = times(c.activation(), c.w_up, c.hidden, c.b_up);
  const Matrix weight = random_matrix<T>(c.width, 2), bias = random_matrix<T>(c.width, 2);
  const std::vector<T> x = rounded<T>(c.x);
  const auto down = packed<T>(c.w_down, c.hidden, c.width, false), up = packed<T>(c.w_up, c.width, c.hidden, false);
  const auto bias_down = widened(c.b_down), bias_up = widened(c.b_up), w = widened(weight), b = widened(bias);
  std::vector<float> out(c.rows * c.width);
  const std::vector<float> residual(c.rows * c.width, 1.0f);
  AdapterForward args{};
  args.width = c.width, args.hidden = c.hidden, args.eps = 1e-5;
  args.x = x.data(), args.down = down.data(), args.up = up.data(), args.residual = residual.data();
  args.bias_down = bias_down.data(), args.bias_up = bias_up.data();
  args.norm_weight = w.data(), args.norm_bias = b.data(), args.out = out.data();
  auto scratch = c.scratch();
  forward_norm<T, float>(args, 0, c.rows, aligned(scratch));
  for (int64_t r = 0; r < c.rows; ++r) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < c.width; ++i) mean += (sums[r * c.width + i] += c.x[r * c.width + i]) / c.width;
    for (int64_t i = 0; i < c.width; ++i) variance += std::pow(sums[r * c.width + i] - mean, 2) / c.width;
    for (int64_t i = 0; i < c.width; ++i)
      expect("norm", out[r * c.width + i],
             1 + bias[i] + weight[i] * (sums[r * c.width + i] - mean) / std::sqrt(variance + 1e-5),
             1e-4 + 20 * kError<T>);
  }
}

template <class T>
void try_backward(const Case<T>& c, bool keep) {
  const Matrix grad = random_matrix<T>(c.rows * c.width, 1), h = c.activation();
  const auto down = packed<T>(c.w_down, c.hidden, c.width, false),
             up_plain = packed<T>(c.w_up, c.hidden, c.width, true),
             down_plain = packed<T>(c.w_down, c.width, c.hidden, true);
  const auto bias_down = widened(c.b_down);
  const std::vector<T> x = rounded<T>(c.x), g = rounded<T>(grad), kept = rounded<T>(h);
  std::vector<T> got_x(c.rows * c.width), got_hidden(c.rows * c.hidden), got_activation(c.rows * c.hidden);
  AdapterBackward args{};
  args.width = c.width, args.hidden = c.hidden;
  args.x = x.data(), args.grad_out = g.data(), args.down = down.data(), args.bias_down = bias_down.data();
  args.up_plain = up_plain.data(), args.down_plain = down_plain.data(), args.kept = keep ? kept.data() : nullptr;
  args.activation = got_activation.data(), args.grad_hidden = got_hidden.data(), args.grad_x = got_x.data();
  auto scratch = c.scratch();
  backward<T>(args, 0, c.rows, aligned(scratch));
  // Where the hidden numbers were computed once more, those decide which of them are positive.
  Matrix grad_hidden = times(grad, transposed(c.w_up, c.hidden), c.width, {});
  for (size_t i = 0; i < h.size(); ++i)
    grad_hidden[i] = (keep ? h[i] : exact(got_activation[i])) > 0 ? exact(rounded(grad_hidden[i], T{})) : 0;
  Matrix grad_x = times(grad_hidden, transposed(c.w_down, c.width), c.hidden, {});
  for (size_t i = 0; i < grad_x.size(); ++i) grad_x[i] += grad[i];
  expect("grad_x", got_x, grad_x, c.width * c.hidden);
  expect("grad_hidden", got_hidden, grad_hidden, c.width);
  if (!keep) expect("activation again", got_activation, h, c.width);

  std::vector<char> memory(outer_scratch<T>() + 64, 0x7f);
  std::vector<float> sums(c.hidden * c.width);
  std::vector<T> result(c.hidden * c.width);
  const AdapterOuter product{got_hidden.data(), c.hidden, x.data(), c.width, sums.data(), result.data()};
  const Matrix wanted = times(transposed(grad_hidden, c.hidden), transposed(c.x, c.width), c.rows, {});
  for (int64_t i = 0; i < c.hidden; i += kOuterRows<T>)
    for (int64_t j = 0; j < c.width; j += kOuterColumns)
      outer<T>(product, 0, c.rows, i, std::min(i + kOuterRows<T>, c.hidden), j, std::min(j + kOuterColumns, c.width),
               aligned(memory));
  expect("grad_w_down", result, wanted, c.rows * c.width);
}

template <class T>
bool try_all() {
  const int64_t shapes[][3] = {{1, 32, 32},   {31, 64, 16}, {32, 96, 64},  {33, 100, 7},    {70, 128, 50},
                               {300, 40, 64}, {64, 31, 33}, {800, 32, 16}, {257, 264, 130}, {2, 8, 300}};
  for (const auto& [rows, width, hidden] : shapes) {
    const Case<T> c(rows, width, hidden);
    try_forward(c, false);
    try_forward(c, true);
    try_norm(c);
    try_backward(c, false);
    try_backward(c, true);
    if (failures == 0) continue;
    std::fprintf(stderr, "%d numbers are wrong for %ld rows, D = %ld, d = %ld\n", failures, rows, width, hidden);
    return false;
  }
  return true;
}

}  // namespace

int main() {
  if (!try_all<Bf16>() || !try_all<float>() || !try_all<ShortFloat>()) return 1;
  std::printf("%ld multiplications of tiles\n", emulated_amx::multiplications);
  return emulated_amx::multiplications > 0 ? 0 : 1;
}
