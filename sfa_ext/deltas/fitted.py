"""A task made ready for one backbone: all that a switch needs, so that it only moves values and references."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sfa_ext import ops, tasks  # noqa: F401  (ops registers torch.ops.sfa)
from sfa_ext.deltas.capture import head_state, method_of
from sfa_ext.deltas.file import Task
from sfa_ext.deltas.wiring import Rewiring, difference, snapshot
from sfa_ext.methods import Adaptation
from sfa_ext.selection import position_dtype

_SELECTION_PARTS = {"index": torch.int64, "round": torch.int16, "original": None, "value": None}


@dataclass
class FittedTask:
    """What one task exchanges in one backbone."""

    meta: dict[str, Any]
    head: nn.Module | None
    rewiring: Rewiring
    own: list[Tensor]  # parameters and buffers of the method's modules and of the head
    sparse: dict[str, tuple[Tensor, Tensor, Tensor]]  # by name: the weight, flat positions, values
    whole: dict[str, tuple[Tensor, Tensor]]  # by name: the backbone's parameter, the task's tensor
    _home: list[Tensor] = field(default_factory=list)

    @torch.no_grad()
    def swap(self, name: str) -> None:
        """Exchanges the selected entries of one weight with the values held; the same call exchanges them back."""
        weight, index, values = self.sparse[name]
        torch.ops.sfa.swap_values_(weight, index, values)

    def plug(self) -> None:
        """Puts modules and whole tensors into the backbone."""
        self._exchange_whole()
        self.rewiring.apply()

    def unplug(self) -> None:
        """Takes them out again."""
        self.rewiring.undo()
        self._exchange_whole()

    def _exchange_whole(self) -> None:
        for parameter, tensor in self.whole.values():
            parameter.data, tensor.data = tensor.data, parameter.data

    def tensors(self) -> list[Tensor]:
        """All that the task holds while it is not in the backbone."""
        return [
            *self.own,
            *(t for _, *pair in self.sparse.values() for t in pair),
            *(t for _, t in self.whole.values()),
        ]

    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors())

    def rest(self) -> None:
        """Lets the tensors wait in host memory, pinned where the backbone is on a GPU."""
        if not self._home:
            pin = torch.cuda.is_available()
            self._home = [t.data.cpu().pin_memory() if pin else t.data.cpu() for t in self.tensors()]
        for tensor, home in zip(self.tensors(), self._home, strict=True):
            tensor.data = home

    def fetch(self, device: torch.device) -> None:
        """Brings what `rest` put aside to the device."""
        for tensor, home in zip(self.tensors(), self._home, strict=False):
            tensor.data = home.to(device, non_blocking=True)


def exchange(leaving: FittedTask | None, coming: FittedTask | None) -> None:
    """Takes one task out of the backbone and puts another in."""
    # Weight by weight: the second task finds the weight in the cache.
    if leaving is not None:
        leaving.unplug()
        for name in leaving.sparse:
            leaving.swap(name)
            if coming is not None and name in coming.sparse:
                coming.swap(name)
    if coming is not None:
        for name in coming.sparse:
            if leaving is None or name not in leaving.sparse:
                coming.swap(name)
        coming.plug()


def fit(task: Task, backbone: nn.Module, head: nn.Module | None = None) -> FittedTask:
    """The task, ready for this bare backbone, which is left as it is.

    head: to be filled with the task's values, for a head that the file does not name. Raises ValueError where the
    backbone, the method's settings or the head do not take the task's tensors.
    """
    device = next(backbone.parameters()).device
    _check_size(task, backbone)
    sparse = _sparse(task, dict(backbone.named_parameters()), device)
    head = _head(task, backbone, head, device)
    rewiring, own, whole = _method(task, backbone)
    if both := sparse.keys() & whole.keys():
        raise ValueError(f"holds {min(both)!r} twice, whole and as selected values")
    if head is not None:
        own += [*head.parameters(), *head.buffers()]
    for tensor in own:
        tensor.requires_grad_(False)
    return FittedTask(task.meta, head, rewiring, own, sparse, whole)


def _check_size(task: Task, backbone: nn.Module) -> None:
    """Windows and shifts follow from the size a backbone is built for: with another it would compute something else."""
    crop = task.meta["crop"]
    for module in backbone.modules():
        size = getattr(getattr(module, "patch_embed", None), "img_size", None)
        if crop is not None and size is not None and tuple(size) != (crop, crop):
            raise ValueError(
                f"was trained on crops of {crop} pixels, this backbone is built for {'x'.join(map(str, size))}; "
                f"build it with size={crop}"
            )


def _sparse(task: Task, weights: dict[str, nn.Parameter], device: torch.device) -> dict[str, tuple]:
    found = {}
    for name, chosen in task.selected.items():
        weight = weights.get(name)
        if weight is None or weight.numel() != chosen.size:
            here = "no such weight" if weight is None else f"{weight.numel()} entries"
            raise ValueError(f"selects from {name!r} of {chosen.size} entries, this backbone has {here}")
        if len(chosen.index):
            index = chosen.index.to(device, position_dtype(chosen.size))
            found[name] = (weight.detach(), index, chosen.values.to(device, weight.dtype, copy=True))
    return found


def _head(task: Task, backbone: nn.Module, head: nn.Module | None, device: torch.device) -> nn.Module | None:
    named = task.meta["head"]
    if head is None and named is not None:
        channels, meta = backbone.feature_info.channels(), task.meta
        make: Callable[[], nn.Module] = lambda: tasks.build(  # noqa: E731
            named["name"], named["settings"], channels, meta["classes"], meta["objects"]
        )
        try:
            with torch.device("meta"), Bounded(task.part("head")):
                head_state(task, make())
        except (TypeError, RuntimeError, OverflowError) as error:
            raise ValueError(f"head {named['name']!r}: {error}") from error
        with torch.random.fork_rng([]):
            head = make()
    loaded = head_state(task, head) if head is not None else {}
    if head is None:
        return None
    head.load_state_dict(loaded)
    return head.to(device).eval()


def _method(task: Task, backbone: nn.Module) -> tuple[Rewiring, list[Tensor], dict[str, tuple[Tensor, Tensor]]]:
    """What the task's method does to the backbone: its wiring, its own tensors, the parameters it trains whole."""
    bare = {id(t) for t in _tensors(backbone)}
    names = {id(p): n for n, p in backbone.named_parameters()}
    parameters = list(backbone.parameters())
    required = [p.requires_grad for p in parameters]
    before = snapshot(backbone)
    try:
        with Bounded(task.part("method")):
            adaptation = method_of(task, backbone).build(backbone, 0)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        difference(before, snapshot(backbone)).undo()
        for parameter, wanted in zip(parameters, required, strict=True):
            parameter.requires_grad_(wanted)
        raise ValueError(f"method {task.meta['method']['name']!r}: {error}") from error
    try:
        _load(task, adaptation)
        after = snapshot(backbone)
        own = [t for t in _tensors(backbone) if id(t) not in bare]
        trained = [p for _, p in adaptation.named_parameters() if id(p) in names]
        whole = {names[id(p)]: (p, p.detach().clone()) for p in trained}
    finally:
        adaptation.detach()
    if difference(before, snapshot(backbone)).changes:
        raise RuntimeError(f"{type(adaptation).__name__}.detach() left something behind in the backbone")
    return difference(before, after), own, whole


