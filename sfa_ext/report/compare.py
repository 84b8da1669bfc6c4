"""A comparison of finished runs on one data set: table, trade-off plot, where the selected weights are."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfa_ext.files import write_text
from sfa_ext.report import plots
from sfa_ext.report.run import selected_by_weight, task_meta


@dataclass(frozen=True)
class Result:
    """What one finished run says of itself."""

    seed: int
    share: float
    seconds: float
    figures: Mapping[str, float]
    folder: Path


def read(folder: Path) -> Result:
    """What a finished run says of itself, on its test split where it has one, else on val."""
    meta = task_meta(folder)
    figures = meta["results"].get("test") or meta["results"]["val"]
    return Result(meta["recipe"]["seed"], meta["parameters"]["share"], meta["seconds"], figures, folder)


def table(groups: Mapping[str, Sequence[Result]], baseline: str = "frozen") -> list[str]:
    """Markdown lines: mean over seeds (and standard deviation), and the paired difference to `baseline`."""
    seeds = max(len(g) for g in groups.values())
    lines = [
        f"| method | trainable, % | mIoU, % | mIoU of objects, % | difference to {baseline} | seconds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method, group in groups.items():
        cells = [
            method,
            f"{100 * group[0].share:.1f}",
            _mean(100 * r.figures["miou"] for r in group),
            _mean(100 * r.figures["miou_objects"] for r in group if "miou_objects" in r.figures),
            "" if method == baseline else _paired(group, groups.get(baseline, [])),
            f"{statistics.mean(r.seconds for r in group):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"Mean over {seeds} paired seeds ± standard deviation." if seeds > 1 else "One seed."]


def _mean(values) -> str:
    values = list(values)
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def _paired(group: Sequence[Result], baseline: Sequence[Result]) -> str:
    start = {r.seed: r.figures["miou"] for r in baseline}
    gaps = [100 * (r.figures["miou"] - start[r.seed]) for r in group if r.seed in start]
    if not gaps:
        return ""
    spread = f" ± {statistics.stdev(gaps):.1f}" if len(gaps) > 1 else ""
    return f"{statistics.mean(gaps):+.1f}{spread}"


def write(folder: Path, runs: Mapping[str, Sequence[Path]], title: str, extra: Sequence[str] = ()) -> Path:
    """Writes report.md, trade-off.png and (with an internal adapter) selection.png into `folder`.

    runs: finished runs by method, one a seed.
    """
    groups = {method: [read(run) for run in found] for method, found in runs.items()}
    recipe = task_meta(next(iter(groups.values()))[0].folder)["recipe"]
    points = {m: (g[0].share, [100 * r.figures["miou"] for r in g]) for m, g in groups.items()}
    plots.trade_off(points, folder / "trade-off.png")
    optim = recipe["optim"]
    text = [
        f"# {title}",
        "",
        f"{recipe['backbone']['name']} on {recipe['data']['name']}, {optim['steps']} steps of {optim['batch']} images.",
        "",
        *table(groups),
        "",
        "![mIoU against the share of trainable weights](trade-off.png)",
        "",
        *extra,
    ]
    selected = {m: found for m, g in groups.items() if (found := selected_by_weight(g[0].folder))}
    if selected:
        plots.selection(selected, folder / "selection.png")
        text += ["Where the selected weights are:", "", "![share of selected weights by block](selection.png)", ""]
    path = folder / "report.md"
    write_text(path, "\n".join(text))
    return path
