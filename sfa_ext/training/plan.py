"""What adapting a backbone takes on many ranks, before any of them is there: memory and communication of each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from sfa_ext import backbones
from sfa_ext.methods import Adaptation, adapt, resolve
from sfa_ext.selection.sharded import message_bytes
from sfa_ext.training.simulation import Work, part_bytes, step_bytes, units

LAYOUTS = ("ddp", "fsdp2")
_FLOAT = 4  # bytes; the plan is of float32 training


@dataclass(frozen=True)
class Plan:
    """One rank of `ranks`. Memory in bytes at the most; traffic in bytes that a rank sends, collectives being rings."""

    backbone: str
    method: str
    layout: str  # ddp: every rank has the whole backbone; fsdp2: ranks share it
    ranks: int
    batch: int  # images of a rank
    crop: int
    parameters: int  # the backbone with what the method added, and buffers
    optimizer: int  # moments; of selected weights also positions, rounds and original values
    scores: int  # of the search: one for each weight that may be selected
    searching: int  # activations, gradients and messages of a step while the search runs
    after: int  # and after its last round
    sent_searching: int  # in a step
    sent_after: int
    sent_round: int  # at the end of a round, beyond its step
    host: int  # memory of the machine, where that is not the device's: what is trained as it was, to undo it

    @property
    def memory_searching(self) -> int:
        return self.parameters + self.optimizer + self.scores + self.searching

    @property
    def memory_after(self) -> int:
        return self.parameters + self.optimizer + self.after


def plan(
    backbone: str,
    ranks: Sequence[int],
    method: str = "sfa-s",
    batch: int = 1,
    crop: int = 384,
    settings: dict | None = None,
    layouts: Sequence[str] = LAYOUTS,
) -> Iterator[Plan]:
    """A plan for each layout and number of ranks, in float32, without a head, counted on a backbone without storage.

    batch: images of each rank. settings: of the method, on top of its preset. Selected weights are taken to be spread
    evenly over ranks, and all to be selected already: the last round is the largest.

    Raises ValueError for an unknown name or setting, and for a number below 1.
    """
    for name, number in (("ranks", min(ranks)), ("batch", batch), ("crop", crop)):
        if number < 1:
            raise ValueError(f"{name}: must be 1 or more, got {number}")
    with torch.device("meta"):
        model = backbones.build(backbone, size=crop, dynamic=False)
        adaptation = adapt(model, resolve(method, model, settings))
    for layout in layouts:
        peaks: dict[int, list[int]] = {}
        for count in ranks:
            alike = min(count, 2) if layout == "ddp" else count  # whole backbones do not care how many others there are
            if alike not in peaks:
                peaks[alike] = _peaks(model, adaptation, (batch, 3, crop, crop), alike, layout == "fsdp2")
            yield _plan(model, adaptation, Plan(backbone, method, layout, count, batch, crop, *[0] * 9), peaks[alike])


def _candidates(adaptation: Adaptation) -> tuple[list[nn.Parameter], int]:
    """The weights that are searched, and how many of their entries are selected in the end."""
    selected = 0 if adaptation.selection is None else adaptation.report().internal
    return list(adaptation.selection.weights.values()) if selected else [], selected


def _peaks(
    model: nn.Module, adaptation: Adaptation, images: tuple[int, int, int, int], ranks: int, shard: bool
) -> list[int]:
    """Most bytes of a step while the search runs, and of one after it."""
    candidates, selected = _candidates(adaptation)
    for weight in candidates:
        weight.requires_grad_(True)
    ids, share = frozenset(map(id, candidates)), selected / max(sum(w.numel() for w in candidates), 1)
    after = step_bytes(model, images, Work(False, ids, share), ranks, shard)
    return [step_bytes(model, images, Work(True, ids, share), ranks, shard) if selected else after, after]


def _plan(model: nn.Module, adaptation: Adaptation, empty: Plan, peaks: list[int]) -> Plan:
    ranks, shard = empty.ranks, empty.layout == "fsdp2"
    candidates, selected = _candidates(adaptation)
    eligible = sum(w.numel() for w in candidates)
    part = lambda tensors: sum(part_bytes(t, ranks if shard else 1) for t in tensors)  # noqa: E731
    whole = [p for _, p in adaptation.named_parameters()]
    moments, most = adaptation.optimizer_bytes()
    of_entries = 4 + 2 + _FLOAT + 2 * _FLOAT  # position, round, original value, moments: selection.Entries, SparseAdamW
    values = dict(
        parameters=part(model.parameters()) + sum(b.nbytes for b in model.buffers()),
        optimizer=2 * part(whole) + of_entries * selected // (ranks if shard else 1),
        scores=(most - moments) * part(candidates) // max(_FLOAT * eligible, 1),
        searching=peaks[0],
        after=peaks[1],
        host=0 if shard else adaptation.host_bytes(),  # what is shared cannot be undone
    )
    return Plan(**asdict(empty) | values | _traffic(model, adaptation, empty))


def _traffic(model: nn.Module, adaptation: Adaptation, empty: Plan) -> dict[str, int]:
    ranks = empty.ranks
    ring = (ranks - 1) / ranks  # of a gather, and of a reduction to parts; a sum for all is one after the other
    weights, selected = _candidates(adaptation)
    eligible = sum(w.nbytes for w in weights)
    if empty.layout == "fsdp2":
        *blocks, rest = units(model)
        step = sum(2 * b.bytes(ranks) for b in blocks) + rest.bytes(ranks)
        step += sum(unit.bytes(ranks, trained=True) for unit in (*blocks, rest))
        a_round = 2 * sum(message_bytes(len(weights), ranks)) if selected else 0
        return {"sent_searching": int(ring * step), "sent_after": int(ring * step), "sent_round": int(ring * a_round)}
    criterion = getattr(adaptation.settings, "criterion", "random")
    dense = 0 if criterion in ("gradient", "random") else eligible  # see Search.needs_mean_gradients
    whole = sum(p.nbytes for _, p in adaptation.named_parameters())
    return {
        "sent_searching": int(2 * ring * (whole + dense)),
        "sent_after": int(2 * ring * (whole + _FLOAT * selected)),
        "sent_round": int(2 * ring * (eligible if criterion == "gradient" else 0)),
    }


_COLUMNS = {
    "layout": lambda p: p.layout,
    "ranks": lambda p: f"{p.ranks:,}",
    "parameters": lambda p: _size(p.parameters),
    "optimizer": lambda p: _size(p.optimizer),
    "scores": lambda p: _size(p.scores),
    "step, searching": lambda p: _size(p.searching),
    "step, after": lambda p: _size(p.after),
    "memory, searching": lambda p: _size(p.memory_searching),
    "memory, after": lambda p: _size(p.memory_after),
    "sent a step, searching": lambda p: _size(p.sent_searching),
    "sent a step, after": lambda p: _size(p.sent_after),
    "sent a round": lambda p: _size(p.sent_round),
}


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}" if count < 100 * size else f"{count / size:.0f} {unit}"
    return f"{count} B"


def table(plans: Sequence[Plan]) -> str:
    """The plans as a Markdown table, one line each, under a line that says what they are of."""
    first = plans[0]
    lines = [list(_COLUMNS), *([show(p) for show in _COLUMNS.values()] for p in plans)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_COLUMNS))]
    rows = [" | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
    rule = " | ".join("-" * (width - 1) + ":" for width in widths)
    what = f"{first.method} on {first.backbone}, {first.batch} image(s) of {first.crop} x {first.crop} a rank, float32"
    host = max(p.host for p in plans)
    beside = f"; ddp keeps {_size(host)} more in the machine's memory, to undo the training" if host else ""
    return "\n".join([f"{what}{beside}; per rank:", "", *(f"| {row} |" for row in (rows[0], rule, *rows[1:]))])


def as_json(plans: Sequence[Plan]) -> list[dict]:
    """The plans as plain dicts."""
    return [asdict(p) | {"memory_searching": p.memory_searching, "memory_after": p.memory_after} for p in plans]
