// The kernels of fused_adapter_norm against double.
#pragma once

#include "adapter_test.h"

namespace check {

// Everything but x in numbers of its own; residual and norm in Stream, the type of x or float.
template <class Math, class Stream>
struct NormProblem {
  using T = typename Math::Number;
  static constexpr double kEps = 1e-5;
  const Case& c;
  Buffer<T> x, w_down, b_down, w_up, b_up;
  Buffer<Stream> residual, norm_weight, norm_bias;
  Numbers y;

  explicit NormProblem(const Case& of)
      : c(of),
        x(of.rows * of.width),
        w_down(of.hidden * of.width),
        b_down(of.hidden),
        w_up(of.width * of.hidden),
        b_up(of.width),
        residual(of.rows * of.width),
        norm_weight(of.width),
        norm_bias(of.width) {
    std::mt19937 random(5);
    draw(x, random, 1);
    draw(w_down, random, 1 / std::sqrt(c.width));
    draw(b_down, random, 1);
    draw(w_up, random, 1 / std::sqrt(c.hidden));
    draw(b_up, random, 1);
    draw(residual, random, 1);
    draw(norm_weight, random, 1);
    draw(norm_bias, random, 1);
    const Numbers hidden = hidden_of(numbers(x), numbers(w_down), numbers(b_down), c.rows, c.width, c.hidden);
    y = adapter_of(numbers(x), hidden, numbers(w_up), numbers(b_up), c.rows, c.width, c.hidden);
  }

  AdapterNormArgs<T> arguments() {
    AdapterNormArgs<T> args{};
    args.adapter.rows = c.rows;
    args.adapter.width = static_cast<int>(c.width);
    args.adapter.hidden = static_cast<int>(c.hidden);
    args.adapter.x = x.data();
    args.adapter.w_down = w_down.data();
    args.adapter.b_down = b_down.data();
    args.adapter.w_up = w_up.data();
    args.adapter.b_up = b_up.data();
    args.wide_stream = args.wide_norm = !kSame<Stream, T>;
    args.norm_weight = norm_weight.data();
    args.eps = static_cast<float>(kEps);
    return args;
  }
};

template <class Math, class Stream>
void norm_forward(const Case& c) {
  NormProblem<Math, Stream> problem(c);
  const Numbers residual = numbers(problem.residual), weight = numbers(problem.norm_weight),
                bias = numbers(problem.norm_bias);
  Numbers exact(c.rows * c.width);
  for (int64_t i = 0; i < c.rows; ++i) {
    const Moments moments = moments_of_row(&problem.y[i * c.width], c.width, problem.kEps);
    for (int64_t j = 0; j < c.width; ++j) {
      const int64_t at = i * c.width + j;
      exact[at] = residual[at] + (problem.y[at] - moments.mean) * moments.scale * weight[j] + bias[j];
    }
  }
  const auto plan = plan_adapter<typename Math::Number>(c.device, c.rows, c.width, c.hidden, true, false);
  expect(plan.has_value(), "there is a plan");
  if (!plan) return;
  std::vector<Stream> first;
  for (const emulator::Order& order : emulator::all_orders()) {
    emulator::order = order;
    Buffer<Stream> out(c.rows * c.width);
    AdapterNormArgs<typename Math::Number> args = problem.arguments();
    args.residual = problem.residual.data();
    args.norm_bias = problem.norm_bias.data();
    args.out = out.data();
    launch_adapter_norm<Math>(*plan, args, nullptr);
    expect_close(numbers(out), exact, c.bound, name_of("result", order));
    out.expect_intact("out");
    if (first.empty()) first = out.values();
    expect(same_bits(out.values(), first), name_of("other bits than in the first order", order));
  }
}

template <class Math, class Stream>
void norm_backward(const Case& c) {
  using T = typename Math::Number;
  NormProblem<Math, Stream> problem(c);
  const int64_t rows = c.rows, width = c.width;
  const Numbers grad = numbers(problem.residual), weight = numbers(problem.norm_weight);
  Numbers exact(rows * width), exact_weight(width, 0), exact_bias(width, 0);
  for (int64_t i = 0; i < rows; ++i) {
    const Moments moments = moments_of_row(&problem.y[i * width], width, problem.kEps);
    double mean = 0, with_normed = 0;
    Numbers normed(width);
    for (int64_t j = 0; j < width; ++j) {
      normed[j] = (problem.y[i * width + j] - moments.mean) * moments.scale;
      mean += grad[i * width + j] * weight[j] / width;
      with_normed += grad[i * width + j] * weight[j] * normed[j] / width;
      exact_weight[j] += grad[i * width + j] * normed[j];
      exact_bias[j] += grad[i * width + j];
    }
    for (int64_t j = 0; j < width; ++j)
      exact[i * width + j] = (grad[i * width + j] * weight[j] - mean - normed[j] * with_normed) * moments.scale;
  }
  const auto plan = plan_adapter<T>(c.device, rows, width, c.hidden, true, false);
  expect(plan.has_value(), "there is a plan");
  if (!plan) return;
  const int64_t tiles = plan->layout.tiles;
  std::vector<Stream> first;
  for (const emulator::Order& order : emulator::all_orders()) {
    emulator::order = order;
    Buffer<T> grad_sum(rows * width);
    Buffer<float> parts(tiles * 2 * width);
    Buffer<Stream> of_weight(width), of_bias(width);
    AdapterNormArgs<T> args = problem.arguments();
    args.grad_out = problem.residual.data();
    args.grad_sum = grad_sum.data();
    args.norm_parts = parts.data();
    launch_adapter_norm<Math>(*plan, args, nullptr);
    launch_sum_parts(parts.data(), tiles, 2 * width, static_cast<int>(width), of_weight.data(), nullptr);
    launch_sum_parts(parts.data() + width, tiles, 2 * width, static_cast<int>(width), of_bias.data(), nullptr);
    expect_close(numbers(grad_sum), exact, c.bound, name_of("gradient of y", order));
    expect_close(numbers(of_weight), exact_weight, c.bound, name_of("gradient of the norm's weight", order));
    expect_close(numbers(of_bias), exact_bias, c.bound, name_of("gradient of the norm's bias", order));
    grad_sum.expect_intact("grad_sum");
    parts.expect_intact("norm_parts");
    of_weight.expect_intact("grad_norm_weight");
    if (first.empty()) first = of_weight.values();
    expect(same_bits(of_weight.values(), first), name_of("other bits than in the first order", order));
  }
}

template <class Math, class Stream>
int test_adapter_norm(const Case& c) {
  norm_forward<Math, Stream>(c);
  norm_backward<Math, Stream>(c);
  return exit_status();
}

}  // namespace check
