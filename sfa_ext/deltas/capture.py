"""From an adapted model to a task, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sfa_ext.deltas.file import Selected, Task
from sfa_ext.methods import METHODS, Adaptation, Method, resolve
from sfa_ext.selection.shards import whole

_SELECTION = "selection/"


def collect(adaptation: Adaptation, head: nn.Module | None = None, /, **meta: Any) -> Task:
    """The task that `adaptation` and `head` are trained for; copies nothing.

    Of a backbone that ranks share, all of them call; the task is whole on the first rank, which is to write it.

    meta: what else the file shall say, by the keys of `Task.meta`; all of it may be left out. Give "head" as {"name",
    "settings"} where the head is one of `sfa_ext.tasks`, so that a bank can build it.
    """
    plain = {"head": None, "classes": [], "objects": [], "palette": [], "crop": None, "recipe": None, "results": {}}
    described = {"fingerprint": adaptation.fingerprint, "method": describe_method(adaptation.settings)}
    tensors = {f"method/{n}": whole(t) for n, t in adaptation.state().items() if not n.startswith(_SELECTION)}
    if head is not None:
        own = {n for n, _ in head.named_parameters()}
        tensors |= {f"{'head' if n in own else 'buffers'}/{n}": t for n, t in head.state_dict().items()}
    return Task(plain | described | meta, _selected(adaptation), tensors)


def _selected(adaptation: Adaptation) -> dict[str, Selected]:
    if adaptation.selection is None:
        return {}
    index, values = adaptation.selection.whole()
    return {n: Selected(index[n], values[n], adaptation.selection.weights[n].numel()) for n in index}


def restore(task: Task, adaptation: Adaptation, head: nn.Module | None = None) -> None:
    """Puts the task's tensors into `adaptation` and `head`, which were built as for its training.

    Raises ValueError, before anything changes, where backbone, method or head are others than the task's.
    """
    check_backbone(task, adaptation.fingerprint)
    state = method_state(task, adaptation)
    loaded = head_state(task, head)
    try:
        adaptation.load_state(state)
    except ValueError as error:
        raise ValueError(f"does not fit {adaptation.settings}: {error}") from error
    if head is not None:
        head.load_state_dict(loaded)


def check_backbone(task: Task, fingerprint: str) -> None:
    """Raises ValueError where the task was made for another backbone than the one of that fingerprint."""
    if (theirs := task.meta["fingerprint"]) != fingerprint:
        raise ValueError(f"belongs to another backbone (fingerprint {theirs[:12]}, this one has {fingerprint[:12]})")


def method_state(task: Task, adaptation: Adaptation) -> dict[str, Tensor]:
    """The task's tensors in the form that `adaptation.load_state` takes, on the adaptation's device."""
    device = next(adaptation.backbone.parameters()).device
    state = {n: t.to(device) for n, t in task.part("method").items()}
    weights = {} if adaptation.selection is None else adaptation.selection.weights
    if unknown := [n for n in task.selected if n not in weights]:
        raise ValueError(f"selects from {unknown[0]!r}, which {adaptation.settings} does not")
    for name, weight in weights.items():
        found = task.selected.get(name)
        if found is None or found.size != weight.numel():
            size = "no" if found is None else f"{found.size}"
            raise ValueError(f"has {size} entries for {name!r}, this backbone has {weight.numel()}")
        index = found.index.to(device)
        state |= {
            f"{_SELECTION}{name}/index": index,
            f"{_SELECTION}{name}/round": torch.zeros_like(index, dtype=torch.int16),
            f"{_SELECTION}{name}/value": found.values.to(device, weight.dtype),
        }
    return state


def head_state(task: Task, head: nn.Module | None) -> dict[str, Tensor]:
    """The head's state dict. Raises ValueError naming a tensor that `head` lacks, misses or has in another shape."""
    loaded = task.part("head") | task.part("buffers")
    own = {} if head is None else head.state_dict()
    for name in sorted({*own, *loaded}):
        here, there = (list(s[name].shape) if name in s else "no such tensor" for s in (own, loaded))
        if here != there:
            raise ValueError(f"the head's {name!r} is {there} in the file, this head has {here}")
    return loaded


def describe_method(settings: Method) -> dict[str, Any]:
    """The method's registered name and its settings, as plain values."""
    names = [n for n, kind in METHODS.items() if type(settings) is kind]
    if not names:
        raise ValueError(f"method: {type(settings).__name__} is not registered in METHODS")
    return {"name": names[0], "settings": _plain(dataclasses.asdict(settings))}


def method_of(task: Task, backbone: nn.Module) -> Method:
    """The settings of the task's method. Raises ValueError for a method or setting that this version does not know."""
    method = task.meta["method"]
    if method["name"] not in METHODS:
        raise ValueError(f"method: unknown {method['name']!r}, known: {', '.join(METHODS)}")
    try:
        return resolve(method["name"], backbone, method["settings"])
    except TypeError as error:
        raise ValueError(f"method {method['name']!r}: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
