"""LoRA: low-rank updates beside frozen weights (Hu et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfa_ext.backbones import Operation, find_operations
from sfa_ext.methods.addition import Change, Changes, choose_size
from sfa_ext.methods.base import Adaptation, Method, setting
from sfa_ext.methods.budget import check_size

DEFAULT_RANK = 32
# Part of an operation's output channels that a target means, as (kind of operation, thirds of its output).
TARGETS = {
    "q": ("qkv", slice(0, 1)),
    "k": ("qkv", slice(1, 2)),
    "v": ("qkv", slice(2, 3)),
    "qkv": ("qkv", slice(0, 3)),
    "proj": ("proj", slice(0, 3)),
    "fc1": ("fc1", slice(0, 3)),
    "fc2": ("fc2", slice(0, 3)),
}


@dataclass(frozen=True)
class LoRA(Method):
    """Settings of LoRA: W x + alpha / r B A x."""

    rank: int | None = setting(None, f"r, at most the smaller side of the weight; {DEFAULT_RANK} without a budget")
    budget: float | None = setting(None, "share of the backbone that the largest rank may take, instead of rank")
    targets: tuple[str, ...] = setting(("q", "v"), f"projections that are updated, of {', '.join(TARGETS)}")
    alpha: float | None = setting(None, "the update is scaled by alpha / r; None takes r, a scale of 1")
    dropout: float = setting(0.0, "dropout before A")

    def __post_init__(self) -> None:
        check_size("rank", self.rank, self.budget)
        object.__setattr__(self, "targets", tuple(self.targets))
        unknown = [t for t in self.targets if t not in TARGETS]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets: must be different ones of {', '.join(TARGETS)}, got {list(self.targets)}")
        if "qkv" in self.targets and {"q", "k", "v"} & set(self.targets):
            raise ValueError(f"targets: qkv holds q, k and v already, got {list(self.targets)}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: must be in [0, 1), got {self.dropout}")

    def build(self, backbone: nn.Module, seed: int | None = None) -> Adaptation:
        return LoRAAdaptation(backbone, self, seed)

    def rows(self, operation: Operation) -> list[tuple[str, int, int]]:
        """(target, first, end) of the output channels of `operation` that are updated, in order."""
        third = operation.width // 3
        parts = [(t, TARGETS[t][1]) for t in TARGETS if t in self.targets and TARGETS[t][0] == operation.kind]
        if operation.kind != "qkv":
            return [(t, 0, operation.width) for t, _ in parts]
        return [(t, part.start * third, part.stop * third) for t, part in parts]


class LowRank(nn.Module):
    """B A x with A [r, in], B [out, r]; B starts at zero."""

    def __init__(self, inputs: int, outputs: int, rank: int):
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.empty(outputs, rank))

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.up)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down), self.up)


class LowRankUpdate(Change):
    """Adds scale * B A x to some rows of an operation's output; one pair (A, B) for each target."""

    def __init__(self, inputs: int, rows: list[tuple[str, int, int]], rank: int, scale: float, dropout: float):
        super().__init__()
        self.rows, self.scale = rows, scale
        self.dropout = nn.Dropout(dropout)
        self.parts = nn.ModuleDict({t: LowRank(inputs, end - first, rank) for t, first, end in rows})

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        for part in self.parts.values():
            part.reset_parameters(generator)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x, pieces, done = self.dropout(x), [], 0
        for target, first, end in self.rows:
            pieces += [y[..., done:first], y[..., first:end] + self.scale * self.parts[target](x)]
            done = end
        pieces = [p for p in [*pieces, y[..., done:]] if p.shape[-1]]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=-1)

    def folded(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        weight = weight.clone()
        for target, first, end in self.rows:
            part = self.parts[target]
            weight[first:end] += self.scale * (part.up.to(weight.dtype) @ part.down.to(weight.dtype))
        return weight, bias


class LoRAAdaptation(Changes):
    def __init__(self, backbone: nn.Module, settings: LoRA, seed: int | None = None):
        targets = [(op, rows) for op in find_operations(backbone) if (rows := settings.rows(op))]
        shapes = [(op.weight.shape[1], end - first) for op, rows in targets for _, first, end in rows]
        self.rank = choose_size(
            backbone, "rank", settings, DEFAULT_RANK, lambda rank: low_rank_weights(shapes, rank), max(map(min, shapes))
        )
        super().__init__(backbone, settings, seed)
        for operation, rows in targets:
            inputs = operation.weight.shape[1]
            rank = min(self.rank, inputs, *(end - first for _, first, end in rows))
            scale = 1.0 if settings.alpha is None else settings.alpha / rank
            self._change(operation, LowRankUpdate(inputs, rows, rank, scale, settings.dropout))

    def chosen(self) -> dict[str, int]:
        return {"rank": self.rank}


def low_rank_weights(shapes: list[tuple[int, int]], rank: int) -> int:
    """Weights of one pair (A, B) a matrix [out, in] given as (in, out)."""
    return sum(min(rank, i, o) * (i + o) for i, o in shapes)
