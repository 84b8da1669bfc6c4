"""Mask2Former's transformer decoder: transformers' weights and structure, computed with less work.

Equal to transformers' own forward up to rounding. The mask of the cross attention is one per image, not one per head,
attention is torch's fused one, and the projection of the pixels is applied to the queries instead.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import transformers.models.mask2former.modeling_mask2former as parts
from torch import Tensor, nn

from .pixel_decoder import Pyramid, Shape


class QueryDecoder(parts.Mask2FormerTransformerModule):
    """Queries that attend, layer by layer, to where the mask they last predicted is; coarsest level first."""

    def forward(self, pyramid: Pyramid, projection: nn.Conv2d) -> tuple[Tensor, list[Tensor]]:
        """Hidden states [L, B, Q, C] and mask logits, L times [B, Q, H, W], before the first and after every layer.

        Args:
            pyramid: of the pixel decoder.
            projection: 1x1 convolution from the pyramid's pixels to the mask features.
        """
        memory = [t + level for t, level in zip(pyramid.tokens, self.level_embed.weight, strict=True)]
        keys = [m + p for m, p in zip(memory, pyramid.positions, strict=True)]
        pixels = pyramid.pixels.flatten(2)
        x = self.queries_features.weight.expand(len(pixels), -1, -1)
        hidden = [self.decoder.layernorm(x)]
        masks = [self._masks(hidden[-1], pixels, projection, pyramid.pixels.shape[-2:])]
        for index, layer in enumerate(self.decoder.layers):
            level = index % len(memory)
            allowed = attended(masks[-1], pyramid.shapes[level])
            x = _decoder_layer(layer, x, self.queries_embedder.weight, keys[level], memory[level], allowed)
            hidden.append(self.decoder.layernorm(x))
            masks.append(self._masks(hidden[-1], pixels, projection, pyramid.pixels.shape[-2:]))
        return torch.stack(hidden), masks

    def _masks(self, hidden: Tensor, pixels: Tensor, projection: nn.Conv2d, shape: Shape) -> Tensor:
        # e . (W p + b) = (W^T e) . p + e . b: the projection costs one small product per query, not per pixel.
        embedding = self.decoder.mask_predictor.mask_embedder(hidden)
        weight = projection.weight[:, :, 0, 0]
        bias = embedding @ projection.bias
        return (embedding @ weight @ pixels + bias[..., None]).unflatten(2, shape)


@torch.no_grad()
def attended(masks: Tensor, shape: Shape) -> Tensor:
    """bool [B, 1, Q, h * w]: where the masks [B, Q, H, W], resized to `shape`, are on; everywhere if nowhere."""
    on = F.interpolate(masks, size=shape, mode="bilinear", align_corners=False).flatten(2)[:, None] >= 0
    return on | ~on.any(-1, keepdim=True)


def _decoder_layer(layer, x: Tensor, place: Tensor, key: Tensor, value: Tensor, allowed: Tensor) -> Tensor:
    cross, own = layer.cross_attn, layer.self_attn
    w_query, w_key, w_value = cross.in_proj_weight.chunk(3)
    b_query, b_key, b_value = cross.in_proj_bias.chunk(3)
    query = F.linear(x + place, w_query, b_query)
    key, value = F.linear(key, w_key, b_key), F.linear(value, w_value, b_value)
    x = layer.cross_attn_layer_norm(x + cross.out_proj(_attend(query, key, value, own.num_heads, allowed)))
    placed = x + place
    found = _attend(own.q_proj(placed), own.k_proj(placed), own.v_proj(x), own.num_heads)
    x = layer.self_attn_layer_norm(x + own.out_proj(found))
    return layer.final_layer_norm(x + layer.fc2(layer.activation_fn(layer.fc1(x))))


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int, allowed: Tensor | None = None) -> Tensor:
    query, key, value = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed).transpose(1, 2).flatten(2)
