"""What methods share that leave the backbone's weights alone and add modules of their own."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from sfa_ext.backbones import Operation, accounted_size, close_sites, find_sites
from sfa_ext.methods.base import Adaptation, Method, ParameterReport
from sfa_ext.methods.budget import fit_size


class Addition(Adaptation):
    """A frozen backbone with a module added at each of some places."""

    def __init__(self, backbone: nn.Module, settings: Method, seed: int | None):
        super().__init__(backbone, settings)
        self.added: dict[str, nn.Module] = {}
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)
        backbone.requires_grad_(False)

    def _add(self, name: str, module: nn.Module, like: nn.Parameter) -> nn.Module:
        """Initialises `module`, keeps it under the `name` of its place, and returns it where and as `like` is."""
        module.reset_parameters(self._generator)
        self.added[name] = module.to(like.device, like.dtype).train(self.backbone.training)
        return self.added[name]

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        for place, module in self.added.items():
            for name, parameter in module.named_parameters():
                yield f"{place}.{name}", parameter

    def report(self) -> ParameterReport:
        named = [p for _, p in self.named_parameters()]
        matrices = sum(p.numel() for p in named if p.dim() > 1)
        return ParameterReport(matrices, 0, sum(p.numel() for p in named) - matrices, **self.size)

    def _remove(self) -> None:
        close_sites(self.backbone)


class Change(nn.Module, abc.ABC):
    """A module that changes the output of an operation, `forward(x, y)`, and can be folded into its weight and bias."""

    @abc.abstractmethod
    def folded(self, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight and bias of an operation that computes the changed output by itself."""


class Changes(Addition):
    """Additions that change outputs of operations, and can be merged into them."""

    def __init__(self, backbone: nn.Module, settings: Method, seed: int | None):
        super().__init__(backbone, settings, seed)
        self._changed: dict[str, Operation] = {}
        self._saved: dict[str, dict[str, Any]] = {}

    def _change(self, operation: Operation, change: Change) -> None:
        operation.install(self._add(operation.name, change, operation.weight))
        self._changed[operation.name] = operation

    @torch.no_grad()
    def _fold(self) -> None:
        try:
            for name, operation in self._changed.items():
                self._saved[name] = operation.fold(self.added[name].folded)
        except ValueError:
            self._restore()
            raise
        self._remove()

    def _unfold(self) -> None:
        self._restore()
        find_sites(self.backbone)  # opens the blocks again
        for name, operation in self._changed.items():
            operation.install(self.added[name])

    @torch.no_grad()
    def _restore(self) -> None:
        for name, saved in self._saved.items():
            self._changed[name].restore(saved)
        self._saved = {}

    def _remove(self) -> None:
        for operation in self._changed.values():
            operation.remove()
        super()._remove()


def choose_size(
    backbone: nn.Module, name: str, settings: Any, default: int, count: Callable[[int], int], largest: int = 2**20
) -> int:
    """The size that `settings` give under `name`, else the largest that fits their budget, else `default`.

    Raises ValueError as `fit_size`, after it closed the sites of `backbone`, which were opened to count.
    """
    if settings.budget is None:
        return getattr(settings, name) or default
    try:
        return fit_size(name, count, settings.budget, accounted_size(backbone)["with_head"], largest)
    except ValueError:
        close_sites(backbone)
        raise


def reset_as_torch(module: nn.Linear | nn.Conv2d, generator: torch.Generator | None) -> None:
    """torch's own initialisation of a linear or convolution layer, from `generator`."""
    nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
    if module.bias is not None:
        bound = 1 / math.sqrt(module.weight[0].numel())
        nn.init.uniform_(module.bias, -bound, bound, generator=generator)
