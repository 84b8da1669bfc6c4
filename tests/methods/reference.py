"""Plain transcriptions of published formulas, for tests to compare the methods with."""

from __future__ import annotations

import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2, window_partition, window_reverse
from torch import Tensor
from torch.nn import functional as F


def swinv2_maps(model: SwinTransformerV2, images: Tensor, after_attention=None, after_mlp=None) -> list[Tensor]:
    """NCHW maps of timm's SwinV2, half-block by half-block. `after_*(block_name, x, new)` may replace the new stream,
    where x is the stream that went into the half-block."""
    x, maps = model.patch_embed(images), []
    for i, stage in enumerate(model.layers):
        x = stage.downsample(x)
        for j, block in enumerate(stage.blocks):
            name = f"model.layers.{i}.blocks.{j}"
            new = x + block.norm1(block._attn(x))
            x = after_attention(name, x, new) if after_attention else new
            new = x + block.norm2(block.mlp(x))
            x = after_mlp(name, x, new) if after_mlp else new
        maps.append(x.permute(0, 3, 1, 2))
    return maps


def vpt_deep_maps(model: SwinTransformerV2, images: Tensor, prompts: dict[str, Tensor]) -> list[Tensor]:
    """VPT-Deep on Swin in full: prompts are carried through attention, shortcuts, MLPs and patch merging.

    They are replaced before every block, expanded to every window, prepended to its tokens, and averaged over windows
    after attention; patch merging repeats their channels four times. prompts: name of a block -> [P, D].
    """
    x, carried, maps = model.patch_embed(images), None, []
    for i, stage in enumerate(model.layers):
        x = stage.downsample(x)
        if carried is not None and i:
            carried = stage.downsample.norm(stage.downsample.reduction(carried.repeat(1, 1, 4)))
        for j, block in enumerate(stage.blocks):
            carried = prompts[f"model.layers.{i}.blocks.{j}"].expand(len(x), -1, -1)
            attended, at_prompts = _attend_with_prompts(block, x, carried)
            x, carried = x + block.norm1(attended), carried + block.norm1(at_prompts)
            x, carried = x + block.norm2(block.mlp(x)), carried + block.norm2(block.mlp(carried))
        maps.append(x.permute(0, 3, 1, 2))
    return maps


def _attend_with_prompts(block, x: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
    batch, height, width, channels = x.shape
    shift, window = block.shift_size, block.window_size
    shifted = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
    tokens = window_partition(shifted, window).flatten(1, 2)
    windows, count = len(tokens) // batch, prompts.shape[1]
    expanded = prompts[:, None].expand(-1, windows, -1, -1).reshape(-1, count, channels)
    out = _window_attention(block.attn, torch.cat([expanded, tokens], 1), block.attn_mask, count)
    at_prompts = out[:, :count].view(batch, windows, count, channels).mean(1)
    merged = window_reverse(out[:, count:].unflatten(1, window), window, (height, width))
    return torch.roll(merged, shift, (1, 2)), at_prompts


def _window_attention(attn, x: Tensor, mask: Tensor | None, prompts: int) -> Tensor:
    batch, length, channels = x.shape
    heads = attn.num_heads
    qkv = F.linear(x, attn.qkv.weight, torch.cat((attn.q_bias, attn.k_bias, attn.v_bias)))
    q, k, v = qkv.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT * attn.logit_scale.clamp(max=4.605170185988092).exp()
    table = 16 * attn.cpb_mlp(attn.relative_coords_table).view(-1, heads).sigmoid()
    area = length - prompts
    bias = table[attn.relative_position_index.view(-1)].view(area, area, heads).permute(2, 0, 1)
    logits = logits + F.pad(bias, (prompts, 0, prompts, 0))
    if mask is not None:
        padded = F.pad(mask, (prompts, 0, prompts, 0))
        logits = (logits.view(-1, len(mask), heads, length, length) + padded[None, :, None]).view_as(logits)
    return attn.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, channels))
