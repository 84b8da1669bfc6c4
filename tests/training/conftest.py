"""A tiny job: six scenes, a small dense head, ten steps."""

from __future__ import annotations

import pytest

JOB = """
backbone: {name: swinv2_pico, pretrained: false}
method: {name: sfa, settings: {budget: 0.05, rounds: 3, interval: 2}}
task: {name: pretrain, settings: {width: 16, image_classes: 8}}
data:
  name: scenes
  settings: {domain: target, size: 64, workers: 0}
  train: {split: train, count: 6}
  val: {split: val, count: 3}
  crop: 64
optim: {steps: 10, batch: 2, lr: 0.01, warmup: 2}
save_every: 3
threads: 1
"""


@pytest.fixture(scope="session")
def scene_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture(scope="session")
def job_text():
    """The tiny job's recipe."""
    return JOB


@pytest.fixture
def job(tmp_path, scene_cache, monkeypatch):
    """Path of the tiny job's recipe; its scenes are rendered once a session."""
    monkeypatch.setenv("SFA_CACHE", str(scene_cache))
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path