def _load(task: Task, adaptation: Adaptation) -> None:
    """Fills the method's own tensors. What it selects stays out: the bank exchanges that itself."""
    tensors = task.part("method")
    expected = {n for n in adaptation.state() if not n.startswith("selection/")}
    if differ := sorted(expected ^ tensors.keys()):
        where = "missing" if differ[0] in expected else "unknown"
        raise ValueError(f"the method's {differ[0]!r} is {where}; does not fit {adaptation.settings}")
    for name, weight in ({} if adaptation.selection is None else adaptation.selection.weights).items():
        for part, dtype in _SELECTION_PARTS.items():
            tensors[f"selection/{name}/{part}"] = weight.new_empty(0, dtype=dtype or weight.dtype)
    adaptation.load_state(tensors)


class Bounded(TorchDispatchMode):
    """Refuses to make many more tensors, or many more numbers, than a file's: forged settings may ask for anything."""

    def __init__(self, tensors: Mapping[str, Tensor]):
        super().__init__()
        self._tensors = 1000 + 50 * len(tensors)
        self._numbers = 10**7 + 50 * sum(t.numel() for t in tensors.values())

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and not any(isinstance(a, Tensor) for a in args):
            self._tensors -= 1
            self._numbers -= made.numel()
            if self._tensors < 0 or self._numbers < 0:
                raise ValueError("its settings ask for far more than the file holds")
        return made


def _tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(), *module.buffers()]
