"""AdaptFormer: a scaled bottleneck beside every MLP (Chen et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sfa_ext.backbones import find_sites
from sfa_ext.methods.addition import Addition, choose_size
from sfa_ext.methods.base import Adaptation, Method, setting
from sfa_ext.methods.budget import bottleneck_weights, check_size

DEFAULT_DIM = 512


@dataclass(frozen=True)
class AdaptFormer(Method):
    """Settings of AdaptFormer: x + mlp half-block's branch + scale * up(dropout(relu(down(x))))."""

    dim: int | None = setting(None, f"d, at most the block's width; {DEFAULT_DIM} without a budget, as in Table 1")
    budget: float | None = setting(None, "share of the backbone that the largest d may take, instead of dim")
    scale: float = setting(0.1, "s, fixed")
    dropout: float = setting(0.1, "dropout inside the bottleneck")

    def __post_init__(self) -> None:
        check_size("dim", self.dim, self.budget)
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: must be in [0, 1), got {self.dropout}")

    def build(self, backbone: nn.Module, seed: int | None = None) -> Adaptation:
        return AdaptFormerAdaptation(backbone, self, seed)


class ParallelTail(nn.Module):
    """A half-block's residual sum plus scale * up(dropout(relu(down(stream)))), which drop path leaves alone."""

    def __init__(self, width: int, dim: int, scale: float, dropout: float):
        super().__init__()
        self.down, self.up = nn.Linear(width, dim), nn.Linear(dim, width)
        self.dropout = nn.Dropout(dropout)
        self.scale = scale

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, stream: Tensor, branch: Tensor, finish: nn.Module, drop_path: nn.Module) -> Tensor:
        adapted = self.up(self.dropout(torch.relu(self.down(stream))))
        return stream + drop_path(finish(branch)) + self.scale * adapted


class AdaptFormerAdaptation(Addition):
    def __init__(self, backbone: nn.Module, settings: AdaptFormer, seed: int | None = None):
        sites = [site for site in find_sites(backbone) if site.kind == "mlp"]
        widths = [site.width for site in sites]
        self.dim = choose_size(
            backbone, "dim", settings, DEFAULT_DIM, lambda d: bottleneck_weights(widths, d), max(widths)
        )
        super().__init__(backbone, settings, seed)
        for site in sites:
            tail = ParallelTail(site.width, min(self.dim, site.width), settings.scale, settings.dropout)
            site.install(self._add(site.name, tail, next(site.block.parameters())))

    def chosen(self) -> dict[str, int]:
        return {"dim": self.dim}
