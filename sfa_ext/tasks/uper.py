"""Semantic segmentation by pyramid pooling and an FPN whose levels are all fused: a light UPerNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fpn import PixelClassifier, resized


@dataclass(frozen=True)
class UperSettings:
    """Settings of the UPerNet head (Xiao et al., "Unified Perceptual Parsing", 2018)."""

    sizes: ClassVar[dict[str, dict]] = {"paper": {}, "small": {"width": 64, "bins": (1, 2, 3)}}

    width: int = field(default=512, metadata={"help": "channels of every level and of what is fused"})
    bins: tuple[int, ...] = field(
        default=(1, 2, 3, 6), metadata={"help": "sides of the grids that the coarsest map is averaged to"}
    )
    dropout: float = field(default=0.1, metadata={"help": "share of channels left out before the classifier"})

    def __post_init__(self) -> None:
        if self.width < 8 or self.width % 8:
            raise ValueError(f"width must be a positive multiple of 8 (eight groups are normalised), got {self.width}")
        if not self.bins or min(self.bins) < 1:
            raise ValueError(f"bins must be grid sides from 1 on, for example [1, 2, 3, 6]; got {self.bins}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")


class UperTask(PixelClassifier):
    """Per-pixel cross entropy on a pyramid-pooled and fused FPN. GroupNorm in place of BatchNorm: batches are small.

    Args:
        settings: see UperSettings.
        channels: channels of the four maps (strides 4, 8, 16, 32).
        class_names: names of the classes in the order of the label values.
        object_classes: label values that count as objects in "miou_objects".

    batch: "semantic" int64 [B, H, W], 255 = ignore.
    """

    def __init__(
        self,
        settings: UperSettings,
        channels: Sequence[int],
        class_names: Sequence[str],
        object_classes: Sequence[int] = (),
    ) -> None:
        super().__init__(settings, class_names, object_classes)
        width, coarsest = settings.width, channels[-1]
        # Normalised over all channels at once: an average over the whole map leaves eight groups too little to go by.
        self.pooled = nn.ModuleList(_block(coarsest, width, 1, groups=1) for _ in settings.bins)
        self.gathered = _block(coarsest + len(settings.bins) * width, width, 3)
        self.lateral = nn.ModuleList(_block(c, width, 1) for c in channels[:-1])
        self.smooth = nn.ModuleList(_block(width, width, 3) for _ in channels[:-1])
        self.fuse = _block(len(channels) * width, width, 3)
        self.dropout = nn.Dropout2d(settings.dropout)
        self.semantic = nn.Conv2d(width, len(self.class_names), 1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all weights anew from torch's default generator."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear" if module is self.semantic else "relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.GroupNorm):
                module.reset_parameters()

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Float32 "semantic" [B, C, h, w] at the finest map's size."""
        if len(maps) != len(self.lateral) + 1:
            raise ValueError(f"maps must be {len(self.lateral) + 1} feature maps, got {len(maps)}")
        levels = [project(m) for project, m in zip(self.lateral, maps, strict=False)]
        levels.append(self._pyramid_pooled(maps[-1]))
        for i in range(len(levels) - 2, -1, -1):
            levels[i] = levels[i] + resized(levels[i + 1], levels[i].shape[-2:])
        fused = [smooth(level) for smooth, level in zip(self.smooth, levels, strict=False)] + levels[-1:]
        fused = torch.cat([fused[0], *(resized(m, fused[0].shape[-2:]) for m in fused[1:])], 1)
        return {"semantic": self.semantic(self.dropout(self.fuse(fused))).float()}

    def _pyramid_pooled(self, coarsest: Tensor) -> Tensor:
        size = coarsest.shape[-2:]
        pooled = (
            block(F.adaptive_avg_pool2d(coarsest, side))
            for block, side in zip(self.pooled, self.settings.bins, strict=True)
        )
        return self.gathered(torch.cat([coarsest, *(resized(p, size) for p in pooled)], 1))


def _block(inputs: int, outputs: int, kernel: int, groups: int = 8) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(groups, outputs), nn.ReLU())
