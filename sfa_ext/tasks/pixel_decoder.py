"""Mask2Former's pixel decoder: transformers' weights and structure, computed with less work.

Equal to transformers' own forward up to rounding. What is left out: masks of padding (a batch has none), positions
drawn per image (they are the same for all) and kept for the next call, copies between token and map layout, and the
stack of all sampled values of the deformable attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
import transformers.models.mask2former.modeling_mask2former as parts
from torch import Tensor
from transformers import Mask2FormerConfig

Shape = tuple[int, int]


@dataclass(frozen=True)
class Pyramid:
    """What the pixel decoder hands on: three levels of tokens, coarsest first, and the finest map."""

    tokens: tuple[Tensor, ...]  # [B, h * w, C] each
    positions: tuple[Tensor, ...]  # [1, h * w, C] each, sines of the place
    shapes: tuple[Shape, ...]  # (h, w) each
    pixels: Tensor  # [B, C, H, W] at the first map's size


@lru_cache(maxsize=64)
def sine_positions(shape: Shape, channels: int, device: torch.device) -> Tensor:
    """Sine embedding [1, h * w, channels] of a map's places, float32."""
    with torch.inference_mode(False), torch.no_grad():  # the kept tensor must also serve a later training step
        embed = parts.Mask2FormerSinePositionEmbedding(num_position_features=channels // 2, normalize=True)
        return embed(torch.Size((1, channels, *shape)), device, torch.float32).flatten(2).transpose(1, 2).contiguous()


@lru_cache(maxsize=64)
def _centres(shapes: tuple[Shape, ...], device: torch.device) -> Tensor:
    """Centres (x, y) in 0..1 of all tokens of all levels, [1, S, 1, 1, 1, 2]."""
    with torch.inference_mode(False):
        grids = [
            torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1) for h, w in shapes
        ]
        return torch.cat(grids).view(1, -1, 1, 1, 1, 2).to(device)


@lru_cache(maxsize=64)
def _cell_sizes(shapes: tuple[Shape, ...], device: torch.device) -> Tensor:
    """Size (x, y) of one cell of each level, in map widths and heights, [levels, 1, 2]."""
    with torch.inference_mode(False):
        return torch.tensor([(1 / w, 1 / h) for h, w in shapes], device=device)[:, None]


class PixelDecoder(parts.Mask2FormerPixelDecoder):
    """Deformable attention over the maps at strides 8, 16, 32, then one FPN step to stride 4.

    Args:
        config: of transformers' Mask2Former.
        channels: channels of the four maps, finest first.
        points: sampled points per head and level; transformers has 4.
    """

    def __init__(self, config: Mask2FormerConfig, channels: list[int], points: int) -> None:
        super().__init__(config, feature_channels=channels)
        for layer in self.encoder.layers:
            layer.self_attn = parts.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(
                config.feature_size, config.num_attention_heads, n_levels=self.num_feature_levels, n_points=points
            )

    def forward(self, maps: Sequence[Tensor]) -> Pyramid:
        """Levels for the transformer decoder from float32 maps NCHW, finest first. `mask_projection` is left to the
        caller, who can apply it to the few queries rather than to all pixels."""
        finest, *coarse = maps
        levels = [project(m) for project, m in zip(self.input_projections, reversed(coarse), strict=True)]
        shapes = tuple(tuple(level.shape[-2:]) for level in levels)
        positions = tuple(sine_positions(shape, levels[0].shape[1], levels[0].device) for shape in shapes)
        placed = torch.cat([p + embed for p, embed in zip(positions, self.level_embed, strict=True)], 1)
        tokens = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
        for layer in self.encoder.layers:
            tokens = _encoder_layer(layer, tokens, placed, shapes)
        tokens = tokens.split([h * w for h, w in shapes], dim=1)
        return Pyramid(tokens, positions, shapes, self._finest(finest, tokens[-1], shapes[-1]))

    def _finest(self, finest: Tensor, tokens: Tensor, shape: Shape) -> Tensor:
        lateral = self.lateral_convolutions[0](finest)
        upper = tokens.transpose(1, 2).unflatten(2, shape)
        return self.output_convolutions[0](
            lateral + F.interpolate(upper, size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        )


def _encoder_layer(layer, tokens: Tensor, placed: Tensor, shapes: tuple[Shape, ...]) -> Tensor:
    tokens = layer.self_attn_layer_norm(tokens + _deformable(layer.self_attn, tokens, tokens + placed, shapes))
    return layer.final_layer_norm(tokens + layer.fc2(F.relu(layer.fc1(tokens))))


def _deformable(attention, tokens: Tensor, placed: Tensor, shapes: tuple[Shape, ...]) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, 2021, equation 3) of tokens [B, S, C] on themselves."""
    n_images, n_tokens, channels = tokens.shape
    heads, levels, points = attention.n_heads, attention.n_levels, attention.n_points
    offsets = attention.sampling_offsets(placed).view(n_images, n_tokens, heads, levels, points, 2)
    where = _centres(shapes, tokens.device) + offsets * _cell_sizes(shapes, tokens.device)
    where = (2 * where - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # [levels, B * heads, S, points, 2]
    share = attention.attention_weights(placed).view(n_images, n_tokens, heads, levels * points).softmax(-1)
    share = share.transpose(1, 2).reshape(n_images * heads, 1, n_tokens, levels, points)
    values = attention.value_proj(tokens).transpose(1, 2).reshape(n_images * heads, channels // heads, n_tokens)
    total = 0
    for level, value in enumerate(values.split([h * w for h, w in shapes], dim=2)):
        sampled = F.grid_sample(value.unflatten(2, shapes[level]), where[level], mode="bilinear", align_corners=False)
        total = total + (sampled * share[:, :, :, level]).sum(-1)
    return attention.output_proj(total.view(n_images, channels, n_tokens).transpose(1, 2))
