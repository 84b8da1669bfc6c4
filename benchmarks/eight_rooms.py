"""Eight rooms learned by heart under every head, from the embedded checkpoint with all weights trained.

A head that cannot is broken. `SFA_LONG=1 pytest tests/training/test_eight_rooms.py` measures, and writes
benchmarks/results/eight-rooms.md from what it measured.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.timing import RESULTS, setting, table
from sfa_ext.files import write_text
from sfa_ext.training.loop import Fit
from sfa_ext.training.recipe import load

RECORDS = RESULTS.parent / "records" / "eight-rooms"
TABLE = RESULTS / "eight-rooms.md"
# What a sound head reaches at least, or at most: mIoU, box AP and mask AP as fractions, RMSE in metres.
LEAST = {"miou": 0.95, "box_ap": 0.9, "mask_ap": 0.8}
MOST = {"rmse": 0.15}
NAMES = {"miou": "mIoU", "box_ap": "box AP", "mask_ap": "mask AP", "rmse": "RMSE, m"}
COMMON = (
    "method.name=full", "data.train.count=8", "data.val.split=train", "data.val.count=8", "data.test=null",
    "data.augment.scale=[1,1]", "data.augment.flip=0", "data.augment.jitter=0", "optim.warmup=10",
    "optim.weight_decay=0", "save_every=0", "eval_every=0", "threads=1",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A head: the recipe it comes from and what is changed there beyond COMMON."""

    recipe: str
    steps: int
    head: tuple[str, ...] = ()
    size: int = 96  # side of the rooms in pixels
    batch: int = 8

    @property
    def overrides(self) -> list[str]:
        size = (f"data.settings.size={self.size}", f"data.crop={self.size}")
        return [*COMMON, *size, f"optim.steps={self.steps}", f"optim.batch={self.batch}", *self.head]


CASES = {
    "fpn": Case("scenes-fpn", 250),
    "UPerNet, small": Case("scenes-fpn", 250, ("task.name=uper", "task.settings.size=small")),
    "Mask2Former, small": Case("scenes", 150),
    "Mask R-CNN, FPN": Case("scenes-instances", 250),
    "Mask R-CNN, BiFPN": Case("scenes-instances", 250, ("task.settings.neck=bifpn",)),
    "Cascade Mask R-CNN, BiFPN": Case(
        "scenes-instances", 250, ("task.settings.neck=bifpn", "task.settings.cascade=true")
    ),
    "depth, small": Case("scenes-depth", 300),
    # Depths at stride 4, brought to the pixels bilinearly: at 96 pixels none of them come nearer than 0.22 m.
    "depth, the paper's": Case("scenes-depth", 400, ("task.settings.size=paper",), size=320, batch=4),
}


def measure(name: str, folder: Path) -> dict[str, float]:
    """Trains a case in `folder` and returns those of its figures that have a bound; records them, writes the table."""
    case, started = CASES[name], time.process_time()
    found = Fit(load(case.recipe, case.overrides), folder, quiet=True).run()["val"]
    figures = {n: found[n] for n in (*LEAST, *MOST) if n in found}
    minutes = (time.process_time() - started) / 60
    record = {"name": name, "case": asdict(case), "figures": figures, "cpu_minutes": minutes}
    write_text(_record(name), json.dumps(record, indent=1) + "\n")
    write_text(TABLE, render())
    return figures


def reached(figures: dict[str, float]) -> dict[str, bool]:
    """Whether each figure is beyond its bound."""
    return {n: v > LEAST[n] if n in LEAST else v < MOST[n] for n, v in figures.items()}


def render() -> str:
    """The table of the cases that were measured as they stand here."""
    rows = []
    for name, case in CASES.items():
        if not _record(name).is_file():
            continue
        record = json.loads(_record(name).read_text())
        if record["case"] != json.loads(json.dumps(asdict(case))):
            continue
        figures = record["figures"]
        bounds = (f"{NAMES[n]} {figures[n]:.3f} ({'>' if n in LEAST else '<'} {(LEAST | MOST)[n]:g})" for n in figures)
        shape = [f"{case.size} x {case.size}", f"{case.steps} x {case.batch}"]
        rows.append([name, *shape, ", ".join(bounds), f"{record['cpu_minutes']:.1f}"])
    header = ["head", "pixels", "steps x images", "figures (what a sound head reaches)", "CPU minutes"]
    return f"# Eight rooms by heart\n\n{(__doc__ or '').strip()}\n\n{table(header, rows)}\n\n{setting()}\n"


def _record(name: str) -> Path:
    return RECORDS / f"{'-'.join(''.join(c if c.isalnum() else ' ' for c in name).lower().split())}.json"
