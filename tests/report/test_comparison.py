"""The numbers of a comparison against scipy and by hand, and pictures in which nothing hides behind anything."""

from __future__ import annotations

import csv
import io
import re

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from sfa_ext.report import comparison, plots
from sfa_ext.report.comparison import Comparison, Record
from sfa_ext.tasks.figures import Figure

MIOU = (Figure("miou", "mIoU"), Figure("miou_objects", "mIoU of objects"), Figure("elsewhere", "of other data"))


def record(arm, seed, value, share=0.05, **changes):
    figures = {"val": {"miou": 0.9}, "test": {"miou": value, "miou_objects": value / 2}}
    values = {"arm": arm, "stage": "final", "seed": seed, "rate": 0.01, "steps": 10, "figures": figures}
    counts = {"trainable": 7, "share": share, "task_bytes": 1_500_000, "head_bytes": 500_000}
    return Record(**(values | counts | {"peak_memory": 800_000_000, "step_seconds": 0.2} | changes))


@pytest.fixture
def values():
    return np.random.default_rng(0).normal(0.4, 0.05, (2, 5))


def pair(values, seeds=range(5)):
    arms = {name: [record(name, s, v) for s, v in enumerate(row)] for name, row in zip("ab", values, strict=True)}
    return Comparison(MIOU, arms | {"b": [r for r in arms["b"] if r.seed in seeds]}, "a")


def test_differences_are_paired_and_their_interval_is_that_of_the_t_test(values):
    gaps = pair(values).gaps("b")
    assert gaps == pytest.approx(100 * (values[1] - values[0]))
    wanted = stats.ttest_rel(100 * values[1], 100 * values[0]).confidence_interval(0.95)
    assert comparison.interval(gaps) == pytest.approx((wanted.low, wanted.high))
    assert pair(values).gaps("a") == []


def test_only_seeds_of_both_arms_are_compared(values):
    wanted = 100 * (values[1] - values[0])[[1, 3]]
    assert pair(values, (1, 3)).gaps("b") == pytest.approx(wanted)
    lopsided = Comparison(MIOU, {"a": [record("a", 1, 0.3)], "b": [record("b", 2, 0.4)]}, "a")
    assert lopsided.gaps("b") == []


def test_the_table_by_hand(values):
    base, other = 100 * values
    low, high = stats.t.interval(0.95, 4, (other - base).mean(), stats.sem(other - base))
    lines = comparison.table(pair(values))
    assert lines[0].split(" | ")[3:6] == ["mIoU, %", "mIoU of objects, %", "difference to a"]
    assert lines[3] == (
        f"| b | 5.0 | 1.50 | {other.mean():.1f} ± {other.std(ddof=1):.1f} | "
        f"{other.mean() / 2:.1f} ± {other.std(ddof=1) / 2:.1f} | "
        f"{(other - base).mean():+.1f} [{low:+.1f}, {high:+.1f}] | 5 | 800 | 0.200 |"
    )


def test_one_seed_has_no_spread_and_an_arm_without_runs_an_empty_row():
    lines = comparison.table(Comparison(MIOU, {"a": [record("a", 0, 0.25)], "b": []}, "a"))
    assert lines[2:] == ["| a | 5.0 | 1.50 | 25.0 | 12.5 |  | 1 | 800 | 0.200 |", "| b |  |  |  |  |  | 0 |  |  |"]
    assert comparison.interval([1.0]) is None


def test_other_units_are_written_as_they_are():
    rmse = [Figure("rmse", "RMSE", "m", higher=False)]
    arms = {
        n: [record(n, s, 0, figures={"val": {"rmse": v + s / 10}}) for s in (0, 1)] for n, v in (("a", 1), ("b", 2))
    }
    lines = comparison.table(Comparison(rmse, arms, "a"))
    assert "| RMSE, m |" in lines[0] and "| 2.050 ± 0.071 | +1.000 [+1.000, +1.000] |" in lines[3]


def test_facts_that_older_runs_lack_leave_cells_empty():
    old = [record("a", s, 0.5, peak_memory=None, step_seconds=None) for s in (0, 1)]
    assert comparison.table(Comparison(MIOU, {"a": old}, "a"))[2].endswith("| 2 |  |  |")


def test_csv_holds_every_run_and_figure(values):
    runs = [r for group in pair(values).arms.values() for r in group] + [record("a", 9, 0.1, stage="trial")]
    lines = list(csv.DictReader(io.StringIO(comparison.rows(runs))))
    assert [float(line["test/miou"]) for line in lines] == [*values.ravel(), 0.1]
    assert lines[-1]["stage"] == "trial" and lines[0]["val/miou"] == "0.9"


def test_a_report_shows_each_picture_it_writes(tmp_path, values):
    three = Comparison(
        MIOU, {n: [record(n, s, 0.3 + i / 10 + s / 100, i / 3) for s in (0, 1)] for i, n in enumerate("abc")}, "a"
    )
    for name, found, pictures in (("same", pair(values), ["same-differences.png"]), (
        "three", three, ["three-trade-off.png", "three-differences.png"]
    )):  # fmt: skip
        path = comparison.write(tmp_path / f"{name}.md", "Title", ["A paragraph."], found)
        shown = re.findall(r"\]\((.+?)\)", path.read_text())
        assert shown == pictures and all(Image.open(tmp_path / p).size[0] > 400 for p in pictures)


def test_labels_of_methods_of_one_size_do_not_overlap(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "_save", lambda figure, path: figures.append(figure))
    plots.trade_off({f"method {i}": (0.047, [40 + i / 100, 40.0]) for i in range(10)}, tmp_path / "x.png", "mIoU, %")
    figure = figures[0]
    figure.canvas.draw()
    boxes = [text.get_window_extent() for text in figure.legends[0].get_texts()]
    assert len(boxes) == 10 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 for box in boxes)
    assert len({plots._look(i) for i in range(40)}) == 40
