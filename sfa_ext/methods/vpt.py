"""VPT-Deep: learned tokens that attention reads in every block (Jia et al. 2022)."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from sfa_ext.backbones import find_operations, find_sites, the_model
from sfa_ext.methods.addition import Addition, choose_size
from sfa_ext.methods.base import Adaptation, Method, setting
from sfa_ext.methods.budget import check_size

DEFAULT_TOKENS = 50


@dataclass(frozen=True)
class VPT(Method):
    """Settings of VPT-Deep. Prompts start at random and take part in the softmax, so not at the backbone's output."""

    starts_as_identity: ClassVar[bool] = False

    tokens: int | None = setting(None, f"prompt tokens a block; {DEFAULT_TOKENS} without a budget")
    budget: float | None = setting(None, "share of the backbone that the most tokens may take, instead of tokens")

    def __post_init__(self) -> None:
        check_size("tokens", self.tokens, self.budget)

    def build(self, backbone: nn.Module, seed: int | None = None) -> Adaptation:
        return VPTAdaptation(backbone, self, seed)


class Prompts(nn.Module):
    """Tokens [P, D], drawn from U(-bound, bound)."""

    def __init__(self, tokens: int, width: int, bound: float):
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(tokens, width))
        self.bound = bound

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.uniform_(self.tokens, -self.bound, self.bound, generator=generator)

    def forward(self) -> Tensor:
        return self.tokens


class VPTAdaptation(Addition):
    """Prompts join the keys and values of every block's attention, in every window.

    VPT-Deep replaces the prompts before every block. What a block computes at them (their attention averaged over
    windows, their MLP, their way through patch merging) is therefore overwritten before anything reads it, and the maps
    strip it; it is not computed here. Image tokens get exactly what the whole computation gives them.
    """

    def __init__(self, backbone: nn.Module, settings: VPT, seed: int | None = None):
        sites = [site for site in find_sites(backbone) if site.kind == "attention"]
        embed = next(op for op in find_operations(backbone) if op.kind == "embed")
        width = sum(site.width for site in sites)
        self.tokens = choose_size(backbone, "tokens", settings, DEFAULT_TOKENS, lambda n: n * width)
        super().__init__(backbone, settings, seed)
        # Glorot's bound over a patch and the first stage's width, which VPT keeps for every stage.
        bound = math.sqrt(6 / (3 * math.prod(embed.module.kernel_size) + embed.width))
        for site in sites:
            prompts = Prompts(self.tokens, site.width, bound)
            site.install_context(self._add(site.name, prompts, next(site.block.parameters())))
        # The encoder stays in eval mode whoever calls train(): no drop path, no dropout.
        self._model = the_model(backbone)
        self._training = self._model.training
        self._model.train = functools.partial(_stay_in_eval, self._model)
        self._model.eval()

    def chosen(self) -> dict[str, int]:
        return {"tokens": self.tokens}

    def _remove(self) -> None:
        del self._model.train
        self._model.train(self._training)
        super()._remove()


def _stay_in_eval(module: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(module, False)
