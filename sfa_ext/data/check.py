"""A look at every file of a data set before it is trained on: what is missing or broken, and what the labels hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from sfa_ext import data
from sfa_ext.data.errors import DataError
from sfa_ext.data.folders import missing_files

FORMATS = tuple(sorted(set(data.DATASETS) - {"scenes"}))


def check(
    root: str | Path,
    kind: str = "auto",
    splits: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    workers: int = 0,
    quiet: bool = True,
) -> dict[str, Any]:
    """Reads every sample of the data set in `root` and returns what is wrong and what it holds, ready for JSON.

    {"root", "format", "ok", "splits": {name: {"samples", "problems": [one line a file],
      "classes": {name: {"pixels", "images"}} and "ignored" (pixels), for data sets with semantic labels,
      "instances": {name: count} and "crowds", for those with instances,
      "depth": {"least", "mean", "most" (metres), "measured" (part of the pixels)}, for those with depth}}}

    Args:
        root: the data set's folder.
        kind: one of `FORMATS`, or "auto" to tell by the folder.
        splits: those to look at; none: all the format has.
        settings: further settings of the reader.
        workers: processes that read.
        quiet: shows no progress bar.

    Raises:
        ValueError: an unknown format, split or setting.
        DataError: no such folder, or one of a format that cannot be told.
    """
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder")
    kind = detect(root) if kind == "auto" else kind
    if kind not in FORMATS:
        raise ValueError(f"format must be auto or one of {', '.join(FORMATS)}; got {kind!r}")
    chosen = splits or data.dataset_class(kind).splits
    found = {s: _check_split(kind, root, {**(settings or {}), "split": s}, workers, quiet) for s in chosen}
    ok = not any(split["problems"] for split in found.values())
    return {"root": str(root), "format": kind, "ok": ok, "splits": found}


def detect(root: Path) -> str:
    """The format of the data set in `root`. Raises DataError where none is recognised, or more than one."""
    found = [kind for kind in FORMATS if _looks_like(data.dataset_class(kind), root)]
    if len(found) == 1:
        return found[0]
    what = f"could be {' or '.join(found)}" if found else "looks like none of the known data sets"
    raise DataError(f"{root}: {what}; say which with --format ({', '.join(FORMATS)})")


def _looks_like(kind: type, root: Path) -> bool:
    places = [root, root / kind.folder] if kind.folder else [root]
    return any(next(place.glob(mark), None) is not None for place in places for mark in kind.marks)


def _check_split(kind: str, root: Path, settings: dict[str, Any], workers: int, quiet: bool) -> dict[str, Any]:
    try:
        dataset = data.construct(kind, root=root, **settings)
    except DataError as error:
        return {"samples": 0, "problems": [str(error)]}
    missing = missing_files(dataset)
    problems = [f"{path}: is missing" for path in missing]
    gone = set(missing)
    whole = [i for i in range(len(dataset)) if not gone.intersection(dataset.files(i))]
    # Reads one by one; with batches a large image more or less would decide how much memory this takes.
    reader = DataLoader(_Summaries(dataset, whole), batch_size=None, num_workers=workers, collate_fn=_as_it_is)
    total = _Total(dataset)
    for summary in tqdm(reader, disable=quiet or None, desc=settings["split"], unit="sample"):
        if "problem" in summary:
            problems.append(summary["problem"])
        else:
            total.add(summary)
    return {"samples": len(dataset), "problems": problems, **total.as_dict()}


def _as_it_is(summary: dict[str, Any]) -> dict[str, Any]:
    return summary


class _Summaries(Dataset):
    """A few numbers of each sample instead of the sample, so that little travels between processes."""

    def __init__(self, dataset: Any, indices: list[int]) -> None:
        self.dataset, self.indices = dataset, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> dict[str, Any]:
        try:
            sample = self.dataset[self.indices[place]]
        except DataError as error:
            return {"problem": str(error)}
        summary: dict[str, Any] = {}
        if "semantic" in sample:
            summary["pixels"] = np.bincount(sample["semantic"].numpy().ravel(), minlength=256)
        if "labels" in sample:
            crowd = sample["crowd"].numpy() if "crowd" in sample else np.zeros(len(sample["labels"]), bool)
            labels = sample["labels"].numpy()[~crowd]
            summary["instances"] = np.bincount(labels, minlength=len(self.dataset.class_names))
            summary["crowds"] = int(crowd.sum())
        if "depth" in sample:
            depth = sample["depth"].numpy().astype(np.float64)
            known = depth[depth > 0]
            summary["depth"] = (depth.size, known.size, known.sum(), known.min(initial=np.inf), known.max(initial=0))
        return summary


class _Total:
    """Sums of summaries."""

    def __init__(self, dataset: Any) -> None:
        self.names = dataset.class_names
        self.pixels = np.zeros(256, np.int64)
        self.images = np.zeros(256, np.int64)
        self.instances = np.zeros(len(self.names), np.int64)
        self.crowds = 0
        self.depth = (0, 0, 0.0, np.inf, 0.0)
        self.kinds: set[str] = set()

    def add(self, summary: dict[str, Any]) -> None:
        self.kinds |= summary.keys()
        if "pixels" in summary:
            self.pixels += summary["pixels"]
            self.images += summary["pixels"] > 0
        if "instances" in summary:
            self.instances += summary["instances"]
            self.crowds += summary["crowds"]
        if "depth" in summary:
            (a, b, c, low, high), (d, e, f, least, most) = self.depth, summary["depth"]
            self.depth = (a + d, b + e, c + f, min(low, least), max(high, most))

    def as_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if "pixels" in self.kinds:
            counts = zip(self.names, self.pixels, self.images)  # noqa: B905  the last of the 256 are no classes
            out["classes"] = {name: {"pixels": int(p), "images": int(i)} for name, p, i in counts}
            out["ignored"] = int(self.pixels[255])
        if "instances" in self.kinds:
            out["instances"] = dict(zip(self.names, map(int, self.instances), strict=True))
            out["crowds"] = self.crowds
        if "depth" in self.kinds:
            pixels, known, total, least, most = self.depth
            metres = {"least": float(least), "mean": float(total / known), "most": float(most)} if known else {}
            out["depth"] = {**metres, "measured": known / pixels}
        return out


def render(report: dict[str, Any]) -> str:
    """The report as text: problems first, each on a line of its own, then a table a split."""
    lines = [f"{report['format']} in {report['root']}"]
    for name, split in report["splits"].items():
        problems = len(split["problems"])
        lines += ["", f"{name}: {split['samples']:,} samples, {problems or 'no'} problem{'s' * (problems != 1)}"]
        lines += [f"  {problem}" for problem in split["problems"]]
        lines += _class_table(split) + _instance_table(split) + _depth_line(split)
    return "\n".join(lines)


def _class_table(split: dict[str, Any]) -> list[str]:
    if "classes" not in split:
        return []
    labelled = sum(row["pixels"] for row in split["classes"].values())
    total = max(1, labelled + split["ignored"])
    rows = [
        f"  {name:<24} {100 * row['pixels'] / max(1, labelled):8.3f} {row['images']:8,}"
        for name, row in split["classes"].items()
    ]
    heading = f"  {'class':<24} {'pixels %':>8} {'images':>8}"
    return [heading, *rows, f"  ignored: {100 * split['ignored'] / total:.2f} % of all pixels"]


def _instance_table(split: dict[str, Any]) -> list[str]:
    if "instances" not in split:
        return []
    rows = [f"  {name:<24} {count:8,}" for name, count in split["instances"].items()]
    return [f"  {'class':<24} {'boxes':>8}", *rows, f"  crowds: {split['crowds']:,}"]


def _depth_line(split: dict[str, Any]) -> list[str]:
    if "depth" not in split:
        return []
    depth = split["depth"]
    if "mean" not in depth:
        return ["  depth: nothing measured"]
    return [
        f"  depth: {depth['least']:.3f} to {depth['most']:.3f} m, mean {depth['mean']:.3f} m, "
        f"measured at {100 * depth['measured']:.1f} % of the pixels"
    ]
