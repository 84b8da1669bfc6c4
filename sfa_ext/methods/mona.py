"""Mona: multi-scale convolutional adapters after both half-blocks (Yin et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfa_ext.backbones import Grid, find_sites
from sfa_ext.methods.addition import Addition, choose_size, reset_as_torch
from sfa_ext.methods.base import Adaptation, Method, setting
from sfa_ext.methods.budget import check_size

DEFAULT_DIM = 64
KERNELS = (3, 5, 7)


@dataclass(frozen=True)
class Mona(Method):
    """Settings of Mona. As published its projections start as torch draws them, so not at the backbone's output."""

    starts_as_identity: ClassVar[bool] = False

    dim: int | None = setting(None, f"width inside the adapter; {DEFAULT_DIM} without a budget, as published")
    budget: float | None = setting(None, "share of the backbone that the largest width may take, instead of dim")
    dropout: float = setting(0.1, "dropout after the activation")

    def __post_init__(self) -> None:
        check_size("dim", self.dim, self.budget)
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: must be in [0, 1), got {self.dropout}")

    def build(self, backbone: nn.Module, seed: int | None = None) -> Adaptation:
        return MonaAdaptation(backbone, self, seed)


class MonaAdapter(nn.Module):
    """x + up(dropout(gelu(mix(down(norm(x) * a + x * b))))), tokens x as the backbone's grid lays them out.

    mix(h) = m + point(m) with m = mean of depthwise 3x3, 5x5 and 7x7 of h, plus h. Tokens without a place in the image
    (class, registers) have no neighbours: convolutions pass them by.
    """

    def __init__(self, width: int, dim: int, dropout: float, grid: Grid):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.norm_scale, self.stream_scale = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.down, self.up = nn.Linear(width, dim), nn.Linear(dim, width)
        self.depthwise = nn.ModuleList(nn.Conv2d(dim, dim, k, padding=k // 2, groups=dim) for k in KERNELS)
        self.pointwise = nn.Conv2d(dim, dim, 1)
        self.dropout = nn.Dropout(dropout)
        self.grid = grid

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        self.norm.reset_parameters()
        nn.init.constant_(self.norm_scale, 1e-6)
        nn.init.ones_(self.stream_scale)
        for layer in (self.down, *self.depthwise, self.pointwise, self.up):
            reset_as_torch(layer, generator)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.down(self.norm(x) * self.norm_scale + x * self.stream_scale)
        prefix, grid = self.grid.split(hidden)
        hidden = self.grid.join(prefix, self._mix(grid.movedim(-1, 1)).movedim(1, -1))
        return x + self.up(self.dropout(F.gelu(hidden)))

    def _mix(self, maps: Tensor) -> Tensor:  # [B, dim, H, W]
        mixed = maps + sum(conv(maps) for conv in self.depthwise) / len(self.depthwise)
        return mixed + self.pointwise(mixed)


class StreamTail(nn.Module):
    """A half-block's residual sum, then the adapter."""

    def __init__(self, adapter: MonaAdapter):
        super().__init__()
        self.adapter = adapter

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        self.adapter.reset_parameters(generator)

    def forward(self, stream: Tensor, branch: Tensor, finish: nn.Module, drop_path: nn.Module) -> Tensor:
        return self.adapter(stream + drop_path(finish(branch)))


def mona_weights(widths: list[int], dim: int) -> int:
    """Matrices and kernels of one adapter a width."""
    return sum(dim * (2 * width + sum(k * k for k in KERNELS) + dim) for width in widths)


class MonaAdaptation(Addition):
    def __init__(self, backbone: nn.Module, settings: Mona, seed: int | None = None):
        sites = find_sites(backbone)
        widths = [site.width for site in sites]
        self.dim = choose_size(backbone, "dim", settings, DEFAULT_DIM, lambda d: mona_weights(widths, d))
        super().__init__(backbone, settings, seed)
        for site in sites:
            tail = StreamTail(MonaAdapter(site.width, self.dim, settings.dropout, site.grid))
            site.install(self._add(site.name, tail, next(site.block.parameters())))

    def chosen(self) -> dict[str, int]:
        return {"dim": self.dim}
