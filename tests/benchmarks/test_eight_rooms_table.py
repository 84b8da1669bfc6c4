"""The table of eight rooms by heart: what stands in it was measured as the case stands now."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from benchmarks import eight_rooms
from sfa_ext.training.recipe import load


def test_a_figure_of_other_settings_does_not_stand_in_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(eight_rooms, "RECORDS", tmp_path / "records.jsonl")
    whole = {"case": asdict(eight_rooms.CASES["fpn"]), "figures": {"miou": 0.9612}, "cpu_minutes": 1.25}
    other = {**whole, "case": {**asdict(eight_rooms.CASES["UPerNet, small"]), "steps": 3}}
    records = [{"name": "fpn", **whole}, {"name": "UPerNet, small", **other}]
    eight_rooms.RECORDS.write_text("".join(json.dumps(r) + "\n" for r in records))
    lines = [line for line in eight_rooms.render().splitlines() if line.startswith("| ")]
    assert lines[2:] == ["| fpn | 250 | mIoU 0.961 (> 0.95) | 1.2 |"]


def test_bounds_are_beyond_figures():
    found = eight_rooms.reached({"miou": 0.95, "box_ap": 0.91, "mask_ap": 0.79, "rmse": 0.149})
    assert found == {"miou": False, "box_ap": True, "mask_ap": False, "rmse": True}


@pytest.mark.parametrize("name", eight_rooms.CASES)
def test_cases_are_recipes(name):
    case = eight_rooms.CASES[name]
    chosen = load(case.recipe, case.overrides)
    assert chosen.method.name == "full" and chosen.optim.steps == case.steps and chosen.data.train["count"] == 8
