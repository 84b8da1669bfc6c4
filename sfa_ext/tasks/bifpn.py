"""The weighted bidirectional feature pyramid, for maps of any sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fusion(nn.Module):
    """Fast normalised fusion: sum_i relu(w_i) x_i / (1e-4 + sum_i relu(w_i)). EfficientDet (Tan et al. 2020), 3.3."""

    def __init__(self, inputs: int, device=None, dtype=None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(inputs, device=device, dtype=dtype))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        weight = F.relu(self.weight)
        weight = weight / (weight.sum() + 1e-4)
        return sum(w * m for w, m in zip(weight, maps, strict=True))


class BiFPNLayer(nn.Module):
    """One pass down and one up over `levels` maps of `width` channels, each map keeping its size."""

    def __init__(self, width: int, levels: int, device=None, dtype=None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        steps = levels - 1
        self.down = nn.ModuleList(Fusion(2, **factory) for _ in range(steps))
        self.down_convs = nn.ModuleList(_separable(width, **factory) for _ in range(steps))
        # A middle map meets its input, itself on the way down, and the finer map; the coarsest has had no way down.
        self.up = nn.ModuleList(Fusion(3 if i < steps else 2, **factory) for i in range(1, levels))
        self.up_convs = nn.ModuleList(_separable(width, **factory) for _ in range(steps))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        last = len(maps) - 1
        middle = [*maps]
        for i in range(last - 1, -1, -1):
            coarser = F.interpolate(middle[i + 1], size=maps[i].shape[-2:], mode="nearest")
            middle[i] = self.down_convs[i](self.down[i]([maps[i], coarser]))
        out = [middle[0]]
        for i in range(1, last + 1):
            # Pools to the very size of the next map, whatever the rounding of odd sizes was.
            finer = F.adaptive_max_pool2d(out[-1], maps[i].shape[-2:])
            inputs = [maps[i], middle[i], finer] if i < last else [maps[i], finer]
            out.append(self.up_convs[i - 1](self.up[i - 1](inputs)))
        return out


class BiFPN(nn.Module):
    """Maps, finest first, brought to `width` channels, one coarser map added, and `layers` BiFPN layers over all.

    forward: maps NCHW with `channels` -> as many maps and one more, [B, width, h_i, w_i]; the last has half the size of
    the one before, rounded up.
    """

    def __init__(self, channels: Sequence[int], width: int, layers: int, device=None, dtype=None) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, width, 1, bias=False, **factory), nn.BatchNorm2d(width, **factory))
            for c in channels
        )
        self.layers = nn.ModuleList(BiFPNLayer(width, len(channels) + 1, **factory) for _ in range(layers))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        levels = [project(m) for project, m in zip(self.lateral, maps, strict=True)]
        levels.append(F.max_pool2d(levels[-1], 3, stride=2, padding=1))
        for layer in self.layers:
            levels = layer(levels)
        return levels


def _separable(width: int, **factory) -> nn.Sequential:
    return nn.Sequential(
        nn.SiLU(),
        nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False, **factory),
        nn.Conv2d(width, width, 1, bias=False, **factory),
        nn.BatchNorm2d(width, **factory),
    )
