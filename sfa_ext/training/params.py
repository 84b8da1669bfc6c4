"""The parameter accounting of recipes, without weights and without training."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from sfa_ext import backbones
from sfa_ext.methods import adapt, resolve
from sfa_ext.training.recipe import Recipe


@dataclass(frozen=True)
class Accounting:
    """What one recipe trains in its backbone. Bytes are those of the trained values in float32."""

    recipe: str
    backbone: str
    method: str
    dim: int | None
    external: int
    internal: int
    biases: int
    share: float  # weights over the backbone with a 1000-class head, as the paper counts
    share_alone: float  # weights and biases over the backbone alone
    megabytes: float


def account(name: str, recipe: Recipe) -> Accounting:
    """Counts on a backbone without storage: any size takes a second. Raises ValueError for a bad budget or name."""
    with torch.device("meta"):
        backbone = backbones.build(recipe.backbone.name, size=recipe.data.crop)
        adaptation = adapt(backbone, resolve(recipe.method.name, backbone, recipe.method.settings))
    report = adaptation.report()
    trained = report.trainable + report.biases
    return Accounting(
        recipe=name,
        backbone=recipe.backbone.name,
        method=recipe.method.name,
        dim=getattr(adaptation, "dim", None) or None,
        external=report.external,
        internal=report.internal,
        biases=report.biases,
        share=report.share,
        share_alone=trained / report.backbone,
        megabytes=trained * 4 / 1e6,
    )


def table(rows: list[Accounting]) -> str:
    """The rows as text columns. "%" is of weights over the backbone with a 1000-class head, as in the paper."""
    head = ["recipe", "backbone", "method", "d", "external", "internal", "biases", "%", "% alone, with biases", "MB"]
    body = [
        [
            r.recipe,
            r.backbone,
            r.method,
            str(r.dim or "-"),
            f"{r.external:,}",
            f"{r.internal:,}",
            f"{r.biases:,}",
            f"{100 * r.share:.2f}",
            f"{100 * r.share_alone:.2f}",
            f"{r.megabytes:.1f}",
        ]
        for r in rows
    ]
    widths = [max(len(line[i]) for line in [head, *body]) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [head, *body]
    )


def as_json(rows: list[Accounting]) -> list[dict]:
    """The rows as plain dicts."""
    return [asdict(r) for r in rows]
