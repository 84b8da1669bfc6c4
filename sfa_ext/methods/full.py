"""Full fine-tuning: every parameter of the backbone is trained."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from sfa_ext.methods.base import Adaptation, Method, ParameterReport


@dataclass(frozen=True)
class Full(Method):
    """Trains the whole backbone; keeps a copy of it so that it can be undone."""

    def build(self, backbone: nn.Module, seed: int | None = None) -> Adaptation:
        return FullAdaptation(backbone, self)


class FullAdaptation(Adaptation):
    def __init__(self, backbone: nn.Module, settings: Full):
        super().__init__(backbone, settings)
        backbone.requires_grad_(True)
        # The copy waits in host memory; a model on the meta device (counting only) has nothing to copy.
        self._original = {
            name: p.detach() if p.is_meta else p.detach().to("cpu", copy=True)
            for name, p in backbone.named_parameters()
        }

    def follow(self) -> None:
        self._original = {}  # a sharded backbone is not restored

    def host_bytes(self) -> int:
        return sum(t.nbytes for t in self._original.values())

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        return self.backbone.named_parameters()

    def report(self) -> ParameterReport:
        matrices = sum(p.numel() for p in self.backbone.parameters() if p.dim() > 1)
        vectors = sum(p.numel() for p in self.backbone.parameters()) - matrices
        return ParameterReport(external=0, internal=matrices, biases=vectors, **self.size)

    def _fold(self) -> None:
        """What was trained is in the weights already."""

    def _unfold(self) -> None:
        self.backbone.requires_grad_(True)

    @torch.no_grad()
    def _remove(self) -> None:
        for name, parameter in self.backbone.named_parameters():
            parameter.copy_(self._original[name])
