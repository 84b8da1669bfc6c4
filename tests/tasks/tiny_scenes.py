"""Small images with known labels, and a tiny backbone, for the tests of the tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHANNELS = (16, 24, 32, 48)
CLASSES = ("ground", "box", "disc", "bar")


def shapes(count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images float32 [count, 3, size, size] and labels int64 [count, size, size]: a box, a disc and a bar each."""
    draw = torch.Generator().manual_seed(seed)
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    labels = torch.zeros(count, size, size, dtype=torch.int64)
    for label in labels:
        y, x, h, w = (torch.rand(4, generator=draw) * size / 2).int().tolist()
        label[y : y + h // 2 + size // 6, x : x + w // 2 + size // 6] = 1
        cy, cx, r = (torch.rand(3, generator=draw) * size).tolist()
        label[(row - cy) ** 2 + (column - cx) ** 2 < (size / 8 + r / 8) ** 2] = 2
        y = int(torch.rand(1, generator=draw) * (size - size // 8))
        label[y : y + size // 8, size // 4 :] = 3
    colours = torch.tensor([[0.0, 0.0, 0.0], [1.0, -1.0, 0.0], [-1.0, 1.0, 0.5], [0.5, 0.5, -1.0]])
    images = colours[labels].permute(0, 3, 1, 2) + 0.3 * torch.randn(count, 3, size, size, generator=draw)
    return images, labels


class TinyBackbone(nn.Module):
    """Maps of CHANNELS at strides 4, 8, 16, 32 from images."""

    def __init__(self) -> None:
        super().__init__()
        inner = (3, *CHANNELS)
        strides = (4, 2, 2, 2)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, s + 1, stride=s, padding=s // 2), nn.GroupNorm(4, b), nn.GELU())
            for a, b, s in zip(inner, CHANNELS, strides, strict=False)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def random_maps() -> list[Tensor]:
    """Random maps of two images of 64 x 96 pixels."""
    return [torch.randn(2, c, 16 >> i, 24 >> i) for i, c in enumerate(CHANNELS)]
