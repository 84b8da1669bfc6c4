"""Four maps from the one map of a plain ViT: the simple feature pyramid of ViTDet (Li et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from timm.layers import LayerNorm2d
from torch import Tensor, nn


class SimpleFeaturePyramid(nn.Module):
    """Maps [B, channels, 4h, 4w], [.., 2h, 2w], [.., h, w], [.., h/2, w/2] from one map [B, width, h, w]."""

    def __init__(self, width: int, channels: int):
        super().__init__()
        half, quarter = max(1, width // 2), max(1, width // 4)
        four = [_double(width, half), LayerNorm2d(half), nn.GELU(), _double(half, quarter)]
        self.levels = nn.ModuleList(
            [
                nn.Sequential(*four, *_output(quarter, channels)),
                nn.Sequential(_double(width, half), *_output(half, channels)),
                nn.Sequential(*_output(width, channels)),
                # Ceiling, as the strides of a hierarchical backbone: an odd map keeps its last row.
                nn.Sequential(nn.MaxPool2d(2, 2, ceil_mode=True), *_output(width, channels)),
            ]
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        return [level(x) for level in self.levels]


def _double(inputs: int, outputs: int) -> nn.Module:
    return nn.ConvTranspose2d(inputs, outputs, kernel_size=2, stride=2)


def _output(inputs: int, channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(inputs, channels, 1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        LayerNorm2d(channels),
    ]


class OverPyramid(nn.Module):
    """A task over four maps, as a task over the one map of a plain ViT. The pyramid is trained with the head."""

    def __init__(self, width: int, channels: int, task: nn.Module):
        super().__init__()
        self.pyramid = SimpleFeaturePyramid(width, channels)
        self.task = task

    def loss(self, maps: Sequence[Tensor], batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.task.loss(self.pyramid(maps[0]), batch)

    def predict(self, maps: Sequence[Tensor], size: Sequence[int]) -> dict[str, Tensor]:
        return self.task.predict(self.pyramid(maps[0]), size)

    def metrics(self) -> Any:
        return self.task.metrics()
