"""`torch.ops.sfa.window_attention`: checks, fake kernels, autograd and autocast.

    window_attention(qkv [B, H, W, 3 D], scale [heads], bias [heads, N, N], pad [3 D] | None, window, shift)
        -> [B, H, W, D]
        the attention of SwinV2 without its projections: in windows of window[0] x window[1] = N tokens, per head
        softmax(scale cos(q, k) + bias) v. The map is first moved up and left by `shift`, wrapping around; tokens that
        come together only by that see each other with -100 added to their logits. Windows that do not fit the map are
        filled up, behind it, with tokens whose q, k and v are `pad`.
    window_attention_backward(grad_out, qkv, scale, bias, pad, window, shift, output_mask [4])
        -> gradients of qkv, scale, bias, pad; an empty tensor for each that output_mask leaves out

qkv may be float32, float64, bfloat16 or float16; scale, bias and pad are float32, or float64 with it. RuntimeError
names an argument that does not fit. CPUs have kernels of ours; elsewhere torch's scaled_dot_product_attention works.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import checks
from . import reference_attention as reference
from ._library import LIBRARY, below_autograd, register_autocast, tracks

_ops = torch.ops.sfa


def _check(qkv: Tensor, scale: Tensor, bias: Tensor, pad: Tensor | None, window: list[int], shift: list[int]) -> None:
    checks.floating("qkv", qkv)
    torch._check(qkv.dim() == 4, lambda: f"qkv must be [B, H, W, 3 D], got {list(qkv.shape)}")
    torch._check(
        scale.dim() == 1 and scale.numel() > 0, lambda: f"scale must be [heads] and not empty, got {list(scale.shape)}"
    )
    torch._check(min(window) > 0, lambda: f"window must be at least 1 x 1, got {list(window)}")
    torch._check(
        all(0 <= s < w for s, w in zip(shift, window, strict=True)),
        lambda: f"shift must be in [0, window) with window {list(window)}, got {list(shift)}",
    )
    heads, tokens = scale.numel(), window[0] * window[1]
    torch._check(
        qkv.shape[3] % (3 * heads) == 0,
        lambda: f"qkv must be [B, H, W, 3 D] with D a multiple of the {heads} heads, got {list(qkv.shape)}",
    )
    checks.shape("bias", bias, "[heads, N, N]", (heads, tokens, tokens))
    wide = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    named = {"scale": scale, "bias": bias}
    if pad is not None:
        checks.shape("pad", pad, "[3 D]", (qkv.shape[3],))
        named["pad"] = pad
    for name, tensor in named.items():
        torch._check(
            tensor.dtype == wide and tensor.device == qkv.device,
            lambda name=name, tensor=tensor: (
                f"{name} must be {checks.name(wide)} on {qkv.device} with qkv {checks.name(qkv.dtype)}, "
                f"got {checks.name(tensor.dtype)} on {tensor.device}"
            ),
        )
    torch._check(
        pad is not None or (qkv.shape[1] % window[0] == 0 and qkv.shape[2] % window[1] == 0),
        lambda: f"pad is needed where windows {list(window)} do not fit the map {list(qkv.shape[1:3])}, got None",
    )


def _check_backward(grad_out, qkv, scale, bias, pad, window, shift, output_mask):
    _check(qkv, scale, bias, pad, window, shift)
    checks.shape("grad_out", grad_out, "[B, H, W, D]", (*qkv.shape[:3], qkv.shape[3] // 3))
    checks.like("grad_out", grad_out, "qkv", qkv)
    torch._check(len(output_mask) == 4, lambda: f"output_mask must have 4 entries, got {len(output_mask)}")


def _fake(qkv, scale, bias, pad, window, shift):
    _check(qkv, scale, bias, pad, window, shift)
    return qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))


def _backward_fake(grad_out, qkv, scale, bias, pad, window, shift, output_mask):
    _check_backward(grad_out, qkv, scale, bias, pad, window, shift, output_mask)
    likes = (qkv, scale, bias, scale if pad is None else pad)
    return tuple(
        like.new_empty(like.shape if wanted and t is not None else 0)
        for t, like, wanted in zip((qkv, scale, bias, pad), likes, output_mask, strict=True)
    )


class _WindowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, qkv, scale, bias, pad, window, shift):
        ctx.save_for_backward(qkv, scale, bias, pad)
        ctx.window, ctx.shift = window, shift
        with below_autograd():
            return _ops.window_attention(qkv, scale, bias, pad, window, shift)

    @staticmethod
    def backward(ctx, grad_out):
        mask = ctx.needs_input_grad[:4]
        grads = _ops.window_attention_backward(grad_out, *ctx.saved_tensors, ctx.window, ctx.shift, mask)
        return (*(grad if wanted else None for grad, wanted in zip(grads, mask, strict=True)), None, None)


def _autograd(qkv, scale, bias, pad, window, shift):
    _check(qkv, scale, bias, pad, window, shift)
    if qkv.device.type != "cpu":
        return reference.window_attention(qkv, scale, bias, pad, window, shift)
    if tracks(qkv, scale, bias, pad):
        return _WindowAttention.apply(qkv, scale, bias, pad, window, shift)
    with below_autograd():
        return _ops.window_attention(qkv, scale, bias, pad, window, shift)


def _backward_autograd(grad_out, qkv, scale, bias, pad, window, shift, output_mask):
    args = (grad_out, qkv, scale, bias, pad, window, shift, output_mask)
    _check_backward(*args)
    if tracks(grad_out, qkv, scale, bias, pad):  # a double backward: rare enough to leave to torch
        return reference.window_attention_backward(*args)
    with below_autograd():
        return _ops.window_attention_backward(*args)


def _autocast(dtype, qkv, scale, bias, pad, window, shift):
    qkv = qkv if qkv.dtype == torch.float64 else qkv.to(dtype)
    return _ops.window_attention(qkv, scale, bias, pad, window, shift)


_KERNELS = {
    "window_attention": (_fake, _autograd, reference.window_attention),
    "window_attention_backward": (_backward_fake, _backward_autograd, reference.window_attention_backward),
}
for _name, (_fake_kernel, _kernel, _reference) in _KERNELS.items():
    torch.library.register_fake(f"sfa::{_name}", _fake_kernel, lib=LIBRARY)
    LIBRARY.impl(_name, _kernel, "Autograd")
    LIBRARY.impl(_name, _reference, "CompositeExplicitAutograd")
register_autocast("window_attention", _autocast)
