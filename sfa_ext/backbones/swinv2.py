"""timm's SwinV2 as a family of the sites protocol. Res-post-norm: x + drop_path(norm(branch(x)))."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block, WindowAttention
from torch import Tensor, nn
from torch.nn import functional as F

from sfa_ext.backbones.places import CHANGE, CONTEXT, TAILS, Grid, Operation, ResidualTail, Site

FAMILY = "timm SwinV2"
PATTERN = "swinv2_*"


def build_settings(dynamic: bool) -> dict[str, Any]:
    """What timm is asked for, besides a feature getter."""
    return {"strict_img_size": not dynamic}


def fit_tensor(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A checkpoint's tensor as this model needs it: SwinV2's do not depend on the size of the images."""
    return tensor


class OpenAttention(WindowAttention):
    """timm's window attention; q, k and v may be changed, and tokens of a method may join keys and values."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:  # [B * windows, N, D]
        context = getattr(self, CONTEXT, None)
        if context is None and not hasattr(self.qkv, CHANGE):
            return super().forward(x, mask)
        batch, length, channels = x.shape
        q, k, v = self._heads(x)
        bias = self._position_bias()
        if context is not None:
            # Prompts are the same for every window, so their keys and values are computed once.
            _, more_k, more_v = (t.expand(batch, -1, -1, -1) for t in self._heads(context()[None]))
            k, v = torch.cat([more_k, k], dim=2), torch.cat([more_v, v], dim=2)
            bias = F.pad(bias, (more_k.shape[2], 0))
            mask = None if mask is None else F.pad(mask, (more_k.shape[2], 0))
        attention = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        attention = attention * torch.clamp(self.logit_scale, max=math.log(1.0 / 0.01)).exp() + bias
        if mask is not None:
            windows = attention.view(-1, len(mask), *attention.shape[1:]) + mask[None, :, None]
            attention = windows.view(-1, *attention.shape[1:])
        mixed = self.attn_drop(self.softmax(attention)) @ v
        return self.proj_drop(self.proj(mixed.transpose(1, 2).reshape(batch, length, channels)))

    def _heads(self, x: Tensor) -> Iterator[Tensor]:
        """q, k, v [B * windows, heads, N, D / heads]. timm reads qkv.weight itself, past any hook of qkv."""
        bias = self.qkv.bias if self.q_bias is None else torch.cat((self.q_bias, self.k_bias, self.v_bias))
        if self.qkv_bias_separate and bias is not None:
            qkv = F.linear(x, self.qkv.weight) + bias
        else:
            qkv = F.linear(x, self.qkv.weight, bias)
        if hasattr(self.qkv, CHANGE):
            qkv = getattr(self.qkv, CHANGE)(x, qkv)
        return qkv.reshape(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def _position_bias(self) -> Tensor:  # [1, heads, N, N]
        area = self.window_size[0] * self.window_size[1]
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)
        bias = table[self.relative_position_index.view(-1)].view(area, area, -1).permute(2, 0, 1).contiguous()
        return (16 * torch.sigmoid(bias))[None]


class OpenBlock(SwinTransformerV2Block):
    """timm's block with its two residual sums as modules; parameters and their names stay timm's."""

    def forward(self, x: Tensor) -> Tensor:  # [B, H, W, D]
        x = self.attention_tail(x, self._attn(x), self.norm1, self.drop_path1)
        return self.mlp_tail(x, self.mlp(x), self.norm2, self.drop_path2)


class QKV(Operation):
    """The fused projection, whose bias timm keeps as three tensors, that of k as a buffer of zeros."""

    def __init__(self, name: str, attention: WindowAttention):
        super().__init__(name, "qkv", attention.qkv)
        self.attention = attention

    def bias(self) -> Tensor | None:
        a = self.attention
        return self.module.bias if a.q_bias is None else torch.cat((a.q_bias, a.k_bias, a.v_bias))

    def _saved_bias(self) -> dict[str, Any]:
        return super()._saved_bias() | {"persistent": "k_bias" not in self.attention._non_persistent_buffers_set}

    def _set_bias(self, bias: Tensor) -> None:
        a = self.attention
        if a.q_bias is None:
            return super()._set_bias(bias)
        q, k, v = bias.chunk(3)
        a.q_bias.detach().copy_(q)
        a.v_bias.detach().copy_(v)
        # timm leaves this buffer out of the state dict, where a shift of k would be lost.
        a.register_buffer("k_bias", k.clone(), persistent=bool(k.any()))

    def _restore_bias(self, saved: dict[str, Any]) -> None:
        a = self.attention
        if a.q_bias is None:
            return super()._restore_bias(saved)
        q, k, v = saved["bias"].chunk(3)
        a.q_bias.detach().copy_(q)
        a.v_bias.detach().copy_(v)
        a.register_buffer("k_bias", k.clone(), persistent=saved["persistent"])


def owns(module: nn.Module) -> bool:
    return isinstance(module, SwinTransformerV2Block)


def is_model(module: nn.Module) -> bool:
    return isinstance(module, SwinTransformerV2)


def open_model(model: nn.Module) -> Grid:
    """How the tokens are laid out; nothing of the model itself has to be opened."""
    return Grid()


def close_model(model: nn.Module) -> None:
    """Undoes `open_model`."""


def open_block(name: str, block: nn.Module, grid: Grid) -> list[Site]:
    """Makes the block's two tails and its attention's context replaceable, in place; returns its sites."""
    if not isinstance(block, OpenBlock):
        # The class is swapped, not the module: references to the block, its hooks and its parameters stay valid.
        block.__class__ = OpenBlock
        block.attn.__class__ = OpenAttention
        for slot in TAILS.values():
            setattr(block, slot, ResidualTail())
    return [Site(f"{name}.{slot}", kind, block.dim, block, slot, block.attn, grid) for kind, slot in TAILS.items()]


def close_block(block: nn.Module) -> None:
    """Undoes `open_block` and takes out what methods installed."""
    if isinstance(block, OpenBlock):
        for slot in TAILS.values():
            delattr(block, slot)
        if hasattr(block.attn, CONTEXT):
            delattr(block.attn, CONTEXT)
        block.__class__ = SwinTransformerV2Block
        block.attn.__class__ = WindowAttention


def block_operations(name: str, block: nn.Module) -> Iterator[Operation]:
    """Operations of one block, in the order of the forward pass."""
    yield QKV(f"{name}.attn.qkv", block.attn)
    yield Operation(f"{name}.attn.proj", "proj", block.attn.proj)
    yield Operation(f"{name}.norm1", "norm", block.norm1)
    yield Operation(f"{name}.mlp.fc1", "fc1", block.mlp.fc1)
    yield Operation(f"{name}.mlp.fc2", "fc2", block.mlp.fc2)
    yield Operation(f"{name}.norm2", "norm", block.norm2)


def outer_operations(name: str, model: nn.Module) -> Iterator[Operation]:
    """Operations outside the blocks: patch embedding, patch merging's norms, the last norm where there is one."""
    dot = f"{name}." if name else ""
    yield Operation(f"{dot}patch_embed.proj", "embed", model.patch_embed.proj)
    norms = {"patch_embed.norm": model.patch_embed.norm, "norm": model.norm}
    for i, stage in enumerate(model.layers):
        norms[f"layers.{i}.downsample.norm"] = getattr(stage.downsample, "norm", nn.Identity())
    for path, norm in norms.items():
        if not isinstance(norm, nn.Identity):
            yield Operation(f"{dot}{path}", "norm", norm)
