"""The operators as chains of torch's own: they serve every device that has no kernel of ours, and double backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fused_adapter(x: Tensor, w_down: Tensor, b_down: Tensor | None, w_up: Tensor, b_up: Tensor | None) -> Tensor:
    return x + F.linear(F.relu(F.linear(x, w_down, b_down)), w_up, b_up)


def fused_adapter_backward(
    grad_out: Tensor, x: Tensor, w_down: Tensor, b_down: Tensor | None, w_up: Tensor, output_mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, w_down, b_down, w_up and b_up; an empty tensor for each that `output_mask` leaves out."""
    want_x, want_down, want_b_down, want_up, want_b_up = output_mask
    grad, rows = grad_out.flatten(0, -2) if grad_out.dim() > 1 else grad_out[None], x.reshape(-1, x.shape[-1])
    hidden = F.relu(F.linear(rows, w_down, b_down))
    grad_hidden = torch.where(hidden <= 0, 0, grad @ w_up)
    return (
        grad_out + (grad_hidden @ w_down).view(x.shape) if want_x else x.new_empty(0),
        grad_hidden.t() @ rows if want_down else x.new_empty(0),
        grad_hidden.sum(0) if want_b_down else x.new_empty(0),
        grad.t() @ hidden if want_up else x.new_empty(0),
        grad.sum(0) if want_b_up else x.new_empty(0),
    )


def fused_adapter_norm(
    residual: Tensor,
    x: Tensor,
    w_down: Tensor,
    b_down: Tensor | None,
    w_up: Tensor,
    b_up: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
) -> Tensor:
    y = fused_adapter(x, w_down, b_down, w_up, b_up).to(norm_weight.dtype)
    return (residual + F.layer_norm(y, y.shape[-1:], norm_weight, norm_bias, eps)).to(residual.dtype)


def fused_adapter_norm_backward(
    grad_out: Tensor,
    x: Tensor,
    w_down: Tensor,
    b_down: Tensor | None,
    w_up: Tensor,
    b_up: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, w_down, b_down, w_up, b_up, norm_weight, norm_bias; empty where `output_mask` leaves one out."""
    dtype = torch.promote_types(grad_out.dtype, norm_weight.dtype)
    grad, weight = grad_out.to(dtype).reshape(-1, x.shape[-1]), norm_weight.to(dtype)
    y = fused_adapter(x, w_down, b_down, w_up, b_up).to(dtype).view(grad.shape)
    centred = y - y.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    normed, gw = centred * scale, grad * weight
    grad_y = (gw - gw.mean(-1, keepdim=True) - normed * (gw * normed).mean(-1, keepdim=True)) * scale
    grads = fused_adapter_backward(grad_y.to(x.dtype).view(x.shape), x, w_down, b_down, w_up, output_mask[:5])
    grads += tuple(
        value.sum(0).to(norm_weight.dtype) if wanted else norm_weight.new_empty(0)
        for value, wanted in zip((grad * normed, grad), output_mask[5:], strict=True)
    )
    return grads
