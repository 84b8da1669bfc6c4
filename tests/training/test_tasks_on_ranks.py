"""Depth and instances trained by two ranks, from the recipe to the task file."""

from __future__ import annotations

import math

import processes
import pytest

from sfa_ext import deltas
from sfa_ext.training import log
from sfa_ext.training.folder import TASK
from sfa_ext.training.loop import Fit
from sfa_ext.training.recipe import load

# Three images to evaluate: one rank has two of them, the other one.
SMALL = [
    "data.settings.size=64", "data.crop=64", "data.train.count=6", "data.val.count=3", "data.test=null",
    "optim.steps=6", "optim.batch=2", "optim.warmup=1", "method.settings.interval=1", "save_every=2", "threads=1",
]  # fmt: skip
INSTANCES = ["task.settings.width=16", "task.settings.box_dim=32", "task.settings.score_threshold=0.0"]


def train(name, folder, *overrides):
    """Figures, and the positions of what this rank selected."""
    fit = Fit(load(name, [*SMALL, *overrides]), folder, quiet=True)
    figures = fit.run()["val"]
    return figures, {n: e.index.tolist() for n, e in fit.model.adaptation.selection}


def last_loss(folder):
    return [line["loss"] for line in log.read(folder) if line["kind"] == "train"][-1]


@pytest.fixture(autouse=True)
def cache(monkeypatch, scene_cache):
    monkeypatch.setenv("SFA_CACHE", str(scene_cache))


def test_depth_on_two_ranks_is_depth_on_one(tmp_path):
    ((one, chosen),) = processes.run(1, train, "scenes-depth", str(tmp_path / "1"))
    ranks = processes.run(2, train, "scenes-depth", str(tmp_path / "2"))
    assert ranks[0] == ranks[1] and ranks[0][1] == chosen
    assert ranks[0][0] == pytest.approx(one | {"at": 6}, rel=1e-4)
    assert last_loss(tmp_path / "2") == pytest.approx(last_loss(tmp_path / "1"), rel=1e-5)
    assert deltas.read(tmp_path / "2" / TASK).meta["results"]["val"] == ranks[0][0]


@pytest.mark.parametrize("head", [[], ["task.settings.neck=bifpn", "task.settings.cascade=true"]])
def test_instances_on_two_ranks_agree_on_figures_and_selection(tmp_path, head):
    ranks = processes.run(2, train, "scenes-instances", str(tmp_path), *INSTANCES, *head)
    assert ranks[0] == ranks[1] and sum(map(len, ranks[0][1].values()))
    assert all(0 <= ranks[0][0][n] <= 1 for n in ("box_ap", "mask_ap")) and math.isfinite(last_loss(tmp_path))
    assert deltas.read(tmp_path / TASK).meta["results"]["val"] == ranks[0][0]
    # The same command reads the finished run and trains nothing again.
    assert processes.run(2, train, "scenes-instances", str(tmp_path), *INSTANCES, *head) == ranks
