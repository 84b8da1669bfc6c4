"""The tensors of a training step, followed on meta tensors: what a backbone of any size would need at most.

The adapted backbone itself runs, forward and backward, without storage; every tensor that an operator makes counts for
as long as it lives. What the ranks' communication adds is allocated where torch's FSDP2 and `ranks` allocate it.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sfa_ext.backbones import named_blocks


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that operators make inside it, while they live, and the most at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.peak = 0, 0
        self._seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return made

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Leaves out tensors that were there before."""
        for tensor in tensors:
            self._seen.add(tensor.untyped_storage())

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.now -= size


@dataclass
class Unit:
    """Parameters that FSDP2 gathers and reduces together: those of a block, or what is outside the blocks."""

    name: str
    module: nn.Module
    parameters: list[nn.Parameter] = field(default_factory=list)

    def bytes(self, ranks: int, trained: bool = False) -> int:
        """Bytes of all parameters, or of those that are trained, padded so that every rank's part is as large."""
        chosen = (p for p in self.parameters if p.requires_grad or not trained)
        return sum(ranks * part_bytes(p, ranks) for p in chosen)


def part_bytes(tensor: Tensor, ranks: int) -> int:
    """Bytes of the largest part of `tensor` that a rank holds, of `ranks` that share its rows."""
    rows = -(-len(tensor) // ranks) if tensor.dim() else 1
    return rows * (tensor.nbytes // max(len(tensor), 1) if tensor.dim() else tensor.nbytes)


def units(backbone: nn.Module) -> list[Unit]:
    """As `sharding.shard` makes them: one a block, in order, and the rest last."""
    found = [Unit(name, block, list(block.parameters())) for name, block in named_blocks(backbone)]
    taken = {id(p) for unit in found for p in unit.parameters}
    return [*found, Unit("rest", backbone, [p for p in backbone.parameters() if id(p) not in taken])]


@dataclass(frozen=True)
class Work:
    """What a step does with the gradients of an adapted backbone."""

    searching: bool  # gradients of candidates are kept until the step's end, where they are scored
    candidates: frozenset[int]  # ids of the parameters that weights are selected from
    selected: float  # share of their entries that are selected, whose gradients are applied


def step_bytes(backbone: nn.Module, images: tuple[int, int, int, int], work: Work, ranks: int, shard: bool) -> int:
    """The most bytes that activations, gradients and communication of a step need together on one of `ranks`.

    backbone: adapted, on the meta device, with gradients required of what is trained. images: [B, 3, H, W] of a rank.
    shard: as `sharding.shard` does it; else every rank has the whole backbone.
    """
    live = LiveBytes()
    live.ignore([*backbone.parameters(), *backbone.buffers()])
    step = (_SharedStep if shard else _WholeStep)(backbone, work, ranks)
    handles = step.watch()
    try:
        with live:
            maps = backbone(torch.empty(images, device="meta"))
            loss = sum(m.mean() for m in maps)
            del maps
            if loss.requires_grad:
                loss.backward()
            del loss
            step.finish()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in backbone.parameters():
            parameter.grad = None
    return live.peak


class _WholeStep:
    """Every rank has all parameters. After the backward one flat copy of what is trained travels."""

    def __init__(self, backbone: nn.Module, work: Work, ranks: int):
        self.work, self.ranks = work, ranks
        self.parameters = [p for p in backbone.parameters() if p.requires_grad]
        self.slots: list[Tensor] = []

    def watch(self) -> list:
        return [p.register_post_accumulate_grad_hook(self._gather_selected) for p in self.parameters]

    def _gather_selected(self, parameter: Tensor) -> None:
        if id(parameter) in self.work.candidates:
            self.slots.append(_bytes(int(self.work.selected * parameter.nbytes)))
            if not self.work.searching:
                parameter.grad = None

    def finish(self) -> None:
        if self.ranks > 1:
            whole = [p.grad for p in self.parameters if p.grad is not None and id(p) not in self.work.candidates]
            _bytes(sum(t.nbytes for t in [*whole, *self.slots]))


class _SharedStep:
    """FSDP2: what is gathered, fetched ahead and reduced, as torch's FSDPParamGroup holds it."""

    def __init__(self, backbone: nn.Module, work: Work, ranks: int):
        self.work, self.ranks = work, ranks
        self.units = units(backbone)
        self.whole: dict[str, Tensor] = {}  # parameters of the units that are gathered
        self.fetched: Tensor | None = None  # the message that brought the last of them, or brings the next
        self.reduced: Tensor | None = None  # the message that carries away the last gradients
        self.kept: list[Tensor] = []  # this rank's part of gradients
        self.done: set[str] = set()

    def watch(self) -> list:
        handles = []
        for unit, before in zip(self.units, [None, *self.units[:-2], None], strict=True):
            pre, post = functools.partial(self._enter, unit), functools.partial(self._leave, unit, before)
            handles += [unit.module.register_forward_pre_hook(pre), unit.module.register_forward_hook(post)]
        return handles

    def _enter(self, unit: Unit, module: nn.Module, inputs: tuple) -> None:
        size = unit.bytes(self.ranks)
        self.fetched = None
        self.fetched, self.whole[unit.name] = _bytes(size), _bytes(size)
        if module is not self.units[-1].module and inputs[0].requires_grad:
            inputs[0].register_hook(lambda _: self._reduce(unit))

    def _leave(self, unit: Unit, before: Unit | None, module: nn.Module, inputs: tuple, output) -> None:
        if module is self.units[-1].module:
            self.fetched = None  # the outermost unit stays gathered
        else:
            del self.whole[unit.name]
            if output.requires_grad:
                output.register_hook(lambda _: self._gather_again(unit, before))

    def _gather_again(self, unit: Unit, before: Unit | None) -> None:
        self.whole[unit.name] = _bytes(unit.bytes(self.ranks))
        self.fetched = None if before is None else _bytes(before.bytes(self.ranks))

    def _reduce(self, unit: Unit) -> None:
        self.done.add(unit.name)
        self.whole.pop(unit.name, None)
        trained = [p for p in unit.parameters if p.grad is not None]
        self.reduced = None  # one message at a time
        self.reduced = _bytes(self.ranks * sum(part_bytes(p, self.ranks) for p in trained))
        for parameter in trained:
            parameter.grad = None
        part = _bytes(sum(part_bytes(p, self.ranks) for p in trained))  # gradients are views of it
        candidates = [p for p in trained if id(p) in self.work.candidates]
        self.kept += [_bytes(int(self.work.selected * part_bytes(p, self.ranks))) for p in candidates]
        if self.work.searching or len(candidates) < len(trained):
            self.kept.append(part)

    def finish(self) -> None:
        for unit in self.units:  # those that no gradient passes through, and the outermost
            if unit.name not in self.done:
                self._reduce(unit)


def _bytes(size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device="meta")
