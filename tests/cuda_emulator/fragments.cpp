// The emulator's matrix instructions against tables of where a lane's numbers stand: written in other terms than
// matrix.h and the kernels, so that one mistake is not made in all three. Argument: the instruction.
//
// A table goes from bits to strides, as CUTLASS writes layouts: bit i of the lane (first), then bit i of the number's
// place among those that the lane holds, says how far the number is from the matrix's first; columns are `rows` apart.
#include <functional>

#include "check.h"
#include "cuda/builtins.cuh"

using namespace sfa::cuda;

namespace {

struct Layout {
  std::vector<int> lane, place;  // strides of bits; a lane's stride of -1 picks one of several products

  int at(int of_lane, int of_place) const {
    int sum = 0;
    for (size_t i = 0; i < lane.size(); ++i) sum += (of_lane >> i & 1) * std::max(lane[i], 0);
    for (size_t i = 0; i < place.size(); ++i) sum += (of_place >> i & 1) * place[i];
    return sum;
  }
  int product(int of_lane) const {
    int number = 0, bit = 0;
    for (size_t i = 0; i < lane.size(); ++i)
      if (lane[i] < 0) number |= (of_lane >> i & 1) << bit++;
    return number;
  }
  int places() const { return 1 << place.size(); }
};

struct Instruction {
  int m, n, k, products;
  Layout a, b, c;  // [m, k], [n, k], [m, n]
  bool wide;       // numbers of a and b fill a register
  uint32_t (*bits)(float);
  std::function<void(float*, const uint32_t*, const uint32_t*)> run;
};

uint32_t half(float v) { return float_to_half(v); }
uint32_t bfloat16(float v) { return float_to_bfloat16(v); }
uint32_t single(float v) { return __float_as_uint(v); }

// Row l / 4, and from column l % 4 on: pairs of numbers (half types, results), or single ones.
const Layout kPairsOf16{{32, 64, 1, 2, 4}, {16, 8}}, kPairsOf8{{16, 32, 1, 2, 4}, {8}};
const Layout kRows{{1, 2, -1, -1, 4}, {8, 16}};  // the lane's own row, four products

template <class Run>
Instruction instruction(int m, int n, int k, int products, Layout a, Layout b, Layout c, uint32_t (*bits)(float),
                        Run run) {
  return {m, n, k, products, a, b, c, bits == single, bits, run};
}

template <int kD, int kA, int kB, void (*kRun)(float (&)[kD], const uint32_t (&)[kA], const uint32_t (&)[kB])>
void call(float* d, const uint32_t* a, const uint32_t* b) {
  kRun(*reinterpret_cast<float (*)[kD]>(d), *reinterpret_cast<const uint32_t (*)[kA]>(a),
       *reinterpret_cast<const uint32_t (*)[kB]>(b));
}

Instruction named(const std::string& name) {
  const Layout a16{{32, 64, 1, 2, 4}, {16, 8, 128}}, b16{{16, 32, 1, 2, 4}, {8, 64}};
  if (name == "m16n8k16.f16")
    return instruction(16, 8, 16, 1, a16, b16, kPairsOf16, half, &call<4, 4, 2, mma_m16n8k16_half>);
  if (name == "m16n8k16.bf16")
    return instruction(16, 8, 16, 1, a16, b16, kPairsOf16, bfloat16, &call<4, 4, 2, mma_m16n8k16_bfloat16>);
  if (name == "m16n8k8.f16")
    return instruction(
        16, 8, 8, 1, kPairsOf16, kPairsOf8, kPairsOf16, half, [](float* d, const uint32_t* a, const uint32_t* b) {
          mma_m16n8k8_half(*reinterpret_cast<float (*)[4]>(d), *reinterpret_cast<const uint32_t (*)[2]>(a), *b);
        });
  if (name == "m16n8k8.tf32")
    return instruction(16, 8, 8, 1, {{16, 32, 1, 2, 4}, {8, 64}}, {{8, 16, 1, 2, 4}, {32}}, kPairsOf16, single,
                       &call<4, 4, 2, mma_m16n8k8_tf32>);
  if (name == "m8n8k4.f16")
    return instruction(8, 8, 4, 4, kRows, kRows, {{1, 16, -1, -1, 4}, {8, 2, 32}}, half,
                       &call<8, 2, 2, mma_m8n8k4_half>);
  emulator::fail("no instruction " + name);
}

// A lane's numbers by its layout, packed into registers.
void pack(const Instruction& of, const Layout& layout, const float* matrices, int size, int lane, uint32_t* to) {
  for (int i = 0; i < layout.places(); ++i) {
    const uint32_t bits = of.bits(matrices[layout.product(lane) * size + layout.at(lane, i)]);
    if (of.wide)
      to[i] = bits;
    else
      to[i / 2] = (i % 2 == 0 ? 0 : to[i / 2]) | bits << i % 2 * 16;
  }
}

__global__ void multiply(const Instruction* of, const float* a, const float* b, float* c) {
  const int lane = threadIdx.x;
  uint32_t left[4], right[2];
  float sum[8];
  pack(*of, of->a, a, of->m * of->k, lane, left);
  pack(*of, of->b, b, of->n * of->k, lane, right);
  const int size = of->m * of->n, product = of->c.product(lane);
  for (int i = 0; i < of->c.places(); ++i) sum[i] = c[product * size + of->c.at(lane, i)];
  of->run(sum, left, right);
  for (int i = 0; i < of->c.places(); ++i) c[product * size + of->c.at(lane, i)] = sum[i];
}

// Each number of a fragment's matrices is some lane's, once.
void expect_complete(const Layout& layout, int size, int products, const std::string& name) {
  std::vector<int> holders(size * products, 0);
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < layout.places(); ++i) ++holders[layout.product(lane) * size + layout.at(lane, i)];
  check::expect(std::all_of(holders.begin(), holders.end(), [](int n) { return n == 1; }), name + " is covered once");
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) emulator::fail("wants the name of an instruction");
  const Instruction of = named(arguments[1]);
  expect_complete(of.a, of.m * of.k, of.products, "a");
  expect_complete(of.b, of.n * of.k, of.products, "b");
  expect_complete(of.c, of.m * of.n, of.products, "c");
  std::mt19937 random(1);
  // Whole numbers: products and sums are exact in every type.
  const auto drawn = [&](int size) {
    std::vector<float> out(size * of.products);
    for (float& v : out) v = static_cast<float>(static_cast<int>(random() % 17) - 8);
    return out;
  };
  const std::vector<float> a = drawn(of.m * of.k), b = drawn(of.n * of.k);
  std::vector<float> c = drawn(of.m * of.n), exact = c;
  for (int p = 0; p < of.products; ++p)
    for (int i = 0; i < of.m; ++i)
      for (int j = 0; j < of.n; ++j)
        for (int k = 0; k < of.k; ++k)
          exact[p * of.m * of.n + j * of.m + i] +=
              a[p * of.m * of.k + k * of.m + i] * b[p * of.n * of.k + k * of.n + j];
  launch("multiply", &multiply, 1, 32, 0, nullptr, &of, a.data(), b.data(), c.data());
  check::expect(check::same_bits(c, exact), "d = a b + c");
  return check::exit_status();
}
