"""The operators as chains of torch's own: they serve every device that has no kernel of ours, and double backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fused_adapter(x: Tensor, w_down: Tensor, b_down: Tensor | None, w_up: Tensor, b_up: Tensor | None) -> Tensor:
    return fused_adapter_keep(x, w_down, b_down, w_up, b_up)[0]


def fused_adapter_keep(
    x: Tensor, w_down: Tensor, b_down: Tensor | None, w_up: Tensor, b_up: Tensor | None
) -> tuple[Tensor, Tensor]:
    hidden = F.relu(F.linear(x, w_down, b_down))
    return x + F.linear(hidden, w_up, b_up), hidden


def fused_adapter_backward(
    grad_out: Tensor,
    x: Tensor,
    w_down: Tensor,
    b_down: Tensor | None,
    w_up: Tensor,
    output_mask: list[bool],
    hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, w_down, b_down, w_up and b_up; an empty tensor for each that `output_mask` leaves out."""
    want_x, want_down, want_b_down, want_up, want_b_up = output_mask
    grad, rows = grad_out.flatten(0, -2) if grad_out.dim() > 1 else grad_out[None], x.reshape(-1, x.shape[-1])
    if hidden is None:
        hidden = F.relu(F.linear(rows, w_down, b_down))
    hidden = hidden.reshape(-1, w_down.shape[0])
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
    return fused_adapter_norm_keep(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps, False)[0]


def fused_adapter_norm_keep(
    residual: Tensor,
    x: Tensor,
    w_down: Tensor,
    b_down: Tensor | None,
    w_up: Tensor,
    b_up: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    keep_adapted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    y, hidden = fused_adapter_keep(x, w_down, b_down, w_up, b_up)
    normed = F.layer_norm(y.to(norm_weight.dtype), y.shape[-1:], norm_weight, norm_bias, eps)
    return (residual + normed).to(residual.dtype), hidden, y if keep_adapted else x.new_empty(0)


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
    hidden: Tensor | None = None,
    adapted: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, w_down, b_down, w_up, b_up, norm_weight, norm_bias; empty where `output_mask` leaves one out."""
    dtype = torch.promote_types(grad_out.dtype, norm_weight.dtype)
    grad, weight = grad_out.to(dtype).reshape(-1, x.shape[-1]), norm_weight.to(dtype)
    if hidden is None:
        hidden = F.relu(F.linear(x, w_down, b_down))
    if adapted is None:
        adapted = x + F.linear(hidden, w_up, b_up)
    y = adapted.to(dtype).reshape(grad.shape)
    centred = y - y.mean(-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    normed, gw = centred * scale, grad * weight
    grad_y = (gw - gw.mean(-1, keepdim=True) - normed * (gw * normed).mean(-1, keepdim=True)) * scale
    grads = fused_adapter_backward(grad_y.to(x.dtype).view(x.shape), x, w_down, b_down, w_up, output_mask[:5], hidden)
    grads += tuple(
        value.sum(0).to(norm_weight.dtype) if wanted else norm_weight.new_empty(0)
        for value, wanted in zip((grad * normed, grad), output_mask[5:], strict=True)
    )
    return grads
