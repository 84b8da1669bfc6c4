"""The external adapter F_e: a residual bottleneck after attention and after the MLP (Eq. 3, Figure 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sfa_ext import ops  # noqa: F401  (registers torch.ops.sfa)

PLACEMENTS = ("branch", "post_norm", "stream")


class BottleneckAdapter(nn.Module):
    """x + relu(x W_down^T + b_down) W_up^T + b_up (Eq. 3), x [..., width]. An identity until W_up is trained."""

    def __init__(self, width: int, dim: int, device: torch.device | None = None, dtype: torch.dtype | None = None):
        super().__init__()
        self.down = nn.Linear(width, dim, device=device, dtype=dtype)
        self.up = nn.Linear(dim, width, device=device, dtype=dtype)
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)

    def forward(self, x: Tensor) -> Tensor:
        down, up = self.down, self.up
        return torch.ops.sfa.fused_adapter(x, down.weight, down.bias, up.weight, up.bias)


class AdapterTail(nn.Module):
    """A half-block's residual sum with an adapter in it.

    placement "branch": stream + finish(adapter(branch)), as Figure 3 has it; "post_norm": stream +
    adapter(finish(branch)); "stream": adapter(stream + finish(branch)).
    """

    def __init__(self, adapter: BottleneckAdapter, placement: str):
        super().__init__()
        if placement not in PLACEMENTS:
            raise ValueError(f"placement: unknown {placement!r}, known: {', '.join(PLACEMENTS)}")
        self.adapter = adapter
        self.placement = placement

    def forward(self, stream: Tensor, branch: Tensor, finish: nn.Module, drop_path: nn.Module) -> Tensor:
        if self.placement == "stream":
            return self.adapter(stream + drop_path(finish(branch)))
        if self.placement == "post_norm":
            return stream + drop_path(self.adapter(finish(branch)))
        # Not sfa::fused_adapter_norm: its LayerNorm rounds differently from torch's, and an adapted model has to start
        # with exactly the backbone's output.
        return stream + drop_path(finish(self.adapter(branch)))

    def fast(self, stream: Tensor, branch: Tensor, finish: nn.Module, drop_path: nn.Module) -> Tensor:
        """`forward` up to rounding, for accelerated blocks: adapter, norm and sum in one pass where that is all."""
        plain = isinstance(finish, nn.LayerNorm) and not (finish._forward_hooks or finish._forward_pre_hooks)
        if self.placement != "branch" or not plain or not isinstance(drop_path, nn.Identity):
            return self(stream, branch, finish, drop_path)
        down, up = self.adapter.down, self.adapter.up
        weights = (down.weight, down.bias, up.weight, up.bias, finish.weight, finish.bias)
        return torch.ops.sfa.fused_adapter_norm(stream, branch, *weights, finish.eps)
