"""The demo: every method trained, a report whose pictures exist, and runs that are kept when it is called again."""

from __future__ import annotations

import re

import pytest
from PIL import Image

from sfa_ext import demo
from sfa_ext.training.loop import Fit


@pytest.fixture
def short(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("SFA_CACHE", str(tmp_path_factory.mktemp("scenes")))
    monkeypatch.setattr(
        demo,
        "QUICK",
        [
            "optim.steps=10", "optim.warmup=2", "optim.batch=2", "data.train.count=8", "data.val.count=4",
            "data.test.count=4", "threads=1",
        ],
    )  # fmt: skip
    monkeypatch.setattr(demo, "QUICK_ROUNDS", ["method.settings.interval=1"])


def test_the_report_compares_all_methods_and_shows_them(short, tmp_path, monkeypatch):
    report = demo.demo(tmp_path / "demo", quick=True)
    text = report.read_text()
    for method in demo.METHODS:
        assert re.search(rf"^\| {method} \| [\d.]+ \| [\d.]+ \| [\d.]+ \|", text, re.M)
    pictures = re.findall(r"\]\((.+?)\)", text)
    assert set(pictures) == {"report-trade-off.png", "examples.png", "selection.png"}
    for picture in pictures:
        assert min(Image.open(report.parent / picture).size) > 300

    def no_training(*_):
        raise AssertionError("a finished run was trained again")

    monkeypatch.setattr(Fit, "_one_step", no_training)
    assert demo.demo(tmp_path / "demo", quick=True).read_text() == text
