"""Checkpoints from which a run goes on with the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sfa_ext.files import read_tensors, write_tensors
from sfa_ext.training.model import Model


def save(
    path: Path, model: Model, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, meta: dict[str, Any]
):
    """Writes model, optimizer and scaler atomically; `meta` holds the step and whatever the loop must remember."""
    tensors = {f"model/{n}": t for n, t in model.state().items()}
    tensors |= {f"method/{n}": t for n, t in model.adaptation.optimizer_state(optimizer).items()}
    tensors |= {f"adamw/{n}": t for n, t in _adamw_state(optimizer).items()}
    write_tensors(path, tensors, meta | {"scaler": scaler.state_dict(), "fingerprint": model.adaptation.fingerprint})


def load(path: Path, model: Model, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """Takes up what `save` wrote and returns its meta. Raises ValueError where the file does not fit the run."""
    tensors, meta = read_tensors(path)
    if (here := model.adaptation.fingerprint) != meta["fingerprint"]:
        raise ValueError(f"{path}: was made with another backbone ({meta['fingerprint'][:12]}, here {here[:12]})")
    part = lambda key: {n.removeprefix(key): t for n, t in tensors.items() if n.startswith(key)}  # noqa: E731
    model.load_state(part("model/"))
    model.adaptation.load_optimizer_state(optimizer, part("method/"))
    _load_adamw_state(optimizer, part("adamw/"))
    scaler.load_state_dict(meta["scaler"])
    return meta


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
        inner.state[parameter][name] = value if name == "step" else value.to(parameter.device)
