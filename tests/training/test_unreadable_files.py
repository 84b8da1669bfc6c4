"""A file that turns out bad while training is said, left out and counted; a missing one stops the run before it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from sfa_ext import cli, deltas
from sfa_ext.data import DataError
from sfa_ext.report import run as report
from sfa_ext.training import log, recipe
from sfa_ext.training.checkpoint import paths
from sfa_ext.training.checkpoint_folder import read
from sfa_ext.training.loop import CHECKPOINTS, TASK, Fit

SMALL = [
    "backbone.name=swinv2_pico", "backbone.pretrained=false", "data.crop=64", "data.workers=0", "optim.batch=2",
    "optim.steps=8", "optim.precision=fp32", "optim.warmup=1", "method.name=frozen", "task.name=fpn",
    "task.settings={width: 16}", "threads=1", "save_every=3", "data.bad_share=0.4",
]  # fmt: skip


@pytest.fixture
def root(tmp_path):
    """Six pairs to train on, two of which have a picture that ends too early; three to evaluate, one of them bad."""
    root, numbers = tmp_path / "ADEChallengeData2016", np.random.default_rng(0)
    for folder, count, bad in (("training", 6, (1, 4)), ("validation", 3, (2,))):
        for kind in ("images", "annotations"):
            (root / kind / folder).mkdir(parents=True)
        for i in range(count):
            path = root / "images" / folder / f"ADE_{i}.jpg"
            Image.fromarray(numbers.integers(0, 255, (64, 64, 3), np.uint8)).save(path)
            path.write_bytes(path.read_bytes()[: 800 if i in bad else None])
            Image.fromarray(numbers.integers(0, 151, (64, 64), np.uint8)).save(
                root / "annotations" / folder / f"ADE_{i}.png"
            )
    return root


def fit(root, folder, *overrides):
    chosen = recipe.load("ade20k-swinv2-base-sfa-s", [f"data.settings.root={root}", *SMALL, *overrides])
    return Fit(chosen, folder, quiet=True)


def test_the_run_ends_and_tells_how_many(root, tmp_path, capsys):
    run = fit(root, tmp_path / "run")
    figures = run.run()
    assert run.unreadable.positions == [1, 4] and figures["val"]["unreadable"] == 1
    said = capsys.readouterr().err
    for name in ("training/ADE_1.jpg", "training/ADE_4.jpg", "validation/ADE_2.jpg"):
        assert said.count(f"{name}: cannot be read, it is truncated or no image") == 1
    lines = log.read(tmp_path / "run")
    assert [line["unreadable"] for line in lines if line["kind"] == "train"] == [2]
    text = report.write(tmp_path / "run").read_text()
    assert "Samples that could not be read: 2." in text and "ADE_4.jpg" in text and "| unreadable | 1" in text


def test_a_run_that_was_stopped_ends_with_the_same_bits(root, tmp_path, monkeypatch):
    fit(root, tmp_path / "whole").run()
    one_step = Fit._one_step

    def stop(self, batches):
        if self.step == 5:
            raise KeyboardInterrupt
        return one_step(self, batches)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Fit, "_one_step", stop)
        fit(root, tmp_path / "parts").run()
    resumed = fit(root, tmp_path / "parts", "data.bad_share=0.5")
    assert resumed.step == 3
    resumed.run()
    whole, parts = (read(paths(tmp_path / n / CHECKPOINTS)[-1]) for n in ("whole", "parts"))
    assert whole.facts["unreadable"] == parts.facts["unreadable"] == [1, 4]
    assert all((whole.tensors[n] == parts.tensors[n]).all() for n in whole.tensors)
    assert log.read(tmp_path / "whole") == log.read(tmp_path / "parts")
    tasks = [deltas.read(tmp_path / n / TASK) for n in ("whole", "parts")]
    assert tasks[0].meta["results"] == tasks[1].meta["results"]


def test_loader_processes_change_nothing(root, tmp_path):
    runs = [fit(root, tmp_path / f"{workers}", "optim.steps=3", f"data.workers={workers}") for workers in (0, 2)]
    assert repr(runs[0].run()) == repr(runs[1].run())
    assert runs[0].unreadable.positions == runs[1].unreadable.positions


def test_evaluation_afterwards_warns_beside_its_figures(root, tmp_path, capsys):
    fit(root, tmp_path / "run", "optim.steps=1").run()
    capsys.readouterr()
    assert cli.main(["eval", str(tmp_path / "run"), "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["unreadable"] == 1
    assert "warning" in captured.err and "ADE_2.jpg" in captured.err


def test_too_many_stop_the_run_and_name_one(root, tmp_path):
    with pytest.raises(DataError, match=r"1 of 6 samples cannot be read, more than 1 % .data.bad_share.*ADE_[14].jpg"):
        fit(root, tmp_path / "run", "data.bad_share=0.01").run()


@pytest.mark.parametrize("gone", ["images/training/ADE_3.jpg", "annotations/validation/ADE_0.png"])
def test_a_missing_file_stops_before_the_first_step(root, tmp_path, gone):
    (root / gone).unlink()
    with pytest.raises(DataError, match=f"{gone}: is missing"):
        fit(root, tmp_path / "run")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
