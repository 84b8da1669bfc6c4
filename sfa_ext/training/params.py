"""The parameter accounting of recipes and methods, without weights and without training."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from sfa_ext import backbones
from sfa_ext.deltas.positions import entropy_bits
from sfa_ext.methods import METHODS, PRESETS, Adaptation, Method, adapt, resolve
from sfa_ext.training.recipe import Recipe

# The paper's two backbones, which the table is of where none is named.
BACKBONES = ("swinv2_base_window8_256", "swinv2_large_window12_192")
# A method's name stands for its settings in the paper's table, SFA by its two sizes and its halves.
EVERY = tuple(name for name in [*METHODS, *PRESETS] if name != "sfa")


@dataclass(frozen=True)
class Accounting:
    """What one method trains in one backbone. Bytes are those of float32 training."""

    recipe: str  # "" where a method was asked for by its name
    backbone: str
    method: str
    size: str  # the sizes that were chosen, for example "rank=32"
    external: int
    internal: int
    biases: int
    share: float  # weights over the backbone with a 1000-class head, as the paper counts
    share_backbone: float  # weights over the backbone alone
    share_alone: float  # weights and biases over the backbone alone
    task_bytes: int  # trained values, and positions of selected ones at their entropy; no head
    optimizer_bytes: int  # AdamW's moments at the end of the training
    optimizer_peak: int  # and the most before, while a search scores its candidates


def account(name: str, recipe: Recipe) -> Accounting:
    """Counts on a backbone without storage: any size takes a second. Raises ValueError for a bad budget or name."""
    part = recipe.method
    with torch.device("meta"):
        backbone = backbones.build(recipe.backbone.name, size=recipe.data.crop)
        settings = resolve(part.name, backbone, part.settings)
        return _count(backbone, settings, name, recipe.backbone.name, part.name)


def account_methods(
    methods: Sequence[str] = (), names: Sequence[str] = (), settings: dict | None = None
) -> Iterator[Accounting]:
    """Rows of every method (all where none is named) on every backbone (the paper's where none is), without storage.

    settings: for every method, on top of its preset. Raises ValueError for an unknown name or setting.
    """
    for name in names or BACKBONES:
        with torch.device("meta"):
            backbone = backbones.build(name)
            for method in methods or EVERY:
                yield _count(backbone, resolve(method, backbone, settings), "", name, method)


def _count(backbone: nn.Module, settings: Method, recipe: str, name: str, method: str) -> Accounting:
    adaptation = adapt(backbone, settings)
    report = adaptation.report()
    after, peak = adaptation.optimizer_bytes()
    trained = report.trainable + report.biases
    row = Accounting(
        recipe=recipe,
        backbone=name,
        method=method,
        size=" ".join(f"{k}={v}" for k, v in adaptation.chosen().items() if v and k != "selected_weights") or "-",
        external=report.external,
        internal=report.internal,
        biases=report.biases,
        share=report.share,
        share_backbone=report.trainable / report.backbone,
        share_alone=trained / report.backbone,
        task_bytes=4 * trained + _position_bytes(adaptation, report.internal),
        optimizer_bytes=after,
        optimizer_peak=peak,
    )
    adaptation.detach()
    return row


def _position_bytes(adaptation: Adaptation, selected: int) -> int:
    """Bytes of which entries are selected, at the entropy of that choice."""
    if adaptation.selection is None or not selected:
        return 0
    size = sum(w.numel() for w in adaptation.selection.weights.values())
    return math.ceil(entropy_bits(size, selected) / 8)


_COLUMNS = (
    ("recipe", lambda r: r.recipe),
    ("backbone", lambda r: r.backbone),
    ("method", lambda r: r.method),
    ("size", lambda r: r.size),
    ("external", lambda r: f"{r.external:,}"),
    ("internal", lambda r: f"{r.internal:,}"),
    ("biases", lambda r: f"{r.biases:,}"),
    ("% of backbone+head", lambda r: f"{100 * r.share:.2f}"),
    ("% of backbone", lambda r: f"{100 * r.share_backbone:.2f}"),
    ("with biases", lambda r: f"{100 * r.share_alone:.2f}"),
    ("task MB", lambda r: f"{r.task_bytes / 1e6:.1f}"),
    ("optimizer MB", lambda r: f"{r.optimizer_bytes / 1e6:.1f}"),
    ("while searching", lambda r: f"{r.optimizer_peak / 1e6:.1f}" if r.optimizer_peak > r.optimizer_bytes else "-"),
)
_WORDS = 4  # columns that are aligned to the left


def table(rows: Sequence[Accounting]) -> str:
    """The rows as text columns. The first "%" is of weights over the backbone with its head, as in the paper."""
    columns = _COLUMNS if any(r.recipe for r in rows) else _COLUMNS[1:]
    lines = [[head for head, _ in columns], *([show(r) for _, show in columns] for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    words = _WORDS - (len(_COLUMNS) - len(columns))
    return "\n".join(
        "  ".join(c.ljust(w) if i < words else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )


def as_json(rows: Sequence[Accounting]) -> list[dict]:
    """The rows as plain dicts."""
    return [asdict(r) for r in rows]
