"""Frozen: only the task's head is trained (Lin et al. 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from sfa_ext.methods.base import Adaptation, Method, ParameterReport


@dataclass(frozen=True)
class Frozen(Method):
    """The backbone stays as it is."""

    def build(self, backbone: nn.Module, seed: int | None = None) -> Adaptation:
        return FrozenAdaptation(backbone, self)


class FrozenAdaptation(Adaptation):
    def __init__(self, backbone: nn.Module, settings: Frozen):
        super().__init__(backbone, settings)
        backbone.requires_grad_(False)

    def report(self) -> ParameterReport:
        return ParameterReport(external=0, internal=0, biases=0, **self.size)

    def _fold(self) -> None:
        """There is nothing to fold."""

    def _unfold(self) -> None:
        """There is nothing to undo."""

    def _remove(self) -> None:
        pass
