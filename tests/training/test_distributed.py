"""Several ranks train as one process does: the same selection, the same losses, the same figures, fewer bytes."""

from __future__ import annotations

import processes
import pytest
import torch

from sfa_ext import ranks
from sfa_ext.data.loading import StepBatches, eval_loader
from sfa_ext.optim import SparseAdamW
from sfa_ext.selection import CRITERIA, Schedule, Search, Selection
from sfa_ext.tasks import dense, fpn, mask_loss
from sfa_ext.tasks import depth as depth_task
from sfa_ext.training import log, recipe
from sfa_ext.training.loop import Fit
from sfa_ext.training.norms import SharedBatchNorm2d


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


def sent_in_a_late_step(job, folder, method):
    """Bytes of the last step, after the search, and how many numbers it trained."""
    settings = {"sfa-s": "method.settings={rounds: 1, interval: 1}", "full": "method.settings={}"}[method]
    small = ["task.name=fpn", "task.settings={width: 8}", "optim.steps=3"]
    fit = RecordedFit(recipe.load(job, [f"method.name={method}", settings, *small]), folder, quiet=True)
    fit.run()
    trained = [*fit.model.adaptation.parameters(), *fit.model.task.parameters()]
    return fit.numbers[-1]["sent"], sum(p.numel() for p in trained), len(trained)


def test_after_the_last_round_only_what_is_selected_travels(job, tmp_path):
    sent = {}
    for method in ("sfa-s", "full"):
        (sent[method], numbers, tensors), again = processes.run(
            2, sent_in_a_late_step, str(job), str(tmp_path / method), method
        )
        assert again[0] == sent[method]
        # Four bytes a number, a mark for each tensor that had a gradient, and 5 to 8 small numbers such as the loss.
        assert 4 * numbers <= sent[method] <= 4 * (numbers + tensors) + 100
    assert sent["sfa-s"] <= 0.06 * sent["full"]


def norm_of_a_part(x, kept):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(5), torch.nn.BatchNorm2d(5, affine=False))
    torch.nn.init.normal_(module[0].weight)
    SharedBatchNorm2d.replace(module)
    per = len(x) // ranks.size()
    own = slice(ranks.rank() * per, (ranks.rank() + 1) * per)
    part = x[own].clone().requires_grad_()
    y = module(part)
    (y * kept[own]).sum().backward()
    ranks.mean_gradients(module.parameters())
    state = {name: value.tolist() for name, value in module.state_dict().items()}
    gradients = [(ranks.size() * p.grad).tolist() for p in module.parameters()]
    return y.tolist(), part.grad.tolist(), gradients, state


def test_batch_norm_sees_the_samples_of_all_ranks():
    draw = torch.Generator().manual_seed(1)
    x, kept = 3 + torch.randn(4, 5, 6, 7, generator=draw), torch.randn(4, 5, 6, 7, generator=draw)
    (whole,) = processes.run(1, norm_of_a_part, x, kept)
    parts = processes.run(2, norm_of_a_part, x, kept)
    close = lambda a, b: torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-5, atol=2e-5)  # noqa: E731
    for place in (0, 1):
        close([image for part in parts for image in part[place]], whole[place])
    for part in parts:
        for a, b in zip(part[2], whole[2], strict=True):
            close(a, b)
        assert part[3].keys() == whole[3].keys()
        for name in whole[3]:
            close(part[3][name], whole[3][name])


def losses_of_a_part():
    """Loss of every kind of term on this rank's part of a batch whose images are labelled unequally."""
    draw = torch.Generator().manual_seed(2)
    rand = lambda *shape: torch.rand(*shape, generator=draw)  # noqa: E731
    semantic = torch.randint(0, 3, (4, 16, 16), generator=draw)
    semantic[0, :, 3:], semantic[1] = 255, 255
    depth = rand(4, 16, 16) + 0.5
    depth[2, 4:], depth[3] = 0, 0
    label, scores = torch.tensor([1, -1, -1, 2]), rand(4, 3, 8, 8)
    classes, masks = rand(2, 4, 6, 4), [rand(4, 6, 8, 8), rand(4, 6, 8, 8)]
    log_depth, guesses = rand(4, 16, 16), rand(4, 3)
    per = 4 // ranks.size()
    own = slice(ranks.rank() * per, (ranks.rank() + 1) * per)
    points = torch.rand(64, 2, generator=draw)  # the same for every mask, as ranks draw their own otherwise
    torch.rand = lambda n, count, two, device=None: points[:count].expand(n, -1, -1)
    found = mask_loss.MaskClassificationLoss(3, 16)(classes[:, own], [m[own] for m in masks], semantic[own])
    found |= {
        "pixels": fpn.pixel_cross_entropy(scores[own], semantic[own]),
        "depth": dense._log_depth_l1(log_depth[own], depth[own]),
        "label": dense._label_cross_entropy(guesses[own], label[own], 0.1),
        "silog": depth_task.scale_invariant_log(log_depth[own], depth[own], 0.5),
    }
    return {name: float(value) for name, value in found.items()}


def test_losses_of_ranks_average_to_that_of_the_whole_batch():
    (whole,) = processes.run(1, losses_of_a_part)
    for size in (2, 4):
        parts = processes.run(size, losses_of_a_part)
        assert {n: sum(p[n] for p in parts) / size for n in whole} == pytest.approx(whole, rel=1e-6)


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
