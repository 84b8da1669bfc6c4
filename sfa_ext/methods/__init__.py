"""Ways to adapt a backbone. One file a method: a frozen dataclass of settings, and the Adaptation it builds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import nn

from sfa_ext.methods.adaptformer import AdaptFormer
from sfa_ext.methods.base import Adaptation, Method, ParameterReport
from sfa_ext.methods.frozen import Frozen
from sfa_ext.methods.full import Full
from sfa_ext.methods.lora import LoRA
from sfa_ext.methods.mona import Mona
from sfa_ext.methods.sfa import PRESETS, SFA, preset
from sfa_ext.methods.ssf import SSF
from sfa_ext.methods.vpt import VPT

METHODS: dict[str, type[Method]] = {
    "frozen": Frozen,
    "full": Full,
    "ssf": SSF,
    "vpt": VPT,
    "lora": LoRA,
    "adaptformer": AdaptFormer,
    "mona": Mona,
    "sfa": SFA,
}

__all__ = [
    "METHODS",
    "PRESETS",
    "SFA",
    "SSF",
    "VPT",
    "AdaptFormer",
    "Adaptation",
    "Frozen",
    "Full",
    "LoRA",
    "Method",
    "Mona",
    "ParameterReport",
    "adapt",
    "resolve",
]


def adapt(backbone: nn.Module, method: Method | str, *, seed: int | None = None) -> Adaptation:
    """Adapts `backbone` in place by `method` and returns the handle to train, save and undo it.

    Parameters
    ----------
    backbone: a timm SwinV2, or a model that holds one.
    method: a settings object (`SFA(budget=0.05)`, `LoRA(rank=32)`) or a name, one of METHODS or PRESETS.
    seed: seed of the method's own random numbers (adapter initialisation); None draws from torch's generator.

    Raises ValueError for an unknown name, a model without known blocks, a model that is adapted already, or a budget
    that cannot be met.
    """
    settings = resolve(method, backbone) if isinstance(method, str) else method
    if not isinstance(settings, Method):
        raise ValueError(f"method: expected a name or a settings object such as SFA(), got {type(method).__name__}")
    if getattr(backbone, "_sfa_adaptation", None) is not None:
        raise ValueError("backbone: it is adapted already; call detach() on that adaptation first")
    adaptation = settings.build(backbone, seed)
    backbone._sfa_adaptation = adaptation
    return adaptation


def setting_names(name: str) -> set[str]:
    """Names of the settings of a method or preset. Raises ValueError for an unknown name."""
    if name not in METHODS and name not in PRESETS:
        raise ValueError(f"method: unknown {name!r}, known: {', '.join([*METHODS, *PRESETS])}")
    return {f.name for f in dataclasses.fields(METHODS.get(name, SFA))}


def resolve(name: str, backbone: nn.Module, settings: Mapping[str, Any] | None = None) -> Method:
    """Settings of method or preset `name` for this backbone, with `settings` on top.

    Raises ValueError for an unknown name or setting, listing the known ones.
    """
    settings, known = dict(settings or {}), setting_names(name)
    base = preset(name, backbone) if name in PRESETS else METHODS[name]()
    if unknown := sorted(set(settings) - known):
        raise ValueError(
            f"method {name!r}: unknown setting {unknown[0]!r}, known: {', '.join(sorted(known)) or 'none'}"
        )
    return dataclasses.replace(base, **settings)
