"""The recipe of instances end to end: fit, report, evaluate, predict."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from sfa_ext import cli

SMALL = [
    "data.settings.size=64", "data.crop=64", "data.train.count=6", "data.val.count=3", "data.test=null",
    "optim.steps=6", "optim.batch=2", "optim.warmup=1", "method.settings.interval=1", "save_every=2", "threads=1",
    "task.settings.width=16", "task.settings.box_dim=32", "task.settings.score_threshold=0.0",
]  # fmt: skip


def test_fit_eval_and_predict(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SFA_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    assert cli.main(["fit", "scenes-instances", *SMALL, "--quiet", "--out", str(run)]) == 0
    text = (run / "report.md").read_text()
    assert "| box_ap |" in text and "| mask_ap |" in text and "![loss and box AP](curves.png)" in text
    capsys.readouterr()
    assert cli.main(["eval", str(run), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    recorded = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()][-1]
    assert figures["box_ap"] == pytest.approx(recorded["box_ap"]) and 0 <= figures["mask_ap"] <= 1
    photo = tmp_path / "photo.png"
    Image.new("RGB", (90, 70), (90, 120, 60)).save(photo)
    assert cli.main(["predict", str(run), str(photo), "--out", str(tmp_path / "out")]) == 0
    assert Image.open(tmp_path / "out" / "photo.png").size[0] > 768
