"""Heads on the embedded backbone learn eight rooms by heart, from their recipes and with all weights trained."""

from __future__ import annotations

import os

import pytest

from sfa_ext.training.loop import Fit
from sfa_ext.training.recipe import load

EIGHT = [
    "method.name=full", "data.train.count=8", "data.val.split=train", "data.val.count=8", "data.test=null",
    "data.augment.scale=[1,1]", "data.augment.flip=0", "data.augment.jitter=0", "optim.steps=250", "optim.batch=8",
    "optim.warmup=10", "optim.weight_decay=0", "save_every=0", "eval_every=0", "threads=1",
]  # fmt: skip


@pytest.mark.skipif(os.environ.get("SFA_LONG") != "1", reason="takes minutes; set SFA_LONG=1")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("recipe", "head", "figure", "bound"),
    [
        ("scenes-fpn", [], "miou", 0.95),
        ("scenes-fpn", ["task.name=uper", "task.settings.size=small"], "miou", 0.95),
        ("scenes-depth", [], "rmse", 0.15),
    ],
    ids=["fpn", "uper", "depth"],
)
def test_learns_eight_rooms_by_heart(recipe, head, figure, bound, tmp_path):
    found = Fit(load(recipe, [*head, *EIGHT]), tmp_path, quiet=True).run()["val"]
    assert found[figure] < bound if figure == "rmse" else found[figure] > bound
