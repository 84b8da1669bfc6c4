"""SSF: a scale and a shift after every operation (Lian et al. 2022, "Scaling & Shifting Your Features")."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sfa_ext.backbones import close_sites, find_operations
from sfa_ext.methods.addition import Change, Changes
from sfa_ext.methods.base import Adaptation, Method, ParameterReport, setting
from sfa_ext.methods.budget import at_least, check_size


@dataclass(frozen=True)
class SSF(Method):
    """Settings of SSF. Its size is fixed; as published it starts near, not at, the backbone (gamma ~ N(1, 0.02))."""

    starts_as_identity: ClassVar[bool] = False

    budget: float | None = setting(None, "refuse where scales and shifts are more than this share of the backbone")

    def __post_init__(self) -> None:
        check_size("size", None, self.budget)

    def build(self, backbone: nn.Module, seed: int | None = None) -> Adaptation:
        return SSFAdaptation(backbone, self, seed)


class ScaleShift(Change):
    """gamma * y + beta over the channels of y, which are its dimension `channel_dim`."""

    def __init__(self, width: int, channel_dim: int = -1):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width))
        self.shift = nn.Parameter(torch.empty(width))
        self.channel_dim = channel_dim

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.normal_(self.scale, 1.0, 0.02, generator=generator)
        nn.init.normal_(self.shift, 0.0, 0.02, generator=generator)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shape = [1] * y.dim()
        shape[self.channel_dim] = -1
        return y * self.scale.view(shape) + self.shift.view(shape)

    def folded(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.scale.to(weight.dtype)
        return weight * scale.view(-1, *[1] * (weight.dim() - 1)), bias * scale + self.shift.to(weight.dtype)


class SSFAdaptation(Changes):
    def __init__(self, backbone: nn.Module, settings: SSF, seed: int | None = None):
        operations = find_operations(backbone)
        super().__init__(backbone, settings, seed)
        needed, whole = sum(2 * op.width for op in operations), self.size["with_head"]
        if settings.budget is not None and needed > settings.budget * whole:
            close_sites(backbone)
            raise ValueError(
                f"budget: {settings.budget} allows {int(settings.budget * whole)} weights, SSF has one size and needs "
                f"{needed}; the smallest budget is {at_least(needed / whole)}"
            )
        for operation in operations:
            self._change(operation, ScaleShift(operation.width, operation.channel_dim))

    def report(self) -> ParameterReport:
        scales_and_shifts = sum(p.numel() for _, p in self.named_parameters())
        return ParameterReport(scales_and_shifts, 0, 0, **self.size)
