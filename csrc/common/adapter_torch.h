// The adapter as a chain of torch's own operators: for processors whose matrix units torch can use and our kernels
// cannot, and for sizes and number types that the CUDA kernels do not serve. Whether results depend on the number of
// threads is then up to torch.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>
#include <vector>

namespace sfa {

using torch::stable::Tensor;

// The result and the hidden numbers; with the norm also what it worked on.
std::tuple<Tensor, Tensor> torch_adapter(const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down,
                                         const Tensor& w_up, const std::optional<Tensor>& b_up);

std::tuple<Tensor, Tensor, Tensor> torch_adapter_norm(const Tensor& residual, const Tensor& x, const Tensor& w_down,
                                                      const std::optional<Tensor>& b_down, const Tensor& w_up,
                                                      const std::optional<Tensor>& b_up, const Tensor& norm_weight,
                                                      const Tensor& norm_bias, double eps);

// residual + LayerNorm(y)
Tensor torch_norm(const Tensor& residual, const Tensor& y, const Tensor& norm_weight, const Tensor& norm_bias,
                  double eps);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> torch_adapter_backward(
    const Tensor& grad_out, const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down,
    const Tensor& w_up, const std::vector<bool>& output_mask, const std::optional<Tensor>& hidden);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> torch_adapter_norm_backward(
    const Tensor& grad_out, const Tensor& x, const Tensor& w_down, const std::optional<Tensor>& b_down,
    const Tensor& w_up, const std::optional<Tensor>& b_up, const Tensor& norm_weight, double eps,
    const std::vector<bool>& output_mask, const std::optional<Tensor>& hidden, const std::optional<Tensor>& adapted);

}  // namespace sfa
