"""Several ranks train as one process does: the same selection, the same losses, the same figures, fewer bytes."""

from __future__ import annotations

import processes
import pytest
import torch

from sfa_ext import ranks
from sfa_ext.data.loading import StepBatches, eval_loader
from sfa_ext.optim import SparseAdamW
from sfa_ext.selection import CRITERIA, Schedule, Search, Selection
from sfa_ext.training import log, recipe
from sfa_ext.training.loop import Fit


class RecordedFit(Fit):
    """A Fit that keeps the numbers of every step."""

    def _one_step(self, batches):
        numbers = super()._one_step(batches)
        self.numbers = [*getattr(self, "numbers", []), numbers]
        return numbers


def train(job, folder, *overrides):
    """What a rank saw of a run: losses and bytes sent by step, last figures, positions of what it selected."""
    fit = RecordedFit(recipe.load(job, overrides), folder, quiet=True)
    results = fit.run()
    chosen = fit.model.adaptation.selection
    return {
        "losses": [n["loss"] for n in fit.numbers],
        "sent": [n.get("sent", 0) for n in fit.numbers],
        "figures": results["val"],
        "selected": {n: e.index.tolist() for n, e in chosen} if chosen else {},
    }


def select(criterion, scope, granularity):
    """Positions that three rounds select where every gradient is a small integer, so that sums over ranks are exact."""
    draw = torch.Generator().manual_seed(3)
    weights = {name: torch.randn(24, 8, generator=draw).requires_grad_() for name in ("a", "b", "c")}
    search = Search(Selection(weights), Schedule(90, 3, 2), criterion, scope, granularity, seed=5)
    optimizer = SparseAdamW([], search, lr=0.01)
    found = []
    for _ in range(6):
        whole = torch.randint(-3, 4, (4, 3, 24, 8), generator=draw).float()  # four samples, three weights
        per = 4 // ranks.size()
        own = whole[ranks.rank() * per : (ranks.rank() + 1) * per].mean(0)
        sum((w * g).sum() for w, g in zip(weights.values(), own, strict=True)).backward()
        ranks.mean_gradients(optimizer.slots())
        optimizer.step()
        found.append({name: e.index.tolist() for name, e in search.selection})
    values = {name: w.detach().clone().tolist() for name, w in weights.items()}
    return found, values


VARIANTS = [(c, "global", "element") for c in CRITERIA] + [
    ("gradient", "layer", "element"),
    ("squared", "global", "row"),
]


def select_every_way():
    return [select(*variant) for variant in VARIANTS]


def test_ranks_select_and_train_the_same_bits_given_the_same_scores():
    (alone,) = processes.run(1, select_every_way)
    for size in (2, 4):
        for own in processes.run(size, select_every_way):
            for variant, expected, found in zip(VARIANTS, alone, own, strict=True):
                assert found == expected, (size, variant)


def test_ranks_train_as_one_process(job, tmp_path):
    whole = ["optim.batch=4"]
    alone, *_ = processes.run(1, train, str(job), str(tmp_path / "1"), *whole)
    assert sum(map(len, alone["selected"].values())) > 0
    for size in (2, 4):  # of three samples to evaluate, two ranks take one and two, and four ranks leave one idle
        found = processes.run(size, train, str(job), str(tmp_path / str(size)), *whole)
        assert all(f == found[0] for f in found)
        assert found[0]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert found[0]["figures"] == pytest.approx(alone["figures"], rel=1e-5)
        lines = [{n: v for n, v in line.items() if n != "sent"} for line in log.read(tmp_path / str(size))]
        expected = log.read(tmp_path / "1")
        assert [line.keys() for line in lines] == [line.keys() for line in expected]


def test_the_parts_of_all_ranks_are_the_batch():
    class Numbers:
        def __len__(self):
            return 7

        def __getitem__(self, index):
            return {"image": torch.full((3, 4, 4), float(index))}

    noisy = lambda s: {"image": s["image"] + torch.rand(())}  # noqa: E731
    for step in (0, 5):
        whole = StepBatches(Numbers(), noisy, 4, 1, 2)[step]["image"]
        parts = [StepBatches(Numbers(), noisy, 4, 1, 2, rank, 2)[step]["image"] for rank in range(2)]
        assert torch.equal(whole, torch.cat(parts))
    with pytest.raises(ValueError, match="optim.batch: 4 images cannot be split evenly over 3 ranks"):
        StepBatches(Numbers(), noisy, 4, 1, 2, 0, 3)


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_evaluation_meets_every_sample_once(size):
    class Numbers:
        def __len__(self):
            return 7

        def __getitem__(self, index):
            return {"image": torch.zeros(3, 4, 4, dtype=torch.uint8), "name": index}

    loaders = [eval_loader(Numbers(), 2, 0, rank, size) for rank in range(size)]
    assert [name for loader in loaders for batch in loader for name in batch["name"]] == list(range(7))
