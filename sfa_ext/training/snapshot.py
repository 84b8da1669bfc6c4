"""All that a run goes on with: taken from its model and optimizer, and put back, by as many ranks or by others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfa_ext.selection.shards import part_of, shared_as
from sfa_ext.training.model import Model


@dataclass
class Snapshot:
    """Tensors by name, and JSON-able facts. All ranks have the same names and facts.

    own: names of tensors of which each rank has its own, by what stands in for them on another number of ranks: their
    "mean", or all of them "joined" one after the other. Any other tensor the ranks have alike, or share by rows.
    """

    tensors: dict[str, Tensor]
    own: dict[str, str]
    facts: dict[str, Any]


def collect(model: Model, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> Snapshot:
    """What `restore` needs. Copies nothing, and no rank hears of another's part."""
    tensors = {f"model/{n}": t for n, t in model.state().items()}
    tensors |= {f"optimizer/{n}": t for n, t in model.adaptation.optimizer_state(optimizer).items()}
    tensors |= {f"adamw/{n}": t for n, t in _adamw_state(optimizer).items()}
    kinds = model.adaptation.own_state()
    own = {f"model/method/{n}": kind for n, kind in kinds.items()} | {f"optimizer/{n}": k for n, k in kinds.items()}
    facts = {"scaler": scaler.state_dict(), "fingerprint": model.adaptation.fingerprint}
    return Snapshot(tensors, {n: own[n] for n in tensors if n in own}, facts)


def restore(snapshot: Snapshot, model: Model, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Takes up what `collect` gave. Raises ValueError where it does not fit the run."""
    if (here := model.adaptation.fingerprint) != (theirs := snapshot.facts["fingerprint"]):
        raise ValueError(f"checkpoint: was made with another backbone ({theirs[:12]}, here {here[:12]})")
    part = lambda key: {n.removeprefix(key): t for n, t in snapshot.tensors.items() if n.startswith(key)}  # noqa: E731
    model.load_state(part("model/"))
    model.adaptation.load_optimizer_state(optimizer, part("optimizer/"))
    _load_adamw_state(optimizer, part("adamw/"))
    scaler.load_state_dict(snapshot.facts["scaler"])


def _adamw(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    return optimizer.whole if hasattr(optimizer, "whole") else optimizer


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _adamw_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    inner = _adamw(optimizer)
    if inner is None:
        return {}
    kept = ((i, inner.state.get(p, {})) for i, p in enumerate(_parameters(inner)))
    return {f"{i}/{name}": torch.as_tensor(value) for i, state in kept for name, value in state.items()}


def _load_adamw_state(optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    inner = _adamw(optimizer)
    for key, value in state.items():
        position, name = key.split("/")
        parameter = _parameters(inner)[int(position)]
        part = value if name == "step" else part_of(value, parameter).to(parameter.device, copy=True)
        inner.state[parameter][name] = part if name == "step" else shared_as(parameter, part)
