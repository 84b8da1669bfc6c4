// The kernels of fused_adapter against double.
#pragma once

#include "adapter_case.h"
#include "cuda/adapter_launch.h"

namespace check {

using namespace sfa::cuda;

struct Case {
  int64_t rows, width, hidden;
  Device device;
  double bound;
};

inline std::string name_of(const char* what, const emulator::Order& order) {
  return std::string(what) + ", " + order_name(order);
}

template <class T>
AdapterArgs<T> arguments_of(const Case& c, Buffer<T>& x, Buffer<T>& w_down, Buffer<T>& w_up, Buffer<T>& out) {
  AdapterArgs<T> args{};
  args.rows = c.rows;
  args.width = static_cast<int>(c.width);
  args.hidden = static_cast<int>(c.hidden);
  args.x = x.data();
  args.w_down = w_down.data();
  args.w_up = w_up.data();
  args.out = out.data();
  return args;
}

// The result, without the hidden numbers and with them, with biases and without.
template <class Math>
void forward(const Case& c, bool with_bias) {
  using T = typename Math::Number;
  std::mt19937 random(with_bias ? 1 : 2);
  const auto [rows, width, hidden, device, bound] = c;
  Buffer<T> x(rows * width), w_down(hidden * width), b_down(with_bias ? hidden : 0), w_up(width * hidden),
      b_up(with_bias ? width : 0);
  draw(x, random, 1);
  draw(w_down, random, 1 / std::sqrt(width));
  draw(b_down, random, 1);
  draw(w_up, random, 1 / std::sqrt(hidden));
  draw(b_up, random, 1);
  const Numbers exact_hidden = hidden_of(numbers(x), numbers(w_down), numbers(b_down), rows, width, hidden);
  const Numbers exact = adapter_of(numbers(x), exact_hidden, numbers(w_up), numbers(b_up), rows, width, hidden);
  const auto plan = plan_adapter<T>(device, rows, width, hidden, false, false);
  expect(plan.has_value(), "there is a plan");
  if (!plan) return;
  std::printf("block_rows %d, x %s, weights %s, %d stages, %d bytes, %d blocks\n", plan->layout.block_rows,
              plan->layout.x_resident ? "stays" : "streams", plan->layout.weights_resident ? "stay" : "stream",
              plan->layout.stages, plan->layout.shared_bytes, plan->blocks);
  std::vector<T> first;
  for (const emulator::Order& order : emulator::all_orders()) {
    emulator::order = order;
    Buffer<T> out(rows * width), kept(rows * hidden);
    AdapterArgs<T> args = arguments_of(c, x, w_down, w_up, out);
    args.b_down = with_bias ? b_down.data() : nullptr;
    args.b_up = with_bias ? b_up.data() : nullptr;
    launch_adapter<Math>(*plan, args, nullptr);
    expect_close(numbers(out), exact, bound, name_of("result", order));
    out.expect_intact("out");
    if (first.empty()) first = out.values();
    expect(same_bits(out.values(), first), name_of("other bits than in the first order", order));
    if (order.seed != 0 || with_bias) continue;  // the hidden numbers alone, once more without a result
    args.hidden_only = true;
    args.hidden_out = kept.data();
    args.hidden_step = hidden;
    launch_adapter<Math>(*plan, args, nullptr);
    expect_close(numbers(kept), exact_hidden, bound, name_of("hidden numbers", order));
    kept.expect_intact("hidden_out");
  }
}

// grad_x, the gradient of the hidden numbers, and these; their mask computed, or loaded.
template <class Math>
void backward(const Case& c, bool load_mask) {
  using T = typename Math::Number;
  std::mt19937 random(3);
  const auto [rows, width, hidden, device, bound] = c;
  Buffer<T> x(rows * width), grad(rows * width), w_down(hidden * width), b_down(hidden), w_up(width * hidden);
  draw(x, random, 1);
  draw(grad, random, 1);
  draw(w_down, random, 1 / std::sqrt(width));
  draw(b_down, random, 1);
  draw(w_up, random, 1 / std::sqrt(hidden));
  Buffer<T> up_transposed(hidden * width), down_transposed(width * hidden), kept(rows * hidden);
  for (int64_t i = 0; i < width; ++i)
    for (int64_t j = 0; j < hidden; ++j) {
      up_transposed[j * width + i] = w_up[i * hidden + j];
      down_transposed[i * hidden + j] = w_down[j * width + i];
    }
  const Numbers exact_hidden = hidden_of(numbers(x), numbers(w_down), numbers(b_down), rows, width, hidden);
  // What lies within rounding of zero may be dead or alive: the mask is compared by itself, gradients with its help.
  for (int64_t i = 0; i < rows * hidden; ++i) kept[i] = from_float<T>(static_cast<float>(exact_hidden[i]));
  const auto exact_gradients = [&](const Numbers& mask) {
    Numbers grad_hidden = times_transposed(numbers(grad), numbers(up_transposed), rows, hidden, width);
    for (int64_t i = 0; i < rows * hidden; ++i) grad_hidden[i] = mask[i] > 0 ? grad_hidden[i] : 0;
    Numbers grad_x = adapter_of(numbers(grad), grad_hidden, numbers(down_transposed), {}, rows, width, hidden);
    return std::pair(grad_hidden, grad_x);
  };
  const auto plan = plan_adapter<T>(device, rows, width, hidden, false, !load_mask);
  expect(plan.has_value(), "there is a plan for the gradients");
  if (!plan) return;
  const int64_t step = hidden + 8;
  std::vector<T> first;
  for (const emulator::Order& order : emulator::all_orders()) {
    emulator::order = order;
    Buffer<T> grad_x(rows * width), grad_hidden(rows * hidden), mask(rows * step);
    AdapterArgs<T> args = arguments_of(c, grad, up_transposed, down_transposed, grad_x);
    args.hidden_out = grad_hidden.data();
    args.hidden_step = hidden;
    args.masked = true;
    if (load_mask) {
      args.mask = kept.data();
    } else {
      args.mask_x = x.data();
      args.mask_w_down = w_down.data();
      args.mask_b_down = b_down.data();
      args.mask_out = mask.data();
      args.mask_step = step;
    }
    launch_adapter<Math>(*plan, args, nullptr);
    Numbers alive = numbers(kept);
    if (!load_mask) {
      for (int64_t i = 0; i < rows * hidden; ++i) alive[i] = to_float(mask[i / hidden * step + i % hidden]);
      expect_close(alive, exact_hidden, bound, name_of("hidden numbers", order));
      mask.expect_intact("mask_out");
    }
    const auto [exact_hidden_gradient, exact_grad_x] = exact_gradients(alive);
    expect_close(numbers(grad_hidden), exact_hidden_gradient, bound, name_of("hidden gradient", order));
    expect_close(numbers(grad_x), exact_grad_x, bound, name_of("grad_x", order));
    grad_x.expect_intact("grad_x");
    grad_hidden.expect_intact("grad_hidden");
    if (first.empty()) first = grad_x.values();
    expect(same_bits(grad_x.values(), first), name_of("other bits than in the first order", order));
  }
}

// Infinity in a row of x of which every hidden number dies: the rest of its result is finite, as in eager.
template <class Math>
void infinity(const Case& c) {
  using T = typename Math::Number;
  std::mt19937 random(4);
  const auto [rows, width, hidden, device, bound] = c;
  Buffer<T> x(rows * width), w_down(hidden * width), w_up(width * hidden), out(rows * width);
  draw(x, random, 1);
  draw(w_down, random, 1 / std::sqrt(width));
  draw(w_up, random, 1 / std::sqrt(hidden));
  x[0] = from_float<T>(std::numeric_limits<float>::infinity());
  for (int64_t j = 0; j < hidden; ++j) w_down[j * width] = from_float<T>(-1.0f);
  const auto plan = plan_adapter<T>(device, rows, width, hidden, false, false);
  expect(plan.has_value(), "there is a plan");
  if (!plan) return;
  emulator::order = {};
  launch_adapter<Math>(*plan, arguments_of(c, x, w_down, w_up, out), nullptr);
  bool same = true;
  for (int64_t j = 0; j < width; ++j) same = same && to_float(out[j]) == to_float(x[j]);
  expect(same, "a row whose hidden numbers all die of infinity is left as it is");
}

// Arguments of the program: rows, D, d, bytes of shared memory that a block may have, processors.
inline Case read_case(int count, char** arguments, double bound) {
  if (count != 6) emulator::fail("wants rows, D, d, bytes of shared memory and processors");
  const auto number = [&](int i) { return std::atoi(arguments[i]); };
  return {number(1), number(2), number(3), {kArch, number(5), number(4), number(4) + 1024}, bound};
}

template <class Math>
int test_adapter(const Case& c) {
  forward<Math>(c, true);
  forward<Math>(c, false);
  backward<Math>(c, false);
  backward<Math>(c, true);
  infinity<Math>(c);
  return exit_status();
}

}  // namespace check
