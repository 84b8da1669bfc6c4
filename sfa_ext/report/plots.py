"""Pictures: training curves, trade-off between score and trainable share, selected share by layer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from sfa_ext.tasks.figures import Figure  # noqa: E402

_BLOCK = re.compile(r"(?:layers\.(\d+)\.)?blocks\.(\d+)\.(.+)")


def curves(lines: Sequence[Mapping[str, Any]], path: Path, headline: Figure) -> None:
    """Training loss and the evaluated headline over the steps."""
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    train = [line for line in lines if line["kind"] == "train"]
    axis.plot([t["step"] for t in train], [t["loss"] for t in train], color="tab:grey", label="training loss")
    axis.set_xlabel("step")
    axis.set_ylabel("loss")
    evaluated = [line for line in lines if line["kind"] == "val" and headline.name in line]
    if evaluated:
        right = axis.twinx()
        values = [headline.shown(v[headline.name]) for v in evaluated]
        right.plot([v["step"] for v in evaluated], values, "o-", color="tab:blue")
        right.set_ylabel(f"validation {headline.heading}", color="tab:blue")
    _save(figure, path)


def trade_off(points: Mapping[str, tuple[float, Sequence[float]]], path: Path, label: str) -> None:
    """Score against trainable share (Figure 1 of the paper), mean and range over the seeds.

    points: method -> (share of trainable weights in 0..1, scores in the unit of `label`, one a seed).
    """
    figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    mean = {name: sum(scores) / len(scores) for name, (_, scores) in points.items()}
    # Methods of one size stand on one another: the legend names them in the order in which they stand.
    for name in sorted(points, key=mean.__getitem__, reverse=True):
        share, scores = points[name]
        marker, color = _look(list(points).index(name))
        spread = [[mean[name] - min(scores)], [max(scores) - mean[name]]]
        label_ = f"{name} ({100 * share:.1f} %)"
        axis.errorbar(
            [100 * share], [mean[name]], yerr=spread, fmt=marker, color=color, capsize=4, markersize=8, label=label_
        )
    axis.set_xscale("symlog", linthresh=1)
    axis.set_xlim(-0.2, 150)
    axis.set_xticks([0, 1, 2, 5, 10, 20, 50, 100], ["0", "1", "2", "5", "10", "20", "50", "100"])
    axis.minorticks_off()
    axis.set_xlabel("trainable weights, % of the backbone with its head")
    axis.set_ylabel(label)
    axis.margins(y=0.15)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    _save(figure, path)


def _look(position: int) -> tuple[str, str]:
    """Marker and colour of the series at `position`; no two of the first forty look the same."""
    return "osD^vP*X"[position % 8], f"C{position % 10}"


def differences(bars: Mapping[str, tuple[float, tuple[float, float]]], path: Path, label: str) -> None:
    """One line a method, from above: mean difference and its interval, with zero marked."""
    figure, axis = plt.subplots(figsize=(7, 1.2 + 0.32 * len(bars)), layout="constrained")
    for row, (mean, bounds) in enumerate(bars.values()):
        reach = [[mean - bounds[0]], [bounds[1] - mean]]
        axis.errorbar([mean], [row], xerr=reach, fmt="o", color="tab:blue", capsize=3)
    axis.axvline(0, color="tab:grey", linewidth=1)
    axis.set_yticks(range(len(bars)), list(bars))
    axis.set_ylim(len(bars) - 0.5, -0.5)
    axis.set_xlabel(label)
    axis.grid(axis="x", alpha=0.3)
    _save(figure, path)


def place(name: str) -> tuple[str, str]:
    """(block, matrix) of a weight's name: "layers.0.blocks.1.attn.qkv.weight" is ("1.2", "attn.qkv"), and without
    stages "blocks.1.attn.qkv.weight" is ("2", "attn.qkv")."""
    found = _BLOCK.search(name)
    if found is None:
        return name, name
    stage, block, rest = found.groups()
    number = f"{int(block) + 1}"
    return number if stage is None else f"{int(stage) + 1}.{number}", rest.removesuffix(".weight")


def by_block(selected: Mapping[str, tuple[int, int]]) -> dict[str, float]:
    """Share of selected weights of each block, "stage.block" (or "block") -> 0..1, in order of depth."""
    sums: dict[str, list[int]] = {}
    for name, (taken, size) in selected.items():
        total = sums.setdefault(place(name)[0], [0, 0])
        total[0] += taken
        total[1] += size
    return {block: taken / size for block, (taken, size) in sums.items()}


def selection(methods: Mapping[str, Mapping[str, tuple[int, int]]], path: Path) -> None:
    """Share of selected weights of each block (Figure 5 of the paper), one group of bars a method."""
    figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
    width = 0.8 / len(methods)
    for position, (method, weights) in enumerate(methods.items()):
        shares = by_block(weights)
        places = [i + (position - (len(methods) - 1) / 2) * width for i in range(len(shares))]
        axis.bar(places, [100 * s for s in shares.values()], width, label=method)
        axis.set_xticks(range(len(shares)), list(shares))
    axis.set_xlabel("block" if all("." not in b for b in shares) else "stage.block")
    axis.set_ylabel("selected weights, % of the block")
    axis.legend(frameon=False)
    _save(figure, path)


def overlap(blocks: Mapping[str, tuple[float, float]], path: Path) -> None:
    """Jaccard index of two selections block by block, beside what chance gives; blocks: name -> (index, chance)."""
    figure, axis = plt.subplots(figsize=(7, 3.4), layout="constrained")
    axis.bar(range(len(blocks)), [index for index, _ in blocks.values()], 0.6, label="both of either")
    axis.plot(range(len(blocks)), [c for _, c in blocks.values()], "k_", markersize=14, label="by chance")
    axis.set_xticks(range(len(blocks)), list(blocks))
    axis.set_xlabel("block" if all("." not in b for b in blocks) else "stage.block")
    axis.set_ylabel("Jaccard index")
    axis.legend(frameon=False)
    _save(figure, path)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)
