"""Places in a backbone where a method may act: the tail of a half-block, the tokens its attention sees, an operation.

A transformer block has two half-blocks, attention and MLP. Each computes

    stream + drop_path(finish(branch))

where `finish` is what the family puts last on the branch (SwinV2: its LayerNorm; ViT: its layer scale). A family turns
this sum into a replaceable module, the *tail*, and lets tokens of a method join those that attention reads. An
*operation* is a module of the backbone whose output a method may change, and into whose weights it may be folded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

TAILS = {"attention": "attention_tail", "mlp": "mlp_tail"}
CONTEXT = "context"
CHANGE = "change"
SLOTS = (*TAILS.values(), CONTEXT, CHANGE)


class ResidualTail(nn.Module):
    """What every half-block ends with when no method acts there: stream + drop_path(finish(branch))."""

    def forward(self, stream: Tensor, branch: Tensor, finish: nn.Module, drop_path: nn.Module) -> Tensor:
        return stream + drop_path(finish(branch))


class Grid:
    """How a family lays out its tokens: here as a map [B, H, W, D] without further tokens."""

    def split(self, tokens: Tensor) -> tuple[Tensor | None, Tensor]:
        """(tokens that have no place in the image [B, P, D] or None, the others as a map [B, H, W, D])."""
        return None, tokens

    def join(self, prefix: Tensor | None, grid: Tensor) -> Tensor:
        """Undoes `split`."""
        return grid


@dataclass(frozen=True)
class Site:
    """One half-block. `name` is its path in the backbone, `kind` is "attention" or "mlp", `width` is D."""

    name: str
    kind: str
    width: int
    block: nn.Module = field(repr=False)
    slot: str
    reader: nn.Module = field(repr=False)  # what looks up the context of this block's attention
    grid: Grid = field(repr=False)

    def install(self, tail: nn.Module) -> None:
        """Puts `tail(stream, branch, finish, drop_path) -> Tensor` in place of the plain residual sum."""
        setattr(self.block, self.slot, tail)

    def install_context(self, tokens: nn.Module) -> None:
        """Lets the tokens [P, D] that `tokens()` returns join the keys and values of this block's attention.

        They enter as tokens of the stream would; every window sees them; attention's output at them is dropped.
        """
        setattr(self.reader, CONTEXT, tokens)


@dataclass(eq=False)
class Operation:
    """A module y = f(x) with a weight per output channel. `kind`: "embed", "norm", "qkv", "proj", "fc1" or "fc2"."""

    name: str
    kind: str
    module: nn.Module = field(repr=False)

    @property
    def weight(self) -> nn.Parameter:
        return self.module.weight

    @property
    def width(self) -> int:
        """Output channels."""
        return self.module.weight.shape[0]

    @property
    def channel_dim(self) -> int:
        """The dimension of the output that holds the channels."""
        return 1 if isinstance(self.module, nn.Conv2d) else -1

    def install(self, change: nn.Module) -> None:
        """Makes the output `change(x, y)`. The change becomes a part of the module, so it moves with the model."""
        self.remove()
        setattr(self.module, CHANGE, change)
        self._handle = self.module.register_forward_hook(_changed)

    def remove(self) -> None:
        """Takes the change out."""
        if hasattr(self.module, CHANGE):
            self._handle.remove()
            delattr(self.module, CHANGE)

    def bias(self) -> Tensor | None:
        """The bias that the operation adds, None where it has none."""
        return self.module.bias

    def fold(self, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> dict[str, Any]:
        """Replaces weight and bias by `change(weight, bias)`, float32 or wider; returns what `restore` needs.

        Raises ValueError for a bias where the module cannot have one.
        """
        weight, bias = self.weight.detach(), self.bias()
        saved = {"weight": weight.clone()} | self._saved_bias()
        wide = torch.promote_types(weight.dtype, torch.float32)
        start = weight.new_zeros(self.width) if bias is None else bias.detach()
        new_weight, new_bias = change(weight.to(wide), start.to(wide))
        if bias is not None or new_bias.any():
            self._set_bias(new_bias.to(weight.dtype))
        weight.copy_(new_weight)
        return saved

    def restore(self, saved: dict[str, Any]) -> None:
        """Puts back, bit by bit, what `fold` replaced."""
        self.weight.detach().copy_(saved["weight"])
        self._restore_bias(saved)

    def _saved_bias(self) -> dict[str, Any]:
        bias = self.bias()
        return {"bias": None if bias is None else bias.detach().clone()}

    def _set_bias(self, bias: Tensor) -> None:
        if self.bias() is not None:
            self.bias().detach().copy_(bias)
        elif isinstance(self.module, (nn.Linear, nn.Conv2d)):
            self.module.bias = nn.Parameter(bias)
        else:
            raise ValueError(f"merge: {self.name} ({type(self.module).__name__}) has no bias to take up a shift")

    def _restore_bias(self, saved: dict[str, Any]) -> None:
        if saved["bias"] is None:
            self.module.bias = None
        else:
            self.module.bias.detach().copy_(saved["bias"])


def _changed(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return getattr(module, CHANGE)(inputs[0], output)
