"""`torch.ops.sfa.fused_adapter` and its norm: checks, fake kernels, autograd and autocast.

    fused_adapter(x [..., D], w_down [d, D], b_down [d] | None, w_up [D, d], b_up [D] | None) -> [..., D]
        x + relu(x w_down^T + b_down) w_up^T + b_up
    fused_adapter_norm(residual [..., D], x, ..., b_up, norm_weight [D], norm_bias [D], eps) -> [..., D]
        residual + LayerNorm(fused_adapter(x, ...)); with x bfloat16 or float16 the residual, and with it the result,
        and the weights of the norm may be float32
    fused_adapter_backward(grad_out, x, w_down, b_down, w_up, output_mask [5]) -> five gradients, of x, w_down,
        b_down, w_up, b_up; an empty tensor for each that output_mask leaves out
    fused_adapter_norm_backward(grad_out, x, ..., b_up, norm_weight, eps, output_mask [7]) -> seven gradients, of x,
        w_down, b_down, w_up, b_up, norm_weight, norm_bias, likewise; that of the residual is grad_out itself

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


def _fused_adapter_norm_backward_fake(grad_out, x, w_down, b_down, w_up, b_up, norm_weight, eps, output_mask):
    checks.adapter_norm_backward(grad_out, x, w_down, b_down, w_up, b_up, norm_weight, eps, output_mask)
    adapter = _fused_adapter_backward_fake(x, x, w_down, b_down, w_up, output_mask[:5])
    norm = tuple(norm_weight.new_empty(norm_weight.shape if wanted else 0) for wanted in output_mask[5:])
    return adapter + norm


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
        ctx.save_for_backward(x, w_down, b_down, w_up, b_up, norm_weight)
        ctx.eps = eps
        with below_autograd():
            return _ops.fused_adapter_norm(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps)

    @staticmethod
    def backward(ctx, grad_out):
        mask = ctx.needs_input_grad[1:8]
        if not any(mask):
            return (grad_out, *[None] * 8)
        grads = _ops.fused_adapter_norm_backward(grad_out, *ctx.saved_tensors, ctx.eps, mask)
        return _wanted((grad_out, *grads, None), ctx)


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


def _fused_adapter_norm_backward_autograd(grad_out, x, w_down, b_down, w_up, b_up, norm_weight, eps, output_mask):
    args = (grad_out, x, w_down, b_down, w_up, b_up, norm_weight)
    checks.adapter_norm_backward(*args, eps, output_mask)
    if _tracks(*args):
        return reference.fused_adapter_norm_backward(*args, eps, output_mask)
    with below_autograd():
        return _ops.fused_adapter_norm_backward(*args, eps, output_mask)


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


_KERNELS = {  # fake, Autograd; what serves other devices has the operator's name in reference.py
    "fused_adapter": (_fused_adapter_fake, _fused_adapter_autograd),
    "fused_adapter_backward": (_fused_adapter_backward_fake, _fused_adapter_backward_autograd),
    "fused_adapter_norm": (_fused_adapter_norm_fake, _fused_adapter_norm_autograd),
    "fused_adapter_norm_backward": (_fused_adapter_norm_backward_fake, _fused_adapter_norm_backward_autograd),
}
for _name, (_fake, _autograd) in _KERNELS.items():
    torch.library.register_fake(f"sfa::{_name}", _fake, lib=LIBRARY)
    LIBRARY.impl(_name, _autograd, "Autograd")
    LIBRARY.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")
register_autocast("fused_adapter", _fused_adapter_autocast)
register_autocast("fused_adapter_norm", _fused_adapter_norm_autocast)
