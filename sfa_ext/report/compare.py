"""A comparison of finished runs on one data set: table, trade-off plot, where the selected weights are."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sfa_ext import tasks
from sfa_ext.files import write_text
from sfa_ext.report import plots
from sfa_ext.report.run import selected_by_weight, task_meta
from sfa_ext.tasks.figures import Figure


@dataclass(frozen=True)
class Result:
    """What one finished run says of itself."""

    seed: int
    share: float
    seconds: float
    figures: Mapping[str, float]
    task: str
    folder: Path


def read(folder: Path) -> Result:
    """What a finished run says of itself, on its test split where it has one, else on val."""
    meta = task_meta(folder)
    figures = meta["results"].get("test") or meta["results"]["val"]
    return Result(
        meta["recipe"]["seed"], meta["parameters"]["share"], meta["seconds"], figures, meta["head"]["name"], folder
    )


def table(groups: Mapping[str, Sequence[Result]], baseline: str = "frozen") -> list[str]:
    """Markdown lines: mean over seeds (and standard deviation), and the paired difference to `baseline`."""
    seeds = max(len(g) for g in groups.values())
    figures = shown_figures([r for g in groups.values() for r in g])
    headings = ["method", "trainable, %", *(f.heading for f in figures), f"difference to {baseline}", "seconds"]
    lines = [f"| {' | '.join(headings)} |", f"| {' | '.join(['---'] * len(headings))} |"]
    for method, group in groups.items():
        cells = [
            method,
            f"{100 * group[0].share:.1f}",
            *(_mean(f, [r.figures[f.name] for r in group if f.name in r.figures]) for f in figures),
            "" if method == baseline else _paired(figures[0], group, groups.get(baseline, [])),
            f"{statistics.mean(r.seconds for r in group):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", f"Mean over {seeds} paired seeds ± standard deviation." if seeds > 1 else "One seed."]


def shown_figures(results: Sequence[Result]) -> list[Figure]:
    """The figures of the results' task that any of them has, its headline first.

    Raises ValueError for results of several tasks, whose figures do not compare.
    """
    names = sorted({r.task for r in results})
    if len({tasks.figures(n) for n in names}) > 1:
        raise ValueError(f"runs of the tasks {', '.join(names)} do not compare; give runs of one task")
    return [f for f in tasks.figures(names[0]) if any(f.name in r.figures for r in results)]


def scores(figure: Figure, group: Sequence[Result]) -> list[float]:
    """The figure of each run, in the unit of its heading."""
    return [figure.shown(r.figures[figure.name]) for r in group]


def _mean(figure: Figure, values: Sequence[float], sign: str = "") -> str:
    if not values:
        return ""
    values = [figure.shown(v) for v in values]
    spread = f" ± {statistics.stdev(values):.{figure.digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):{sign}.{figure.digits}f}{spread}"


def _paired(figure: Figure, group: Sequence[Result], baseline: Sequence[Result]) -> str:
    start = {r.seed: r.figures[figure.name] for r in baseline}
    return _mean(figure, [r.figures[figure.name] - start[r.seed] for r in group if r.seed in start], "+")


def write(folder: Path, runs: Mapping[str, Sequence[Path]], title: str, extra: Sequence[str] = ()) -> Path:
    """Writes report.md, trade-off.png and (with an internal adapter) selection.png into `folder`.

    runs: finished runs by method, one a seed.
    """
    groups = {method: [read(run) for run in found] for method, found in runs.items()}
    recipe = task_meta(next(iter(groups.values()))[0].folder)["recipe"]
    headline = shown_figures([r for g in groups.values() for r in g])[0]
    points = {m: (g[0].share, scores(headline, g)) for m, g in groups.items()}
    plots.trade_off(points, folder / "trade-off.png", headline.heading)
    optim = recipe["optim"]
    text = [
        f"# {title}",
        "",
        f"{recipe['backbone']['name']} on {recipe['data']['name']}, {optim['steps']} steps of {optim['batch']} images.",
        "",
        *table(groups),
        "",
        f"![{headline.title} against the share of trainable weights](trade-off.png)",
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
