"""Semantic segmentation by a light head: the maps fused at the finest stride, one linear classifier for each pixel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfa_ext import ranks

from .metrics import IGNORE, SEGMENTATION_FIGURES, SegmentationMetric


@dataclass(frozen=True)
class FpnSettings:
    """Settings of the light segmentation head."""

    width: int = field(default=64, metadata={"help": "channels that the four maps are projected to"})

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8:
            raise ValueError(f"width must be a positive multiple of 8 (eight groups are normalised), got {self.width}")


class FusedPyramid(nn.Module):
    """One map at the finest stride: 1x1 projections summed after bilinear upsampling, then 3x3 conv, GroupNorm, GELU.

    forward: maps, NCHW with `channels`, finest first -> [B, width, H0, W0] of the first map's size.
    """

    def __init__(self, channels: Sequence[int], width: int, device=None, dtype=None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.lateral = nn.ModuleList(nn.Conv2d(c, width, 1, **factory) for c in channels)
        self.smooth = nn.Conv2d(width, width, 3, padding=1, bias=False, **factory)
        self.norm = nn.GroupNorm(8, width, **factory)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        if len(maps) != len(self.lateral):
            raise ValueError(f"maps must be {len(self.lateral)} feature maps, got {len(maps)}")
        levels = [project(m) for project, m in zip(self.lateral, maps, strict=True)]
        fused = levels.pop()
        while levels:
            finer = levels.pop()
            fused = finer + F.interpolate(fused, size=finer.shape[-2:], mode="bilinear", align_corners=False)
        return F.gelu(self.norm(self.smooth(fused)))


class PixelClassifier(nn.Module):
    """What heads with a score for each class and pixel have in common: loss, inference and metric.

    A subclass has `forward(maps)` that returns float32 "semantic" [B, C, h, w].
    """

    figures = SEGMENTATION_FIGURES
    needs_instances = False

    def __init__(self, settings: Any, class_names: Sequence[str], object_classes: Sequence[int]) -> None:
        super().__init__()
        self.settings = settings
        self.class_names, self.object_classes = tuple(class_names), tuple(object_classes)

    def loss(self, maps: Sequence[Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss and its detached term "semantic"."""
        term = pixel_cross_entropy(self(maps)["semantic"], batch["semantic"])
        return term, {"semantic": term.detach()}

    @torch.no_grad()
    def predict(self, maps: Sequence[Tensor], size: Sequence[int]) -> dict[str, Tensor]:
        """Probabilities "semantic" [B, C, H, W] at `size`."""
        return {"semantic": resized(self(maps)["semantic"], size).softmax(1)}

    def metrics(self) -> SegmentationMetric:
        """A fresh metric: "miou", "miou_objects", "pixel_accuracy", "iou/NAME"."""
        return SegmentationMetric(self.class_names, self.object_classes)


class FpnTask(PixelClassifier):
    """Per-pixel cross entropy on a fused pyramid, after Kirillov et al., "Panoptic Feature Pyramid Networks", 2019.

    It converges within a few hundred steps and leaves the work to the backbone, so it shows what adapting the backbone
    is worth where there is no time for a transformer decoder to learn its own part.

    Args:
        settings: see FpnSettings.
        channels: channels of the four maps (strides 4, 8, 16, 32).
        class_names: names of the classes in the order of the label values.
        object_classes: label values that count as objects in "miou_objects".

    batch: "semantic" int64 [B, H, W], 255 = ignore.
    """

    def __init__(
        self,
        settings: FpnSettings,
        channels: Sequence[int],
        class_names: Sequence[str],
        object_classes: Sequence[int] = (),
    ) -> None:
        super().__init__(settings, class_names, object_classes)
        self.pyramid = FusedPyramid(channels, settings.width)
        self.semantic = nn.Conv2d(settings.width, len(self.class_names), 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all weights anew from torch's default generator."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Float32 "semantic" [B, C, h, w] at the finest map's size."""
        return {"semantic": self.semantic(self.pyramid(maps)).float()}


def resized(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Scores NCHW brought to `size`, bilinearly."""
    return F.interpolate(scores, size=tuple(size), mode="bilinear", align_corners=False)


def pixel_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of scores [B, C, h, w] over the labelled pixels of [B, H, W]; 0 where there is none."""
    # reduction="mean" would give NaN for a batch without any labelled pixel.
    total = F.cross_entropy(resized(scores, labels.shape[-2:]), labels, ignore_index=IGNORE, reduction="sum")
    return total / ranks.mean_count((labels != IGNORE).sum())
