"""A selection of one run as the fixed mask of another (Table 7)."""

from __future__ import annotations

import pytest
import torch

from sfa_ext import deltas
from sfa_ext.training.folder import TASK
from sfa_ext.training.loop import Fit
from sfa_ext.training.recipe import load
from sfa_ext.training.run import open_run


def test_the_mask_is_the_other_runs_and_its_values_are_trained_afresh(job, tmp_path):
    Fit(load(job), tmp_path / "a", quiet=True).run()
    transferred = [f"method.selection={tmp_path / 'a'}", "seed=5", "backbone.checkpoint=null"]
    recipe = load(job, transferred)
    fit = Fit(recipe, tmp_path / "b", quiet=True)
    assert fit.model.adaptation.selection.count() == fit.model.adaptation.report().internal
    fit.run()
    first, second = (deltas.read(tmp_path / name / TASK) for name in ("a", "b"))
    moved = 0
    for name, chosen in second.selected.items():
        assert torch.equal(chosen.index, first.selected[name].index)
        moved += int((chosen.values != first.selected[name].values).sum())
    assert moved > 0.9 * fit.model.adaptation.report().internal
    # The finished run stands on its own.
    (tmp_path / "a" / TASK).unlink()
    open_run(tmp_path / "b")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.name=lora", "method.settings={rank: 2}"], "method.selection: 'lora' selects no weights"),
        (["method.settings.budget=0.01"], "selection: has .* weights, the budget of 0.01 leaves room for"),
    ],
)
def test_a_selection_that_cannot_be_taken_says_why(job, tmp_path, overrides, message):
    Fit(load(job, ["optim.steps=6"]), tmp_path / "a", quiet=True).run()
    with pytest.raises(ValueError, match=message):
        Fit(load(job, [f"method.selection={tmp_path / 'a'}", *overrides]), tmp_path / "b", quiet=True)
