"""report.md of one run: figures, curve, where the selected weights are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sfa_ext import deltas, tasks
from sfa_ext.files import write_text
from sfa_ext.report import plots, selection


def records(folder: Path) -> list[dict[str, Any]]:
    """Lines of the run's metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def task_meta(folder: Path) -> dict[str, Any]:
    """What the run's task file says of itself."""
    return deltas.read(folder / deltas.TASK_FILE).meta


def selected_by_weight(folder: Path) -> dict[str, tuple[int, int]]:
    """(selected entries, all entries) of each weight that could be selected; empty without an internal adapter."""
    return deltas.read(folder / deltas.TASK_FILE).counts()


def _earlier(folder: Path, sources: Sequence[str]) -> list[str]:
    """Markdown lines: how much of the run's selection earlier tasks had selected too."""
    if not sources:
        return []
    files = {s: Path(s) / deltas.TASK_FILE if Path(s).is_dir() else Path(s) for s in sources}
    own = selection.read(folder / deltas.TASK_FILE)
    found = {s: selection.overlaps(selection.read(path), own)["all"] for s, path in files.items()}
    table = selection.overlap_table(found, "earlier task")
    return ["## What earlier tasks selected too", "", "First: the earlier task; second: this run.", "", *table, ""]


def write(folder: str | Path) -> Path:
    """Writes report.md and its pictures into a finished run's folder; returns the path of report.md."""
    folder = Path(folder)
    meta, lines = task_meta(folder), records(folder)
    recipe = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    text = [f"# {recipe['method']['name']} on {recipe['data']['name']}, {recipe['backbone']['name']}", ""]
    report = meta["parameters"]
    text += [
        f"Trainable weights: {report['external'] + report['internal']:,} ({100 * report['share']:.2f} % of the "
        f"backbone with its head): {report['external']:,} external, {report['internal']:,} internal.",
        f"Training: {recipe['optim']['steps']} steps of {recipe['optim']['batch']} images, {meta['seconds']:.0f} s.",
        "",
        *_left_out(lines),
    ]
    for split, figures in meta["results"].items():
        text += [f"## {split}", "", "| figure | value |", "| --- | --- |"]
        text += [f"| {name} | {value:.4f} |" for name, value in figures.items() if name != "at"] + [""]
    headline = tasks.figures(meta["head"]["name"])[0]
    plots.curves(lines, folder / "curves.png", headline)
    text += [f"![loss and {headline.title}](curves.png)", ""]
    if selected := selected_by_weight(folder):
        plots.selection({recipe["method"]["name"]: selected}, folder / "selection.png")
        text += ["![share of selected weights by layer](selection.png)", ""]
        text += _earlier(folder, recipe["method"]["earlier"])
    path = folder / "report.md"
    write_text(path, "\n".join(text))
    return path


def _left_out(lines: list[dict[str, Any]]) -> list[str]:
    """What the run says of files that it could not read; nothing where there were none."""
    messages = [line["message"] for line in lines if line["kind"] == "unreadable"]
    return (
        [f"Samples that could not be read: {len(messages)}.", "", *(f"- {m}" for m in messages), ""] if messages else []
    )
