"""timm's SwinV2 as a family of the sites protocol. Res-post-norm: x + drop_path(norm(branch(x)))."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2, SwinTransformerV2Block, WindowAttention
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from sfa_ext import ops  # noqa: F401  (registers torch.ops.sfa)
from sfa_ext.backbones import products
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

    product = staticmethod(F.linear)

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
        """q, k, v [B * windows, heads, N, D / heads]."""
        return self._project(x).reshape(*x.shape[:2], 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def _project(self, x: Tensor) -> Tensor:
        """q, k and v of tokens [..., D] beside each other, [..., 3 D]. timm reads qkv.weight, past any hook of qkv."""
        bias = self.qkv.bias if self.q_bias is None else torch.cat((self.q_bias, self.k_bias, self.v_bias))
        if self.qkv_bias_separate and bias is not None:
            qkv = self.product(x, self.qkv.weight) + bias
        else:
            qkv = self.product(x, self.qkv.weight, bias)
        return getattr(self.qkv, CHANGE)(x, qkv) if hasattr(self.qkv, CHANGE) else qkv

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


class FastAttention(OpenAttention):
    """The same attention on whole maps, by an operator that reads windows where they lie, shifted or not.

    The bias of relative positions is computed once while what it is made of is frozen. Windows that timm cut out
    are worked on as before: where a method has tokens join them, or attention is dropped.
    """

    product = staticmethod(products.linear)

    def forward(self, x: Tensor, mask: Tensor | None = None, shift: tuple[int, int] | None = None) -> Tensor:
        if shift is None:  # [B * windows, N, D]
            return super().forward(x, mask)
        qkv = self._project(x)  # of [B, H, W, D]
        wide = torch.promote_types(qkv.dtype, torch.float32)
        scale, bias = self._logits(wide)
        pad = None
        if any(size % side for size, side in zip(x.shape[1:3], self.window_size, strict=True)):
            pad = self._project(x.new_zeros(1, x.shape[-1]))[0].to(wide)
        mixed = torch.ops.sfa.window_attention(qkv, scale, bias, pad, self.window_size, shift)
        return self.proj_drop(products.apply(self.proj, mixed))

    @property
    def takes_maps(self) -> bool:
        """Whether the operator computes all that attention has to at present."""
        return not hasattr(self, CONTEXT) and not (self.training and self.attn_drop.p)

    def _logits(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What cosines are multiplied by [heads], and what is added to them [heads, N, N]."""
        sources = [self.logit_scale, *self.cpb_mlp.parameters(), self.relative_coords_table]
        trained = torch.is_grad_enabled() and any(t.requires_grad for t in sources)
        if trained or torch.compiler.is_compiling() or any(t.is_inference() for t in sources):
            return self._compute_logits(dtype)
        if self.kept is None or not self.kept.fits(sources, self.window_size, dtype):
            with torch.inference_mode(False), torch.no_grad():  # to be used in training too
                self.kept = KeptLogits(sources, self.window_size, self._compute_logits(dtype))
        return self.kept.logits

    def _compute_logits(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.logit_scale.device.type, enabled=False):
            wide = {name: p.to(dtype) for name, p in self.cpb_mlp.named_parameters()}
            table = functional_call(self.cpb_mlp, wide, self.relative_coords_table.to(dtype)).view(-1, self.num_heads)
            area = self.window_size[0] * self.window_size[1]
            bias = (16 * torch.sigmoid(table.t()))[:, self.relative_position_index.view(-1)]
            scale = torch.clamp(self.logit_scale.to(dtype), max=math.log(1.0 / 0.01)).exp()
        return scale.view(-1), bias.view(self.num_heads, area, area)


class KeptLogits:
    """Scale and bias of an attention's logits, with what tells whether they still hold.

    On a CPU the tensors they were computed from are compared number by number, a few thousand of them: whatever wrote
    into them is seen. On a GPU, where that would wait for the device, address and version counter are, which miss
    a write through `tensor.data`.
    """

    def __init__(self, sources: list[Tensor], window: tuple[int, int], logits: tuple[Tensor, Tensor]):
        self.logits = logits
        self.window = tuple(window)
        # Aliases keep the memory from being given to another tensor, which would then have the same address.
        self.sources = [t.detach().clone() if t.is_cpu else t.detach() for t in sources]
        self.versions = [t._version for t in sources]

    def fits(self, sources: list[Tensor], window: tuple[int, int], dtype: torch.dtype) -> bool:
        if tuple(window) != self.window or self.logits[0].dtype != dtype or len(sources) != len(self.sources):
            return False
        return all(map(_unchanged, sources, self.sources, self.versions))

    def __deepcopy__(self, memo: dict) -> None:
        return None  # a copy's tensors are others


def _unchanged(now: Tensor, before: Tensor, version: int) -> bool:
    if now.shape != before.shape or now.dtype != before.dtype or now.device != before.device:
        return False
    if now.is_cpu:
        return torch.equal(now, before)
    return now.data_ptr() == before.data_ptr() and now._version == version


class FastBlock(SwinTransformerV2Block):
    """timm's block whose attention works on the map itself."""

    def _attn(self, x: Tensor) -> Tensor:  # [B, H, W, D]
        return self.attn(x, shift=self.shift_size) if self.attn.takes_maps else super()._attn(x)


class FastOpenBlock(FastBlock, OpenBlock):
    """Both; a tail that has a `fast` way to compute the same up to rounding is asked for that."""

    def forward(self, x: Tensor) -> Tensor:
        x = _fast(self.attention_tail)(x, self._attn(x), self.norm1, self.drop_path1)
        return _fast(self.mlp_tail)(x, self.mlp(x), self.norm2, self.drop_path2)


def _fast(tail: nn.Module) -> Callable[..., Tensor]:
    return getattr(tail, "fast", tail)


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
        _set_classes(block, opened=True, fast=isinstance(block, FastBlock))
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
        _set_classes(block, opened=False, fast=isinstance(block, FastBlock))


def accelerate_block(block: nn.Module) -> None:
    """Gives the block its fast attention, in place, open or not."""
    if not isinstance(block, FastBlock):
        block.attn.kept = None
        products.accelerate_mlp(block.mlp)
        _set_classes(block, opened=isinstance(block, OpenBlock), fast=True)


def decelerate_block(block: nn.Module) -> None:
    """Undoes `accelerate_block`."""
    if isinstance(block, FastBlock):
        del block.attn.kept
        products.decelerate_mlp(block.mlp)
        _set_classes(block, opened=isinstance(block, OpenBlock), fast=False)


def _set_classes(block: nn.Module, opened: bool, fast: bool) -> None:
    kinds = {
        (False, False): (SwinTransformerV2Block, WindowAttention),
        (True, False): (OpenBlock, OpenAttention),
        (False, True): (FastBlock, FastAttention),
        (True, True): (FastOpenBlock, FastAttention),
    }
    block.__class__, block.attn.__class__ = kinds[opened, fast]


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
