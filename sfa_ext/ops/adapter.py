"""`torch.ops.sfa.fused_adapter` and its norm: checks, fake kernels, autograd and autocast.

    fused_adapter(x [..., D], w_down [d, D], b_down [d] | None, w_up [D, d], b_up [D] | None) -> [..., D]
        x + relu(x w_down^T + b_down) w_up^T + b_up
    fused_adapter_norm(residual [..., D], x, ..., b_up, norm_weight [D], norm_bias [D], eps) -> [..., D]
        residual + LayerNorm(fused_adapter(x, ...)); with x bfloat16 or float16 the residual, and with it the result,
        and the weights of the norm may be float32
    fused_adapter_backward(grad_out, x, w_down, b_down, w_up, output_mask [5], hidden=None) -> five gradients
        of x, w_down, b_down, w_up, b_up; an empty tensor for each that output_mask leaves out
    fused_adapter_norm_backward(grad_out, x, ..., b_up, norm_weight, eps, output_mask [7], hidden=None, adapted=None)
        -> seven of x, w_down, b_down, w_up, b_up, norm_weight, norm_bias; that of the residual is grad_out itself
    fused_adapter_keep: the arguments of fused_adapter -> (result, hidden [..., d])
    fused_adapter_norm_keep: those of fused_adapter_norm, keep_adapted -> (result, hidden, adapted [..., D])
        hidden, relu(x w_down^T + b_down), and adapted, what the norm works on, spare the backward a product each;
        without keep_adapted the latter is empty

All of one dtype (float32, float64, bfloat16, float16) and device. RuntimeError names an argument that is not.

Products of float32 keep all 24 bits unless torch is allowed fewer (torch.set_float32_matmul_precision): then GPUs may
use TF32 (torch.backends.cuda.matmul.fp32_precision) and AMX 16 bits (torch.backends.mkldnn.matmul.fp32_precision).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks, reference
from ._library import LIBRARY, below_autograd, register_autocast, tracks
from .backends import register_portable

_ops = torch.ops.sfa
_WIDE = 64  # hidden numbers from which on a product of theirs takes longer than fetching its result


def _fused_adapter_fake(x: Tensor, w_down: Tensor, b_down: Tensor | None, w_up: Tensor, b_up: Tensor | None) -> Tensor:
    checks.adapter(x, w_down, b_down, w_up, b_up)
    return x.new_empty(x.shape)


def _fused_adapter_keep_fake(x, w_down, b_down, w_up, b_up):
    return _fused_adapter_fake(x, w_down, b_down, w_up, b_up), x.new_empty((*x.shape[:-1], w_down.shape[0]))


def _fused_adapter_backward_fake(grad_out, x, w_down, b_down, w_up, output_mask, hidden=None):
    checks.adapter_backward(grad_out, x, w_down, b_down, w_up, output_mask, hidden)
    return _gradients_fake(x, w_down, w_up, output_mask)


def _fused_adapter_norm_fake(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps):
    checks.adapter_norm(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps)
    return residual.new_empty(residual.shape)


def _fused_adapter_norm_keep_fake(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps, keep_adapted):
    out = _fused_adapter_norm_fake(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps)
    hidden = x.new_empty((*x.shape[:-1], w_down.shape[0]))
    return out, hidden, x.new_empty(x.shape if keep_adapted else 0)


def _fused_adapter_norm_backward_fake(
    grad_out, x, w_down, b_down, w_up, b_up, norm_weight, eps, output_mask, hidden=None, adapted=None
):
    args = (grad_out, x, w_down, b_down, w_up, b_up, norm_weight, eps)
    checks.adapter_norm_backward(*args, output_mask, hidden, adapted)
    norm = tuple(norm_weight.new_empty(norm_weight.shape if wanted else 0) for wanted in output_mask[5:])
    return _gradients_fake(x, w_down, w_up, output_mask[:5]) + norm


def _gradients_fake(x, w_down, w_up, mask):
    shapes = (x.shape, w_down.shape, w_down.shape[:1], w_up.shape, w_up.shape[:1])
    return tuple(x.new_empty(shape if wanted else 0) for shape, wanted in zip(shapes, mask, strict=True))


class _FusedAdapter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w_down, b_down, w_up, b_up):
        with below_autograd(lambda: checks.adapter(x, w_down, b_down, w_up, b_up)):
            if _keeps(x, w_down):
                out, hidden = _ops.fused_adapter_keep(x, w_down, b_down, w_up, b_up)
            else:
                out, hidden = _ops.fused_adapter(x, w_down, b_down, w_up, b_up), None
        ctx.save_for_backward(x, w_down, b_down, w_up, hidden)
        return out

    @staticmethod
    def backward(ctx, grad_out):
        *args, hidden = ctx.saved_tensors
        return _wanted(_ops.fused_adapter_backward(grad_out, *args, ctx.needs_input_grad, hidden), ctx)


class _FusedAdapterNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps):
        args = (residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps)
        with below_autograd(lambda: checks.adapter_norm(*args)):
            if _keeps(x, w_down):
                wide = w_down.shape[0] >= _WIDE
                out, hidden, adapted = _ops.fused_adapter_norm_keep(*args, wide)
                adapted = adapted if wide else None
            else:
                out, hidden, adapted = _ops.fused_adapter_norm(*args), None, None
        ctx.save_for_backward(x, w_down, b_down, w_up, b_up, norm_weight, hidden, adapted)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx, grad_out):
        mask = ctx.needs_input_grad[1:8]
        if not any(mask):
            return (grad_out, *[None] * 8)
        *args, hidden, adapted = ctx.saved_tensors
        grads = _ops.fused_adapter_norm_backward(grad_out, *args, ctx.eps, mask, hidden, adapted)
        return _wanted((grad_out, *grads, None), ctx)


def _keeps(x: Tensor, w_down: Tensor) -> bool:
    """Whether the forward keeps what it computed for the backward: on CPUs, where computing it again takes longer than
    fetching it. That is no more than autograd would keep of the same products."""
    checkable = x.dim() > 0 and w_down.dim() == 2  # else the kernel, which is asked next, refuses
    return checkable and x.device.type == "cpu"


def _wanted(grads, ctx):
    return tuple(grad if needed else None for grad, needed in zip(grads, ctx.needs_input_grad, strict=True))


def _fused_adapter_autograd(x, w_down, b_down, w_up, b_up):
    if tracks(x, w_down, b_down, w_up, b_up):
        return _FusedAdapter.apply(x, w_down, b_down, w_up, b_up)
    with below_autograd(lambda: checks.adapter(x, w_down, b_down, w_up, b_up)):
        return _ops.fused_adapter(x, w_down, b_down, w_up, b_up)


def _fused_adapter_backward_autograd(grad_out, x, w_down, b_down, w_up, output_mask, hidden=None):
    args = (grad_out, x, w_down, b_down, w_up)
    explain = lambda: checks.adapter_backward(*args, output_mask, hidden)  # noqa: E731
    if tracks(*args):  # a double backward: rare enough to leave to torch
        explain()
        return reference.fused_adapter_backward(*args, output_mask)
    with below_autograd(explain):
        return _ops.fused_adapter_backward(*args, output_mask, hidden)


def _fused_adapter_norm_autograd(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps):
    args = (residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias)
    if tracks(*args):
        return _FusedAdapterNorm.apply(*args, eps)
    with below_autograd(lambda: checks.adapter_norm(*args, eps)):
        return _ops.fused_adapter_norm(*args, eps)


def _fused_adapter_norm_backward_autograd(
    grad_out, x, w_down, b_down, w_up, b_up, norm_weight, eps, output_mask, hidden=None, adapted=None
):
    args = (grad_out, x, w_down, b_down, w_up, b_up, norm_weight)
    explain = lambda: checks.adapter_norm_backward(*args, eps, output_mask, hidden, adapted)  # noqa: E731
    if tracks(*args):
        explain()
        return reference.fused_adapter_norm_backward(*args, eps, output_mask)
    with below_autograd(explain):
        return _ops.fused_adapter_norm_backward(*args, eps, output_mask, hidden, adapted)


def _keep_autograd(differentiable):
    """The kernel of an operator that also returns what to keep: derivatives are those of the plain operator, so
    it is for callers that bring their own."""

    def kernel(*args):
        tensors = [a for a in args if isinstance(a, Tensor)]
        torch._check(
            not tracks(*tensors), lambda: f"{differentiable}_keep has no derivative: call {differentiable} instead"
        )
        with below_autograd():
            return getattr(_ops, f"{differentiable}_keep")(*args)

    return kernel


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


_KERNELS = {  # fake, Autograd, check; torch's own way has the operator's name in reference.py
    "fused_adapter": (_fused_adapter_fake, _fused_adapter_autograd, checks.adapter),
    "fused_adapter_keep": (_fused_adapter_keep_fake, _keep_autograd("fused_adapter"), checks.adapter),
    "fused_adapter_backward": (
        _fused_adapter_backward_fake,
        _fused_adapter_backward_autograd,
        checks.adapter_backward,
    ),
    "fused_adapter_norm": (_fused_adapter_norm_fake, _fused_adapter_norm_autograd, checks.adapter_norm),
    "fused_adapter_norm_keep": (
        _fused_adapter_norm_keep_fake,
        _keep_autograd("fused_adapter_norm"),
        checks.adapter_norm,
    ),
    "fused_adapter_norm_backward": (
        _fused_adapter_norm_backward_fake,
        _fused_adapter_norm_backward_autograd,
        checks.adapter_norm_backward,
    ),
}
for _name, (_fake, _autograd, _check) in _KERNELS.items():
    torch.library.register_fake(f"sfa::{_name}", _fake, lib=LIBRARY)
    LIBRARY.impl(_name, _autograd, "Autograd")
    register_portable(_name, getattr(reference, _name), _check)
# Asked by the CUDA kernels, and by those for AMX, at every call in float32: settings belong to torch and may change.
_PRECISION = {
    "allow_tf32": lambda: torch.backends.cuda.matmul.fp32_precision == "tf32",
    "allow_short_floats": lambda: torch.backends.mkldnn.matmul.fp32_precision in ("tf32", "bf16"),
}
for _name, _answer in _PRECISION.items():
    LIBRARY.impl(_name, _answer, "CompositeExplicitAutograd")
register_autocast("fused_adapter", _fused_adapter_autocast)
register_autocast("fused_adapter_norm", _fused_adapter_norm_autocast)
