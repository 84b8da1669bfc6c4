"""A comparison of methods from records of finished runs: table, figures, and the numbers of every run."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sfa_ext import tasks
from sfa_ext.deltas import TASK_FILE, account
from sfa_ext.files import write_text
from sfa_ext.report import plots
from sfa_ext.report.run import task_meta
from sfa_ext.tasks.figures import Figure

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Record:
    """One finished run of a comparison."""

    arm: str  # what is compared: a method, or a variant of one
    stage: str  # "trial" of a learning rate, or "final"
    seed: int
    rate: float  # the learning rate that the arm tries
    steps: int
    figures: Mapping[str, Mapping[str, float]]  # by split
    trainable: int  # weights
    share: float  # of the backbone with its head, 0..1
    task_bytes: int  # the task file
    head_bytes: int  # and what of it is the head
    peak_memory: int | None = None  # bytes while training
    step_seconds: float | None = None
    device: str = "cpu"
    wall: float = 0.0  # seconds of the whole run, its start and its evaluation included
    fingerprint: str = ""  # of everything that defines the run
    version: str = ""  # of the package

    def figure(self, name: str) -> float | None:
        """A figure of the test split where there is one, else of val."""
        return (self.figures.get("test") or self.figures["val"]).get(name)


def facts(folder: Path) -> dict[str, Any]:
    """What a finished run says of itself, by the fields of Record. Raises as `deltas.read`."""
    meta = task_meta(folder)
    sizes = account.account(folder / TASK_FILE)["bytes"]
    parameters = meta["parameters"]
    return {
        "seed": meta["recipe"]["seed"],
        "steps": meta["recipe"]["optim"]["steps"],
        "figures": {s: {n: v for n, v in figures.items() if n != "at"} for s, figures in meta["results"].items()},
        "trainable": parameters["external"] + parameters["internal"],
        "share": parameters["share"],
        "task_bytes": sum(sizes.values()),
        "head_bytes": sizes["head"] + sizes["buffers"],
        "peak_memory": meta.get("peak_memory"),
        "step_seconds": meta.get("step_seconds"),
        "device": meta.get("device", "cpu"),
    }


def of_runs(runs: Mapping[str, Path], baseline: str) -> Comparison:
    """A comparison of finished runs, one an arm. Raises ValueError for runs of several tasks, which do not compare."""
    metas = {arm: task_meta(folder) for arm, folder in runs.items()}
    shown = {tasks.figures(meta["head"]["name"]) for meta in metas.values()}
    if len(shown) > 1:
        names = sorted({meta["head"]["name"] for meta in metas.values()})
        raise ValueError(f"runs of the tasks {', '.join(names)} do not compare; give runs of one task")
    rates = {arm: meta["recipe"]["optim"]["lr"] for arm, meta in metas.items()}
    arms = {arm: [Record(arm=arm, stage="final", rate=rates[arm], **facts(path))] for arm, path in runs.items()}
    return Comparison(shown.pop(), arms, baseline)


@dataclass(frozen=True)
class Comparison:
    """Records of the final runs of each arm, in the order of the table."""

    figures: Sequence[Figure]  # of the task; the first one is what is compared
    arms: Mapping[str, Sequence[Record]]
    baseline: str  # the arm that the others are compared with, seed by seed

    @property
    def headline(self) -> Figure:
        return self.figures[0]

    def values(self, arm: str, figure: Figure | None = None) -> dict[int, float]:
        """A figure (the headline) by seed, in the unit of its heading; seeds without it are left out."""
        figure = figure or self.headline
        found = {r.seed: r.figure(figure.name) for r in self.arms[arm]}
        return {seed: figure.shown(v) for seed, v in sorted(found.items()) if v is not None}

    def gaps(self, arm: str) -> list[float]:
        """The arm's headline less the baseline's, for each seed that both have."""
        mine, base = self.values(arm), self.values(self.baseline) if self.baseline in self.arms else {}
        return [] if arm == self.baseline else [v - base[seed] for seed, v in mine.items() if seed in base]


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Bounds between which the mean lies by Student's t; None for less than two values."""
    from scipy import stats

    if len(values) < 2:
        return None
    error = statistics.stdev(values) / len(values) ** 0.5
    reach = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1)) * error
    mean = statistics.mean(values)
    return mean - reach, mean + reach


