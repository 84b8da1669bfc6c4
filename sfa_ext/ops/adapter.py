"""`torch.ops.sfa.fused_adapter` and its norm: checks, fake kernels, autograd and autocast.

    fused_adapter(x [..., D], w_down [d, D], b_down [d] | None, w_up [D, d], b_up [D] | None) -> [..., D]
        x + relu(x w_down^T + b_down) w_up^T + b_up
    fused_adapter_norm(residual [..., D], x, ..., b_up, norm_weight [D], norm_bias [D], eps) -> [..., D]
        residual + LayerNorm(fused_adapter(x, ...)); with x bfloat16 or float16 the residual, and with it the result,
        and the weights of the norm may be float32
    fused_adapter_backward(grad_out, x, w_down, b_down, w_up, output_mask [5]) -> five gradients, of x, w_down,
        b_down, w_up, b_up; an empty tensor for each that output_mask leaves out

All of one dtype (float32, float64, bfloat16, float16) and device. RuntimeError names an argument that is not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks, reference
from ._library import LIBRARY, below_autograd, register_autocast

_ops = torch.ops.sfa


def _fused_adapter_fake(x: Tensor, w_down: Tensor, b_down: Tensor | None, w_up: Tensor, b_up: Tensor | None) -> Tensor:
    checks.adapter(x, w_down, b_down, w_up, b_up)
    return x.new_empty(x.shape)


def _fused_adapter_backward_fake(grad_out, x, w_down, b_down, w_up, output_mask):
    checks.adapter_backward(grad_out, x, w_down, b_down, w_up, output_mask)
    shapes = (x.shape, w_down.shape, w_down.shape[:1], w_up.shape, w_up.shape[:1])
    return tuple(x.new_empty(shape if wanted else 0) for shape, wanted in zip(shapes, output_mask, strict=True))


def _fused_adapter_norm_fake(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps):
    checks.adapter_norm(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps)
    return residual.new_empty(residual.shape)


class _FusedAdapter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w_down, b_down, w_up, b_up):
        ctx.save_for_backward(x, w_down, b_down, w_up)
        with below_autograd():
            return _ops.fused_adapter(x, w_down, b_down, w_up, b_up)

    @staticmethod
    def backward(ctx, grad_out):
        return _wanted(_ops.fused_adapter_backward(grad_out, *ctx.saved_tensors, ctx.needs_input_grad), ctx)


class _FusedAdapterNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps):
        ctx.save_for_backward(x, w_down, b_down, w_up, b_up, norm_weight, norm_bias)
        ctx.eps = eps
        with below_autograd():
            return _ops.fused_adapter_norm(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps)

    @staticmethod
    def backward(ctx, grad_out):
        x, w_down, b_down, w_up, b_up, norm_weight, norm_bias = ctx.saved_tensors
        mask = ctx.needs_input_grad[1:]
        if not any(mask):
            return (grad_out, *[None] * 8)
        y = _ops.fused_adapter(x, w_down, b_down, w_up, b_up)
        grad_y, grad_weight, grad_bias = _norm_backward(grad_out, y, norm_weight, norm_bias, ctx.eps, mask)
        grads = _ops.fused_adapter_backward(grad_y, x, w_down, b_down, w_up, mask[:5]) if any(mask[:5]) else [None] * 5
        return _wanted((grad_out, *grads, grad_weight, grad_bias, None), ctx)


def _norm_backward(grad_out, y, norm_weight, norm_bias, eps, mask):
    """Gradients of y (in its dtype), norm_weight and norm_bias; computed in the widest dtype among them."""
    dtype = torch.promote_types(grad_out.dtype, torch.promote_types(norm_weight.dtype, norm_bias.dtype))
    width, wide = [y.shape[-1]], [t.to(dtype) for t in (grad_out, y, norm_weight, norm_bias)]
    _, mean, rstd = torch.native_layer_norm(wide[1], width, wide[2], wide[3], eps)
    wanted = [any(mask[:5]), mask[5], mask[6]]
    grads = torch.ops.aten.native_layer_norm_backward(
        wide[0].contiguous(), wide[1], width, mean, rstd, wide[2], wide[3], wanted
    )
    like = (y, norm_weight, norm_bias)
    return [None if grad is None else grad.to(t.dtype) for grad, t in zip(grads, like, strict=True)]


def _wanted(grads, ctx):
    return tuple(grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad, strict=True))


def _tracks(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _fused_adapter_autograd(x, w_down, b_down, w_up, b_up):
    checks.adapter(x, w_down, b_down, w_up, b_up)
    if _tracks(x, w_down, b_down, w_up, b_up):
        return _FusedAdapter.apply(x, w_down, b_down, w_up, b_up)
    with below_autograd():
        return _ops.fused_adapter(x, w_down, b_down, w_up, b_up)


def _fused_adapter_backward_autograd(grad_out, x, w_down, b_down, w_up, output_mask):
    checks.adapter_backward(grad_out, x, w_down, b_down, w_up, output_mask)
    if _tracks(grad_out, x, w_down, b_down, w_up):  # a double backward: rare enough to leave to torch
        return reference.fused_adapter_backward(grad_out, x, w_down, b_down, w_up, output_mask)
    with below_autograd():
        return _ops.fused_adapter_backward(grad_out, x, w_down, b_down, w_up, output_mask)


def _fused_adapter_norm_autograd(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps):
    args = (residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias)
    checks.adapter_norm(*args, eps)
    if _tracks(*args):
        return _FusedAdapterNorm.apply(*args, eps)
    with below_autograd():
        return _ops.fused_adapter_norm(*args, eps)


def _fused_adapter_autocast(dtype, *args):
    return _ops.fused_adapter(*(lowered(t, dtype) for t in args))


def _fused_adapter_norm_autocast(dtype, residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps):
    # As in eager: products in the low precision, the norm and the stream of residuals in what they came in.
    adapter = (lowered(t, dtype) for t in (x, w_down, b_down, w_up, b_up))
    norm = (t if t.dtype in (torch.float32, torch.float64) else t.to(dtype) for t in (residual, norm_weight, norm_bias))
    residual, norm_weight, norm_bias = norm
    return _ops.fused_adapter_norm(residual, *adapter, norm_weight, norm_bias, eps)


def lowered(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """The tensor as autocast hands it to a matrix product: float64 stays as it is."""
    return tensor if tensor is None or tensor.dtype == torch.float64 else tensor.to(dtype)


for _name, _fake, _autograd, _reference in (
    ("fused_adapter", _fused_adapter_fake, _fused_adapter_autograd, reference.fused_adapter),
    (
        "fused_adapter_backward",
        _fused_adapter_backward_fake,
        _fused_adapter_backward_autograd,
        reference.fused_adapter_backward,
    ),
    ("fused_adapter_norm", _fused_adapter_norm_fake, _fused_adapter_norm_autograd, reference.fused_adapter_norm),
):
    torch.library.register_fake(f"sfa::{_name}", _fake, lib=LIBRARY)
    LIBRARY.impl(_name, _autograd, "Autograd")
    LIBRARY.impl(_name, _reference, "CompositeExplicitAutograd")
register_autocast("fused_adapter", _fused_adapter_autocast)
register_autocast("fused_adapter_norm", _fused_adapter_norm_autocast)
