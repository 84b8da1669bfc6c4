"""A task written into the backbone's weights: to use it without this package, or as the start of later tasks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfa_ext.backbones import fingerprint, plain_state
from sfa_ext.deltas.capture import check_backbone, method_of, method_state
from sfa_ext.deltas.file import Selected, Task
from sfa_ext.deltas.fitted import fit


def merge(task: Task, backbone: nn.Module) -> dict[str, Tensor]:
    """The backbone's tensors with the task's method merged into them, by timm's names; copies. The backbone stays as
    it is.

    Raises ValueError where the backbone is another, and where the method computes something that a plain timm model
    has no weights for.
    """
    check_backbone(task, fingerprint(plain_state(backbone)))
    fit(task, backbone)  # says what does not fit before anything is changed
    names = plain_state(backbone).keys()
    adaptation = method_of(task, backbone).build(backbone, 0)
    try:
        adaptation.load_state(method_state(task, adaptation))
        merged = {n: t.detach().clone() for n, t in plain_state(adaptation.merge()).items()}
    except ValueError as error:
        raise ValueError(f"{error}; or write the whole model (apply --module)") from error
    finally:
        adaptation.detach()
    if extra := sorted(merged.keys() - names):
        raise ValueError(
            f"merged, the backbone needs {extra[0]!r}, which timm's model does not load; write the whole model instead "
            "(apply --module)"
        )
    return {n.removeprefix("model."): t for n, t in merged.items()}


@torch.no_grad()
def fold(task: Task, backbone: nn.Module) -> Task:
    """Makes the values that the task selected part of the backbone, in place; returns the task on that backbone.

    Raises ValueError where the backbone is another or the task selects nothing.
    """
    check_backbone(task, fingerprint(plain_state(backbone)))
    if not any(len(s.index) for s in task.selected.values()):
        raise ValueError("selects no weights, there is nothing to fold")
    weights = dict(backbone.named_parameters())
    fit(task, backbone)  # says what does not fit before anything is changed
    for name, chosen in task.selected.items():
        weights[name].view(-1)[chosen.index] = chosen.values.to(weights[name].dtype)
    nothing = {n: Selected(s.index[:0], s.values[:0], s.size) for n, s in task.selected.items()}
    meta = task.meta | {"fingerprint": fingerprint(plain_state(backbone))}
    return Task(meta, nothing, task.tensors)


def rebase(task: Task, folded: Task, bare: dict[str, Tensor], fingerprint: str) -> Task:
    """Another task of the old backbone, for the backbone that `folded`'s values became part of.

    bare: the old backbone's tensors by their names there. Where only `folded` selects, the task gets the old values,
    so that it computes what it computed. Raises ValueError where it belongs to another backbone.
    """
    check_backbone(task, folded.meta["fingerprint"])
    chosen = dict(task.selected)
    for name, other in folded.selected.items():
        if f"method/parameters/{name}" in task.tensors or not len(other.index):
            continue  # the task replaces the whole weight
        own = chosen.get(name, Selected(other.index[:0], other.values[:0], other.size))
        missing = other.index[~torch.isin(other.index, own.index)]
        old = bare[name].flatten()[missing].to(own.values.dtype)
        if not torch.equal(old.to(bare[name].dtype), bare[name].flatten()[missing]):
            raise ValueError(f"its values are {own.values.dtype}, which cannot hold the backbone's; export it wider")
        index, order = torch.sort(torch.cat([own.index, missing]))
        chosen[name] = Selected(index, torch.cat([own.values, old])[order], own.size)
    return Task(task.meta | {"fingerprint": fingerprint}, chosen, task.tensors)
