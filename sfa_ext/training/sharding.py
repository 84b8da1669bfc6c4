"""A backbone that ranks share: torch's FSDP2 (`fully_shard`) under an adapted model.

Each block is a unit: its parameters are gathered before it runs, forward and backward, and given up after it; gradients
are averaged and cut to each rank's part as soon as the block's backward is done, of those parameters alone that have
any. What is outside the blocks is one more unit. The head stays whole on every rank.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sfa_ext import ranks
from sfa_ext.backbones import named_blocks
from sfa_ext.selection.shards import is_shard, local
from sfa_ext.training.model import Model


def shard(model: Model) -> None:
    """Spreads the adapted backbone of `model` over all ranks, rows by rows, in place; comes before the optimizer.

    A weight of r rows is cut into pieces of ceil(r / ranks) rows; the last ranks may have fewer, or none.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # FSDP2 hooks what a unit returns, and warns where that is a view: work in place on it would lose the hook. Blocks
    # that no method has opened return views, as the backbone does; neither timm nor the heads write into them.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module .* returned a view tensor", UserWarning)
    mesh = init_device_mesh(next(model.backbone.parameters()).device.type, (ranks.size(),))
    for _, block in list(named_blocks(model.backbone)):
        fully_shard(block, mesh=mesh)
    fully_shard(model.backbone, mesh=mesh)
    model.adaptation.follow()


@torch.no_grad()
def clip_gradients_(shared: Sequence[Tensor], own: Sequence[Tensor], largest: float) -> float:
    """Scales gradients down, in place, where their norm together exceeds `largest`; returns what it was.

    shared: parameters whose gradients are in parts on the ranks. own: those whose gradients every rank has, the same.
    """
    parts, wholes = ([local(p.grad) for p in parameters if p.grad is not None] for parameters in (shared, own))
    squares = ranks.sum_(_square_sum(parts)) + _square_sum(wholes)
    norm = math.sqrt(squares)
    if norm > largest:
        torch._foreach_mul_([*parts, *wholes], largest / (norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_ does
    return norm


@contextlib.contextmanager
def in_step(model: Model) -> Iterator[None]:
    """Inside, the ranks that share a backbone may run it each on images of its own, some more often than others.

    They gather its parameters together, so those that are done go along on an empty image until all are.
    """
    backbone = model.backbone
    if not any(is_shard(p) for p in backbone.parameters()):
        yield
        return
    busy = lambda yes: bool(ranks.sum_(torch.tensor([int(yes)])))  # noqa: E731
    handle = backbone.register_forward_pre_hook(lambda *_: busy(True) and None, prepend=True)
    try:
        yield
    finally:
        handle.remove()
    empty = torch.zeros(1, 3, model.crop, model.crop, device=next(backbone.buffers()).device)
    while busy(False):
        backbone(empty)
    backbone.reshard()  # a backward would have done it


def _square_sum(gradients: Sequence[Tensor]) -> Tensor:
    """float64 [], on the CPU."""
    norms = torch._foreach_norm([g for g in gradients if g.numel()])
    return torch.stack(norms).double().square().sum().cpu() if norms else torch.zeros((), dtype=torch.float64)
