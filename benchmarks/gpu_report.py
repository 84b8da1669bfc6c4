"""The result of `make gpu-check`: one JSON file that grows with every figure, and the page made from it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .timing import table

TEXT = """# {name}

{facts}

Written by `make gpu-check`: {state}. Times are medians of up to {repeats} calls, taken between two events on the device
with its caches emptied before each call; the host has launched everything by then. A floor is the least that must be
moved over the measured rate of a copy, or the operations over the measured rate of matrix products, whichever is longer
("memory", "math"); behind each time stands how many floors it takes. "cuda" and "triton" are ours, "native" on a CPU.

## Steps

{steps}

## Ceilings, as measured

{ceilings}
{sections}"""


class Report:
    """Facts, steps, ceilings and rows; written to `<stem>.json` and `<stem>.md` after every change."""

    def __init__(self, stem: Path, facts: Mapping[str, str]):
        self.stem = stem
        self.data: dict[str, Any] = {
            "facts": dict(facts),
            "finished": False,
            "steps": [],
            "ceilings": {},
            "rows": [],
            "skipped": [],
        }

    @classmethod
    def read(cls, stem: Path) -> Report:
        report = cls(stem, {})
        report.data = json.loads(stem.with_suffix(".json").read_text())
        return report

    def save(self) -> None:
        _write(self.stem.with_suffix(".json"), json.dumps(self.data, indent=1) + "\n")
        _write(self.stem.with_suffix(".md"), render(self.data))

    def step(self, name: str, status: str, seconds: float, detail: str) -> None:
        self.data["steps"].append({"name": name, "status": status, "seconds": round(seconds, 1), "detail": detail})
        self.save()
        print(f"{name}: {status}, {seconds:.0f} s. {detail}", flush=True)


def _write(path: Path, text: str) -> None:
    """In one piece, as sfa_ext.files writes; that cannot be imported before the build is done."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text)
    os.replace(partial, path)


def render(data: Mapping[str, Any]) -> str:
    """The page of a report's data."""
    facts = dict(data["facts"])
    rows = data["rows"]
    sections = []
    for name in dict.fromkeys(row["section"] for row in rows):
        sections.append(f"\n## {name}\n\n{_section([row for row in rows if row['section'] == name])}\n")
    if data["skipped"]:
        names = "\n".join(f"- {label}" for label in data["skipped"])
        sections.append(f"\n## Not run\n\nThe time was up before these, or they failed:\n\n{names}\n")
    ceilings = [
        [f"copy of {size}", f"{rate / 1e9:.0f} GB/s"] if size == "bytes" else [f"matrix product, {size}", _tera(rate)]
        for size, rate in (("bytes" if key == "copy" else key, rate) for key, rate in data["ceilings"].items())
    ]
    return TEXT.format(
        name=facts.pop("device", "unknown device"),
        facts="\n".join(f"- {key}: {value}" for key, value in facts.items()),
        state="complete" if data["finished"] else "not complete, the run was cut off or is still going",
        repeats=max((t["repeats"] for row in rows for t in row["times"].values() if t), default=0),
        steps=table(
            ["step", "result", "s", ""],
            [[s["name"], s["status"], f"{s['seconds']:.0f}", s["detail"]] for s in data["steps"]],
        ),
        ceilings=table(["", "rate"], ceilings),
        sections="".join(sections),
    )


def _tera(rate: float) -> str:
    return f"{rate / 1e12:.1f} TFLOP/s"


def _section(rows: list[Mapping[str, Any]]) -> str:
    candidates = list(dict.fromkeys(name for row in rows for name in row["times"]))
    ours = [name for name in candidates if name in ("cuda", "triton", "native")]
    lines = []
    for row in rows:
        floor = row["floor_ms"]
        cells = [_cell(row["times"].get(name), floor) for name in candidates]
        host = [f"{row['times'][name]['host_us']:.0f}" if row["times"].get(name) else "" for name in ours]
        bound = f"{_short(floor)} ({row['bound']})" if floor else ""
        lines.append([row["label"], bound, *cells, *host])
    header = ["case", "floor ms", *(f"{name} ms" for name in candidates), *(f"{name} launch us" for name in ours)]
    return table(header, lines) + "".join(f"\n\n{line}" for line in _summary(rows, candidates, ours))


def _summary(rows: list[Mapping[str, Any]], candidates: list[str], ours: list[str]) -> list[str]:
    """How many times as long as ours the others take, over the rows that have both."""
    lines = []
    for own in ours:
        for other in candidates:
            pairs = [(r["times"].get(other), r["times"].get(own)) for r in rows]
            ratios = [theirs["ms"] / mine["ms"] for theirs, mine in pairs if theirs and mine and mine["ms"] > 0]
            if other != own and ratios:
                mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if min(ratios) > 0 else 0
                lines.append(
                    f"{other} takes {mean:.2f} times as long as {own} (geometric mean of {len(ratios)} cases, "
                    f"{min(ratios):.2f} to {max(ratios):.2f})."
                )
    return lines


def _cell(timing: Mapping[str, float] | None, floor: float | None) -> str:
    if not timing:
        return ""
    return _short(timing["ms"]) + (f" ({timing['ms'] / floor:.1f})" if floor else "")


def _short(ms: float) -> str:
    return f"{ms:.4f}" if ms < 1 else f"{ms:.2f}"
