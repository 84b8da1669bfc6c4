"""Where the selected weights of finished runs are (Figure 5), and what two selections share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sfa_ext import deltas
from sfa_ext.files import write_text
from sfa_ext.report import plots
from sfa_ext.selection import Overlap, overlap

Counts = Mapping[str, tuple[int, int]]  # (selected, all) by the name of a weight


def read(path: Path) -> deltas.Task:
    """The task file at `path`. Raises ValueError where it selects no weights."""
    task = deltas.read(path)
    if not task.counts() or not sum(count for count, _ in task.counts().values()):
        raise ValueError(f"{path}: selects no weights; its method has no internal adapter")
    return task


def shares(counts: Counts) -> dict[str, dict[str, tuple[int, int]]]:
    """(selected, all) by block and matrix: {"1.2": {"attn.qkv": (k, n), ..., "all": (k, n)}, ..., "all": {...}}."""
    found: dict[str, dict[str, tuple[int, int]]] = {}
    for name, (count, size) in counts.items():
        block, matrix = plots.place(name)
        for row in (block, "all"):
            for column in (matrix, "all"):
                before = found.setdefault(row, {}).get(column, (0, 0))
                found[row][column] = (before[0] + count, before[1] + size)
    found["all"] = found.pop("all")
    return {block: row | {"all": row["all"]} for block, row in found.items()}


def share_table(counts: Counts) -> list[str]:
    """Markdown lines: selected weights in % of each matrix, block by block."""
    found = shares(counts)
    matrices = [m for m in found["all"] if m != "all"] + ["all"]
    cell = lambda row, m: f"{100 * row[m][0] / row[m][1]:.2f}" if m in row else ""  # noqa: E731
    lines = [f"| block | {' | '.join(matrices)} | selected |", "| --- " * (len(matrices) + 2) + "|"]
    for block, row in found.items():
        lines.append(f"| {block} | {' | '.join(cell(row, m) for m in matrices)} | {row['all'][0]:,} |")
    return lines


def show(runs: Mapping[str, Path], folder: Path) -> Path:
    """Writes selection.md and selection.png of some task files into `folder`; returns the path of selection.md."""
    counts = {name: read(path).counts() for name, path in runs.items()}
    text = ["# Where the selected weights are", "", "Selected weights in % of each matrix.", ""]
    for name, found in counts.items():
        text += [f"## {name}", "", *share_table(found), ""]
    folder.mkdir(parents=True, exist_ok=True)
    plots.selection(counts, folder / "selection.png")
    return _write(folder / "selection.md", [*text, "![share of selected weights by block](selection.png)", ""])


def draw(task: Path, path: Path) -> Path:
    """Draws the share of selected weights by block of a task file. Raises ValueError where it selects none."""
    found = read(task)
    path.parent.mkdir(parents=True, exist_ok=True)
    plots.selection({found.meta["method"]["name"]: found.counts()}, path)
    return path


def overlaps(first: deltas.Task, second: deltas.Task) -> dict[str, Overlap]:
    """What two tasks' selections share, by block and for "all" together.

    Raises ValueError where they were selected from different weights.
    """
    sizes = {name: size for name, (_, size) in first.counts().items()}
    parts: dict[str, list[str]] = {}
    for name in sizes:
        parts.setdefault(plots.place(name)[0], []).append(name)
    parts["all"] = list(sizes)
    if sizes != {name: size for name, (_, size) in second.counts().items()}:
        raise ValueError("the two tasks select from different weights, of other backbones or targets")
    index = lambda task, names: {n: task.selected[n].index for n in names}  # noqa: E731
    return {
        block: overlap(index(first, names), index(second, names), {n: sizes[n] for n in names})
        for block, names in parts.items()
    }


_COLUMNS: dict[str, Callable[[Overlap], str]] = {
    "first": lambda o: f"{o.first:,}",
    "second": lambda o: f"{o.second:,}",
    "both": lambda o: f"{o.both:,}",
    "of second, %": lambda o: f"{100 * o.both / max(o.second, 1):.1f}",
    "Jaccard": lambda o: f"{o.jaccard:.4f}",
    "by chance": lambda o: f"{o.chance:.4f}",
    "times chance": lambda o: f"{o.both / o.expected:.2f}" if o.expected else "",
}


def overlap_table(found: Mapping[str, Overlap], what: str = "block") -> list[str]:
    """Markdown lines, a `what` each. Chance is of independent choices with the same number in every matrix."""
    lines = [f"| {what} | {' | '.join(_COLUMNS)} |", "| --- " * (len(_COLUMNS) + 1) + "|"]
    return lines + [f"| {b} | {' | '.join(cell(o) for cell in _COLUMNS.values())} |" for b, o in found.items()]


def compare(first: Path, second: Path, names: Sequence[str], folder: Path) -> Path:
    """Writes overlap.md and overlap.png of two task files into `folder`; returns the path of overlap.md."""
    found = overlaps(read(first), read(second))
    folder.mkdir(parents=True, exist_ok=True)
    plots.overlap({b: (o.jaccard, o.chance) for b, o in found.items() if b != "all"}, folder / "overlap.png")
    text = [f"# What {names[0]} and {names[1]} both select", "", *overlap_table(found), ""]
    text += ["Chance: two independent choices, each with the numbers it has in every matrix.", ""]
    return _write(folder / "overlap.md", [*text, "![Jaccard index by block, and by chance](overlap.png)", ""])


def _write(path: Path, lines: Sequence[str]) -> Path:
    write_text(path, "\n".join(lines))
    return path
