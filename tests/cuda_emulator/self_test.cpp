// The emulator on a kernel of its own, against double. Arguments: what to check ("product" unless given).
#include "self_test.cuh"

#include "check.h"

using namespace sfa::cuda;

namespace {

void product(int64_t m, int64_t n, int64_t depth) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  check::Buffer<Half> a(m * depth), b(n * depth);
  for (int64_t i = 0; i < a.size(); ++i) a[i] = from_float<Half>(normal(random));
  for (int64_t i = 0; i < b.size(); ++i) b[i] = from_float<Half>(normal(random));
  std::vector<double> exact(m * n, 0), exact_sums(m, 0);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t k = 0; k < depth; ++k)
        exact[i * n + j] += double{to_float(a[i * depth + k])} * to_float(b[j * depth + k]);
      exact_sums[i] += exact[i * n + j];
    }
  std::vector<float> first;
  for (const emulator::Order& order : emulator::all_orders()) {
    emulator::order = order;
    const std::string name = check::order_name(order);
    check::Buffer<float> c(m * n), sums(m);
    for (int64_t i = 0; i < m; ++i) sums[i] = 0;
    int finished = 0;
    run_self_test(a.data(), b.data(), c.data(), sums.data(), &finished, m, n, depth);
    const std::vector<float> values = c.values(), row_sums = sums.values();
    check::expect_close({values.begin(), values.end()}, exact, 1e-6, name);
    check::expect_close({row_sums.begin(), row_sums.end()}, exact_sums, 1e-5, name + ", row sums");
    check::expect(finished == static_cast<int>((n + 31) / 32 * ((m + 31) / 32)), name + ": every block counted");
    c.expect_intact("c");
    sums.expect_intact("row_sums");
    if (first.empty()) first = values;
    check::expect(check::same_bits(values, first), name + ": other bits than in the first order");
  }
}

// Faults that the emulator itself must report.
__global__ void lanes_disagree() {
  if (threadIdx.x < 16)
    __shfl_sync(~0u, 1, 0);
  else
    __syncwarp();
}
__global__ void barrier_in_a_branch() {
  if (threadIdx.x % 2 == 0)
    __syncthreads();
  else
    __syncwarp();
}
__global__ void write_behind_shared() { dynamic_shared<int>()[32] = 1; }
__global__ void exit_under_a_shuffle() {
  if (threadIdx.x != 3) __shfl_xor_sync(~0u, 1, 1);
}
__global__ void unaligned_copy(const char* from) {
  cp_async_16(dynamic_shared(), from + 8, true);
  cp_async_commit();
  cp_async_wait<0>();
}
__global__ void copy_not_waited_for(const char* from) {
  cp_async_16(dynamic_shared(), from, true);
  cp_async_commit();
}

void fault(const std::string& name) {
  alignas(16) static const char memory[64] = {};
  if (name == "lanes_disagree") launch("lanes_disagree", &lanes_disagree, 1, 32, 128, nullptr);
  if (name == "barrier_in_a_branch") launch("barrier_in_a_branch", &barrier_in_a_branch, 1, 32, 128, nullptr);
  if (name == "write_behind_shared") launch("write_behind_shared", &write_behind_shared, 1, 1, 128, nullptr);
  if (name == "exit_under_a_shuffle") launch("exit_under_a_shuffle", &exit_under_a_shuffle, 1, 32, 128, nullptr);
  if (name == "unaligned_copy") launch("unaligned_copy", &unaligned_copy, 1, 1, 128, nullptr, &memory[0]);
  if (name == "copy_not_waited_for")
    launch("copy_not_waited_for", &copy_not_waited_for, 1, 1, 128, nullptr, &memory[0]);
}

}  // namespace

int main(int count, char** arguments) {
  if (count > 1) {
    fault(arguments[1]);
    return 0;
  }
  product(32, 32, 32);
  product(77, 45, 160);
  return check::exit_status();
}
