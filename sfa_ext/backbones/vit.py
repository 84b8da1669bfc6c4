"""timm's plain ViT as a family of the sites protocol. Pre-norm: x + drop_path(scale(branch(norm(x))))."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from sfa_ext.backbones import products
from sfa_ext.backbones.places import CONTEXT, TAILS, Grid, Operation, ResidualTail, Site

FAMILY = "timm ViT"
PATTERN = "vit_*"


def build_settings(dynamic: bool) -> dict[str, Any]:
    """What timm is asked for, besides a feature getter: one map, of the last block. A feature pyramid makes four."""
    return {"out_indices": (-1,), "dynamic_img_size": dynamic}


def fit_tensor(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """A checkpoint's tensor as this model needs it: the position embedding follows the size of the images."""
    if name != "pos_embed" or tensor.shape == model.pos_embed.shape or tensor.dim() != 3:
        return tensor
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    if (tensor.shape[1] - prefix) ** 0.5 % 1:
        return tensor
    return resample_abs_pos_embed(tensor, list(model.patch_embed.grid_size), num_prefix_tokens=prefix)


class PatchGrid(Grid):
    """Class and register tokens first, then the patches in rows."""

    def __init__(self, model: VisionTransformer):
        self.prefix = model.num_prefix_tokens
        self.size = model.patch_embed.grid_size
        self.handle = model.patch_embed.register_forward_pre_hook(self.look)

    def look(self, patch_embed: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Takes the size of the grid from the images; tokens alone do not tell height from width."""
        self.size = patch_embed.dynamic_feat_size(inputs[0].shape[-2:])

    def split(self, tokens: Tensor) -> tuple[Tensor | None, Tensor]:
        prefix, patches = tokens[:, : self.prefix], tokens[:, self.prefix :]
        return prefix if self.prefix else None, patches.unflatten(1, self.size)

    def join(self, prefix: Tensor | None, grid: Tensor) -> Tensor:
        patches = grid.flatten(1, 2)
        return patches if prefix is None else torch.cat([prefix, patches], dim=1)


class OpenBlock(Block):
    """timm's block with its two residual sums as modules; parameters and their names stay timm's."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:  # [B, N, D]
        x = self.attention_tail(x, self._attend(x, **options), self.ls1, self.drop_path1)
        return self.mlp_tail(x, self.mlp(self.norm2(x)), self.ls2, self.drop_path2)

    def _attend(self, x: Tensor, **options: Any) -> Tensor:
        context = getattr(self, CONTEXT, None)
        if context is None:
            return self.attn(self.norm1(x), **options)
        more = context().expand(len(x), -1, -1)
        return self.attn(self.norm1(torch.cat([more, x], dim=1)), **options)[:, more.shape[1] :]


def owns(module: nn.Module) -> bool:
    return type(module) in (Block, OpenBlock)


def is_model(module: nn.Module) -> bool:
    return isinstance(module, VisionTransformer) and all(map(owns, module.blocks))


def open_model(model: nn.Module) -> Grid:
    """How the tokens are laid out; it follows the size of the images."""
    if getattr(model, "sfa_grid", None) is None:
        model.sfa_grid = PatchGrid(model)
    return model.sfa_grid


def close_model(model: nn.Module) -> None:
    """Undoes `open_model`."""
    if getattr(model, "sfa_grid", None) is not None:
        model.sfa_grid.handle.remove()
        del model.sfa_grid


def open_block(name: str, block: nn.Module, grid: Grid) -> list[Site]:
    """Makes the block's two tails and its attention's context replaceable, in place; returns its sites."""
    if not isinstance(block, OpenBlock):
        # The class is swapped, not the module: references to the block, its hooks and its parameters stay valid.
        block.__class__ = OpenBlock
        for slot in TAILS.values():
            setattr(block, slot, ResidualTail())
    width = block.attn.proj.out_features
    return [Site(f"{name}.{slot}", kind, width, block, slot, block, grid) for kind, slot in TAILS.items()]


def close_block(block: nn.Module) -> None:
    """Undoes `open_block` and takes out what methods installed."""
    if isinstance(block, OpenBlock):
        for slot in TAILS.values():
            delattr(block, slot)
        if hasattr(block, CONTEXT):
            delattr(block, CONTEXT)
        block.__class__ = Block


def accelerate_block(block: nn.Module) -> None:
    """Its MLP alone: timm's ViT has no windows and calls scaled_dot_product_attention by itself."""
    products.accelerate_mlp(block.mlp)


def decelerate_block(block: nn.Module) -> None:
    """Undoes `accelerate_block`."""
    products.decelerate_mlp(block.mlp)


def block_operations(name: str, block: nn.Module) -> Iterator[Operation]:
    """Operations of one block, in the order of the forward pass."""
    yield Operation(f"{name}.norm1", "norm", block.norm1)
    yield Operation(f"{name}.attn.qkv", "qkv", block.attn.qkv)
    yield Operation(f"{name}.attn.proj", "proj", block.attn.proj)
    yield Operation(f"{name}.norm2", "norm", block.norm2)
    yield Operation(f"{name}.mlp.fc1", "fc1", block.mlp.fc1)
    yield Operation(f"{name}.mlp.fc2", "fc2", block.mlp.fc2)


def outer_operations(name: str, model: nn.Module) -> Iterator[Operation]:
    """Operations outside the blocks: patch embedding, and the norms before and after the blocks where there are any."""
    dot = f"{name}." if name else ""
    yield Operation(f"{dot}patch_embed.proj", "embed", model.patch_embed.proj)
    for path in ("patch_embed.norm", "norm_pre", "norm"):
        norm = model.get_submodule(path)
        if not isinstance(norm, nn.Identity):
            yield Operation(f"{dot}{path}", "norm", norm)