def table(comparison: Comparison) -> list[str]:
    """Markdown lines, one row an arm (Table 1 of the paper); an arm without runs has an empty row."""
    shown = [f for f in comparison.figures if any(comparison.values(arm, f) for arm in comparison.arms)]
    heads = ["method", "trainable, %", "task file, MB", *(figure.heading for figure in shown)]
    heads += [f"difference to {comparison.baseline}", "seeds", "peak memory, MB", "seconds a step"]
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for arm, records in comparison.arms.items():
        cells = [
            arm,
            _middle([100 * r.share for r in records], 1),
            _middle([r.task_bytes / 1e6 for r in records], 2),
            *(_spread(list(comparison.values(arm, figure).values()), figure.digits) for figure in shown),
            _gap(comparison.gaps(arm), comparison.headline.digits),
            f"{len(records)}",
            _middle([r.peak_memory / 1e6 for r in records if r.peak_memory], 0),
            _middle([r.step_seconds for r in records if r.step_seconds], 3),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _middle(values: Sequence[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f}" if values else ""


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def _gap(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    bounds = interval(values)
    between = f" [{bounds[0]:+.{digits}f}, {bounds[1]:+.{digits}f}]" if bounds else ""
    return f"{statistics.mean(values):+.{digits}f}{between}"


def explanation(comparison: Comparison) -> str:
    """What the columns of `table` hold."""
    most = max((len(records) for records in comparison.arms.values()), default=0)
    text = ["Shares are of the backbone with a 1000-class head, weights alone."]
    if most > 1:
        text.append(
            f"Mean ± standard deviation over seeds; differences are of runs with the same seed (same head, images and "
            f"augmentation), with {CONFIDENCE:.0%} t-intervals."
        )
    heads = [r.head_bytes / 1e6 for records in comparison.arms.values() for r in records]
    if heads:
        text.append(f"Of every task file {_middle(heads, 2)} MB are the head.")
    gpus = {r.device for records in comparison.arms.values() for r in records} - {"cpu"}
    memory = f"tensors on {', '.join(sorted(gpus))}" if gpus else "the process that trains (libraries included)"
    return " ".join([*text, f"Memory is of {memory}; it and seconds are medians over the runs."])


def rows(records: Sequence[Record]) -> str:
    """Every run as a line of CSV, figures in columns of their own ("test/miou")."""
    plain = ("arm", "stage", "seed", "rate", "steps", "trainable", "share", "task_bytes", "head_bytes")
    plain += ("peak_memory", "step_seconds", "wall", "device", "version", "fingerprint")
    figures = [{f"{s}/{n}": v for s, found in r.figures.items() for n, v in found.items()} for r in records]
    columns = [*plain, *dict.fromkeys(name for found in figures for name in found)]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    for record, found in zip(records, figures, strict=True):
        writer.writerow({name: getattr(record, name) for name in plain} | found)
    return out.getvalue()


def draw(comparison: Comparison, report: Path) -> list[str]:
    """Draws REPORT-trade-off.png where shares differ, REPORT-differences.png where there are several seeds.

    Returns Markdown that shows them.
    """
    headline, lines = comparison.headline, []
    values = {arm: list(found.values()) for arm in comparison.arms if (found := comparison.values(arm))}
    shares = {arm: statistics.median(r.share for r in comparison.arms[arm]) for arm in values}
    if len({round(share, 3) for share in shares.values()}) > 2:
        picture = report.with_name(f"{report.stem}-trade-off.png")
        plots.trade_off({a: (shares[a], v) for a, v in values.items()}, picture, headline.heading)
        lines += [f"![{headline.title} against the share of trainable weights]({picture.name})", ""]
    gaps = {arm: found for arm in comparison.arms if len(found := comparison.gaps(arm)) > 1}
    if gaps:
        picture = report.with_name(f"{report.stem}-differences.png")
        bars = {arm: (statistics.mean(found), interval(found)) for arm, found in gaps.items()}
        better = "more is better" if headline.higher else "less is better"
        plots.differences(bars, picture, f"{headline.heading}: difference to {comparison.baseline} ({better})")
        lines += [f"![difference to {comparison.baseline}]({picture.name})", ""]
    return lines


def write(
    report: Path,
    title: str,
    intro: Sequence[str],
    comparison: Comparison,
    trials: Sequence[Record] = (),
    extra: Sequence[str] = (),
) -> Path:
    """Writes the report, its pictures and a CSV of every run, `trials` too, beside it; returns its path.

    intro: paragraphs between title and table; extra: paragraphs after the pictures.
    """
    report.parent.mkdir(parents=True, exist_ok=True)
    text = [f"# {title}", ""] + [line for paragraph in intro for line in (paragraph, "")]
    text += [*table(comparison), "", explanation(comparison), "", *draw(comparison, report)]
    text += [line for paragraph in extra for line in (paragraph, "")]
    finals = [record for records in comparison.arms.values() for record in records]
    write_text(report.with_suffix(".csv"), rows([*trials, *finals]))
    write_text(report, "\n".join(text))
    return report
