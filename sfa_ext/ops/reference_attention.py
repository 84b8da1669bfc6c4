"""Window attention as a chain of torch's own operators, for devices other than CPUs, and for double backward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

HIDDEN = -100.0  # added to the logits of tokens that came together only because the map wraps around, as in timm


def window_attention(
    qkv: Tensor, scale: Tensor, bias: Tensor, pad: Tensor | None, window: tuple[int, int], shift: tuple[int, int]
) -> Tensor:
    batch, height, width, channels = qkv.shape
    down, right = -height % window[0], -width % window[1]
    heads = scale.numel()
    rolled = torch.roll(qkv, (-shift[0], -shift[1]), (1, 2)) if any(shift) else qkv
    if pad is not None and (down or right):
        pad = pad.to(qkv.dtype)
        rolled = torch.cat([rolled, pad.expand(batch, height, right, channels)], 2)
        rolled = torch.cat([rolled, pad.expand(batch, down, width + right, channels)], 1)
    windows = partition(rolled, window)
    q, k, v = windows.reshape(*windows.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    q = F.normalize(q.to(scale.dtype), dim=-1) * scale[:, None, None]
    k = F.normalize(k.to(scale.dtype), dim=-1)
    added = bias[None]
    if any(shift):
        hidden = shift_mask(height + down, width + right, window, shift, bias)
        added = (added + hidden[:, None]).repeat(batch, 1, 1, 1)
    mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, added.to(v.dtype), scale=1.0)
    mixed = mixed.transpose(1, 2).reshape(*windows.shape[:2], -1)
    grid = (batch, (height + down) // window[0], (width + right) // window[1], *window, channels // 3)
    whole = mixed.view(grid).transpose(2, 3).reshape(batch, height + down, width + right, channels // 3)
    whole = whole[:, :height, :width]
    return torch.roll(whole, shift, (1, 2)) if any(shift) else whole.contiguous()


def partition(tokens: Tensor, window: tuple[int, int]) -> Tensor:
    """[B, H, W, C] to [B * windows, N, C]."""
    batch, height, width, channels = tokens.shape
    cut = tokens.view(batch, height // window[0], window[0], width // window[1], window[1], channels)
    return cut.transpose(2, 3).reshape(-1, window[0] * window[1], channels)


def shift_mask(height: int, width: int, window: tuple[int, int], shift: tuple[int, int], like: Tensor) -> Tensor:
    """[windows, N, N]: 0 between tokens of one part of the map, HIDDEN between those of different parts."""

    def parts(size: int, side: int, moved: int) -> Tensor:
        place = torch.arange(size, device=like.device)
        return (place >= size - side).int() + (place >= size - moved).int() if moved else torch.zeros_like(place)

    part = 3 * parts(height, window[0], shift[0])[:, None] + parts(width, window[1], shift[1])
    part = partition(part[None, :, :, None], window).squeeze(-1)
    return (part[:, :, None] != part[:, None]).to(like.dtype) * HIDDEN


def window_attention_backward(
    grad_out: Tensor,
    qkv: Tensor,
    scale: Tensor,
    bias: Tensor,
    pad: Tensor | None,
    window: tuple[int, int],
    shift: tuple[int, int],
    output_mask: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of qkv, scale, bias and pad, themselves differentiable; empty where `output_mask` leaves one out."""
    inputs = (qkv, scale, bias, pad)
    with torch.enable_grad():
        leaves = [t if t is None or t.requires_grad else t.detach().requires_grad_() for t in inputs]
        out = window_attention(*leaves, window, shift)
        wanted = [t for t, want in zip(leaves, output_mask, strict=True) if want and t is not None]
        found = torch.autograd.grad(out, wanted, grad_out, create_graph=True, allow_unused=True)
    found = iter(found)
    return tuple(
        (torch.zeros_like(t) if (grad := next(found)) is None else grad)
        if want and t is not None
        else qkv.new_empty(0, dtype=scale.dtype if i else qkv.dtype)
        for i, (t, want) in enumerate(zip(leaves, output_mask, strict=True))
    )
