"""Mask2Former's head over the maps of any backbone, composed from transformers' parts.

The parts are the multi-scale deformable pixel decoder and the masked-attention transformer decoder of
`transformers.models.mask2former`, with their weights and names but leaner forward passes; no backbone is ever handed
to a transformers class, which would draw its weights anew. Weights start as in the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import transformers.models.mask2former.modeling_mask2former as parts
from torch import Tensor, nn
from transformers import Mask2FormerConfig

from .pixel_decoder import PixelDecoder
from .query_decoder import QueryDecoder


@dataclass(frozen=True)
class Mask2FormerSettings:
    """Settings of Mask2Former for semantic segmentation; the defaults are the paper's size.

    sizes: named starting points, "paper" and "small" (for a backbone of some 2 M parameters at 96 x 96 pixels; masks
        have so few cells there that the loss takes points all over them instead of looking for uncertain ones).
    """

    sizes: ClassVar[dict[str, dict[str, float]]] = {
        "paper": {},
        "small": {
            "hidden": 64,
            "heads": 4,
            "encoder_layers": 1,
            "encoder_points": 2,
            "encoder_feedforward": 128,
            "decoder_layers": 3,
            "decoder_feedforward": 128,
            "queries": 24,
            "points": 512,
            "oversample": 1.0,
            "importance": 0.0,
        },
    }

    hidden: int = field(default=256, metadata={"help": "channels of the whole head, a multiple of 32"})
    heads: int = field(default=8, metadata={"help": "attention heads, a divisor of hidden"})
    encoder_layers: int = field(default=6, metadata={"help": "deformable attention blocks of the pixel decoder"})
    encoder_points: int = field(default=4, metadata={"help": "sampled points per head, level and pixel decoder block"})
    encoder_feedforward: int = field(default=1024, metadata={"help": "hidden width of the pixel decoder's MLPs"})
    decoder_layers: int = field(default=9, metadata={"help": "masked attention layers of the transformer decoder"})
    decoder_feedforward: int = field(default=2048, metadata={"help": "hidden width of the transformer decoder's MLPs"})
    queries: int = field(default=100, metadata={"help": "queries, the most masks that an image can have"})
    points: int = field(default=12544, metadata={"help": "points per mask that the loss is computed on"})
    oversample: float = field(default=3.0, metadata={"help": "candidates per point for the uncertain points, >= 1"})
    importance: float = field(default=0.75, metadata={"help": "share of uncertain points, in 0..1"})
    no_object_weight: float = field(default=0.1, metadata={"help": "weight of 'no object' in the class term"})
    class_weight: float = field(default=2.0, metadata={"help": "weight of the class term, also in the matching"})
    mask_weight: float = field(default=5.0, metadata={"help": "weight of the mask cross entropy, also in the matching"})
    dice_weight: float = field(default=5.0, metadata={"help": "weight of the dice term, also in the matching"})

    def __post_init__(self) -> None:
        if self.hidden < 32 or self.hidden % 32:
            raise ValueError(f"hidden must be a positive multiple of 32 (32 groups are normalised), got {self.hidden}")
        if self.heads < 1 or self.hidden % self.heads:
            raise ValueError(f"heads must divide hidden {self.hidden}, got {self.heads}")
        encoder, decoder = ("layers", "points", "feedforward"), ("layers", "feedforward")
        counts = [f"encoder_{n}" for n in encoder] + [f"decoder_{n}" for n in decoder]
        for name in (*counts, "queries", "points"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.oversample < 1:
            raise ValueError(f"oversample must be 1 or more, got {self.oversample}")
        if not 0 <= self.importance <= 1:
            raise ValueError(f"importance must lie in 0..1, got {self.importance}")
        for name in ("no_object_weight", "class_weight", "mask_weight", "dice_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")


class Mask2FormerHead(nn.Module):
    """Class and mask logits of the queries after every decoder layer.

    Args:
        settings: see Mask2FormerSettings.
        channels: channels of the four maps (strides 4, 8, 16, 32).
        n_classes: number of classes without "no object".
    """

    def __init__(self, settings: Mask2FormerSettings, channels: Sequence[int], n_classes: int) -> None:
        super().__init__()
        config = _config(settings, n_classes)
        self.pixel_decoder = PixelDecoder(config, list(channels), settings.encoder_points)
        self.decoder = QueryDecoder(in_features=settings.hidden, config=config)
        self.classifier = nn.Linear(settings.hidden, n_classes + 1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws all weights anew from torch's default generator, as the authors' code does."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.Embedding)):
                module.reset_parameters()
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for part in (self.pixel_decoder.encoder, self.decoder.decoder.layers):
            for weight in part.parameters():
                if weight.dim() > 1:
                    nn.init.xavier_uniform_(weight)
        for module in self.modules():
            if isinstance(module, parts.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention):
                _reset_deformable(module)
            elif isinstance(module, nn.MultiheadAttention):
                nn.init.zeros_(module.in_proj_bias)
                nn.init.zeros_(module.out_proj.bias)
        nn.init.normal_(self.pixel_decoder.level_embed)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Class logits [L, B, Q, C + 1] and mask logits, L times [B, Q, h, w] of the first map's size, of the
        L = decoder_layers + 1 predictions in their order; the last ones are the result.

        Raises:
            ValueError: not four maps.
        """
        if len(maps) != 4:
            raise ValueError(f"maps must be four feature maps, got {len(maps)}")
        # Sampling positions need more than bfloat16's eight bits, so the pixel decoder runs in float32, as the
        # authors' does.
        with torch.autocast(maps[0].device.type, enabled=False):
            pyramid = self.pixel_decoder([m.float() for m in maps])
        hidden, masks = self.decoder(pyramid, self.pixel_decoder.mask_projection)
        return self.classifier(hidden), masks


def _config(settings: Mask2FormerSettings, n_classes: int) -> Mask2FormerConfig:
    return Mask2FormerConfig(
        feature_size=settings.hidden,
        mask_feature_size=settings.hidden,
        hidden_dim=settings.hidden,
        encoder_layers=settings.encoder_layers,
        encoder_feedforward_dim=settings.encoder_feedforward,
        decoder_layers=settings.decoder_layers + 1,  # transformers counts the prediction before the first layer
        dim_feedforward=settings.decoder_feedforward,
        num_attention_heads=settings.heads,
        num_queries=settings.queries,
        num_labels=n_classes,
    )


def _reset_deformable(module: nn.Module) -> None:
    """Equal attention over points that start on rays of one direction per head, 1, 2, ... cells out."""
    angle = torch.arange(module.n_heads) * (2 * math.pi / module.n_heads)
    ray = torch.stack([angle.cos(), angle.sin()], -1)
    ray = ray / ray.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, module.n_points + 1)
    offsets = (ray[:, None, None] * steps[:, None]).expand(-1, module.n_levels, -1, -1)
    nn.init.zeros_(module.sampling_offsets.weight)
    module.sampling_offsets.bias.copy_(offsets.flatten())
    for layer in (module.attention_weights, module.value_proj, module.output_proj):
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(module.attention_weights.weight)
