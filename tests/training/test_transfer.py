"""A selection of one run as the fixed mask of another (Table 7)."""

from __future__ import annotations

import pytest
import torch

from sfa_ext import cli, deltas
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


def test_a_later_task_reports_what_an_earlier_one_selected_too(job, tmp_path):
    """The continual way: task a's selection becomes part of the backbone, task b starts from there."""
    assert cli.main(["fit", str(job), "--quiet", "--out", str(tmp_path / "a")]) == 0
    assert cli.main(["delta", "fold", str(tmp_path / "a"), "--out", str(tmp_path / "next")]) == 0
    later = [f"backbone.checkpoint={tmp_path / 'next' / 'backbone.safetensors'}", "seed=5"]
    later += [f"method.earlier=[{tmp_path / 'a'}]", "--quiet", "--out", str(tmp_path / "b")]
    assert cli.main(["fit", str(job), *later]) == 0
    first, second = (deltas.read(tmp_path / name / TASK).selected for name in ("a", "b"))
    both = sum(len(set(first[n].index.tolist()) & set(second[n].index.tolist())) for n in first)
    (line,) = [
        x for x in (tmp_path / "b" / "report.md").read_text().splitlines() if x.startswith(f"| {tmp_path / 'a'}")
    ]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    counts = [f"{sum(len(s.index) for s in chosen.values()):,}" for chosen in (first, second)]
    assert cells[1:4] == [*counts, f"{both:,}"] and both > 0


def test_an_earlier_task_that_cannot_be_compared_says_why(job, tmp_path):
    Fit(load(job, ["optim.steps=6"]), tmp_path / "a", quiet=True).run()
    earlier = f"method.earlier=[{tmp_path / 'a'}]"
    with pytest.raises(ValueError, match="method.earlier: 'lora' selects no weights"):
        Fit(load(job, [earlier, "method.name=lora", "method.settings={rank: 2}"]), tmp_path / "b", quiet=True)
    with pytest.raises(ValueError, match="method.earlier: the task in .* does not select from the weights of this run"):
        Fit(load(job, [earlier, "method.settings.targets=[mlp.fc1.weight]"]), tmp_path / "c", quiet=True)
    with pytest.raises(FileNotFoundError, match="no task file there"):
        Fit(load(job, ["method.earlier=[nowhere]"]), tmp_path / "d", quiet=True)
