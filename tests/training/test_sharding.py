"""A backbone that ranks share: trained as by one process, and saved so that any number of ranks takes it up."""

from __future__ import annotations

import shutil
import warnings

import processes
import pytest
import torch
from test_distributed import RecordedFit, train
from torch import nn

import sfa_ext
from sfa_ext import deltas, ranks
from sfa_ext.selection.shards import local, part_of, whole
from sfa_ext.training import recipe as recipes
from sfa_ext.training.model import Classes, Model
from sfa_ext.training.sharding import clip_gradients_, shard

SIZE, BATCH, STEPS = 64, 4, 5  # pixels, images of all ranks, steps


def adapted(settings, seed=0):
    """An adapted backbone of random weights, shared where there are ranks, with a small head."""
    torch.manual_seed(seed)
    backbone = sfa_ext.backbones.build("swinv2_pico", size=SIZE, dynamic=False)
    for name, parameter in backbone.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, mean=0.5, std=0.2)
    start = {name: p.detach().clone() for name, p in backbone.named_parameters()}
    adaptation = sfa_ext.adapt(backbone, settings, seed=0)
    model = Model(backbone, adaptation, nn.Conv2d(256, 4, 1), Classes((), (), []), SIZE, "none", False)
    if ranks.size() > 1:
        shard(model)
    return model, start


def steps(model, steps):
    draw = torch.Generator().manual_seed(1)
    optimizer = model.adaptation.optimizer(1e-3, head=model.task.parameters(), steps=steps)
    losses = []
    for _ in range(steps):
        images = torch.randn(BATCH, 3, SIZE, SIZE, generator=draw)
        labels = torch.randint(0, 4, (BATCH, 2, 2), generator=draw)
        own = slice(ranks.rank() * BATCH // ranks.size(), (ranks.rank() + 1) * BATCH // ranks.size())
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model.task(model.backbone(images[own])[-1]), labels[own])
        loss.backward()
        ranks.mean_gradients(model.task.parameters())
        clip_gradients_(model.adaptation.parameters(), list(model.task.parameters()), 0.5)
        optimizer.step()
        losses.append(ranks.means([float(loss.detach())])[0])
    return losses


SETTINGS = {
    "elements": {},
    "rows, by layer, squared": {"granularity": "row", "scope": "layer", "criterion": "squared"},
    "displacement": {"criterion": "displacement"},
}


def trained(**settings):
    """Losses, what is selected, and which weights moved that were not; on the first rank the task file's bytes."""
    model, start = adapted(sfa_ext.SFA(budget=0.05, rounds=2, interval=2, **settings))
    losses = steps(model, STEPS)
    task = deltas.collect(model.adaptation, model.task)
    now = {name: whole(p) for name, p in model.backbone.named_parameters() if name in start}
    if ranks.rank():
        return losses, model.adaptation.selection.count()
    moved = {name: (now[name] != start[name]).flatten() for name in start}
    strays = [n for n, m in moved.items() if n not in task.selected and m.any()]
    for name, chosen in task.selected.items():
        moved[name][chosen.index] = False
        strays += [name] * int(moved[name].any())
        assert torch.equal(now[name].flatten()[chosen.index], chosen.values)
    return losses, model.adaptation.selection.count(), strays, deltas.to_bytes(task)


def held():
    """Bytes of this rank's parameters and scores, before the search is over."""
    model, _ = adapted(sfa_ext.SFA(budget=0.05, rounds=2, interval=2))
    optimizer = model.adaptation.optimizer(1e-3, head=model.task.parameters(), steps=4)
    scores = sum(s.nbytes for s in optimizer.search.scores.values())
    return sum(local(p).nbytes for p in model.backbone.parameters()), scores


def refused():
    """What a shared backbone does not do."""
    model, _ = adapted(sfa_ext.SFA(budget=0.05, rounds=2, interval=2))
    with pytest.raises(ValueError, match="the backbone is sharded"):
        model.adaptation.detach()
    first = next(iter(model.adaptation.selection.weights))
    model.adaptation.selection.fix({first: torch.tensor([3, 5])})
    with pytest.raises(ValueError, match="2 weights are selected already"):
        model.adaptation.follow()


def trained_whole():
    """Losses of full fine-tuning, whose blocks return views, and what FSDP2 has to say about them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses = steps(adapted(sfa_ext.Full())[0], STEPS)
    return losses, [text for w in caught if "FSDP" in (text := str(w.message))]


def everything():
    """All that one start of the processes is needed for."""
    if ranks.size() > 1:
        refused()
    ways = [trained(**settings) for settings in SETTINGS.values()]
    return {"held": held(), "trained": ways, "whole": trained_whole()}


@pytest.fixture(scope="module")
def found():
    return {size: processes.run(size, everything) for size in (1, 2, 4)}


@pytest.mark.parametrize("way", range(len(SETTINGS)), ids=list(SETTINGS))
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_that_share_a_backbone_train_it_as_one_process(found, size, way):
    losses, count, strays, file = found[size][0]["trained"][way]
    expected, expected_count, _, expected_file = found[1][0]["trained"][way]
    assert losses == pytest.approx(expected, rel=1e-5) and count == expected_count
    assert all(other["trained"][way][:2] == (losses, count) for other in found[size][1:])
    assert not strays
    mine, theirs = deltas.from_bytes(file), deltas.from_bytes(expected_file)
    same = sum(int(torch.isin(mine.selected[n].index, s.index).sum()) for n, s in theirs.selected.items())
    assert same >= 0.999 * count  # gradients differ in their last bits


@pytest.mark.parametrize("size", [2, 4])
def test_full_fine_tuning_is_shared_too_and_nothing_is_warned_of(found, size):
    expected, _ = found[1][0]["whole"]
    for rank in found[size]:
        losses, warned = rank["whole"]
        assert losses == pytest.approx(expected, rel=1e-5) and not warned


def loaded(file):
    """A task file taken up by these ranks: whether every part is where it belongs, and the file of it again."""
    model, start = adapted(sfa_ext.SFA(budget=0.05, rounds=2, interval=2))
    task = deltas.from_bytes(file)
    deltas.restore(task, model.adaptation, model.task)
    parameters = dict(model.backbone.named_parameters())
    for name, chosen in task.selected.items():
        expected = start[name].flatten()
        expected[chosen.index] = chosen.values
        assert torch.equal(local(parameters[name]), part_of(expected.view_as(start[name]), parameters[name]))
    again = deltas.collect(model.adaptation, model.task)
    return deltas.to_bytes(again) if ranks.rank() == 0 else None


@pytest.mark.parametrize("size", [1, 4])
def test_what_two_ranks_saved_loads_on_one_and_on_four(found, size):
    file = found[2][0]["trained"][0][-1]
    assert processes.run(size, loaded, file)[0] == file


def test_what_a_rank_holds_falls_with_their_number(found):
    one, two, four = ([rank["held"] for rank in found[size]] for size in (1, 2, 4))
    for kind in range(2):
        assert max(r[kind] for r in two) < 0.55 * one[0][kind]
        assert max(r[kind] for r in four) < 0.30 * one[0][kind]
        assert sum(r[kind] for r in two) == sum(r[kind] for r in four) == one[0][kind]


def test_a_recipe_shares_the_backbone_and_goes_on_with_other_ranks(job, tmp_path):
    """Evaluated halfway, by one rank with two images and one with one; then finished by one process and by four."""
    recipe = ["optim.batch=4", "eval_every=5", "save_every=5"]
    alone, *_ = processes.run(1, train, str(job), str(tmp_path / "1"), *recipe, "shard=true")
    found = processes.run(2, stopped, str(job), str(tmp_path / "2"), *recipe, "shard=true")
    shutil.copytree(tmp_path / "2", tmp_path / "4")
    assert found[0] == found[1] == pytest.approx(alone["losses"][:5], rel=1e-5)
    for size in (1, 4):
        end, *_ = processes.run(size, train, str(job), str(tmp_path / {1: "2", 4: "4"}[size]), *recipe, "shard=true")
        assert end["losses"] == pytest.approx(alone["losses"][5:], rel=1e-5)
        assert end["figures"] == pytest.approx(alone["figures"], rel=1e-5)


class Halted(Exception):
    pass


class HalfFit(RecordedFit):
    """A run that is gone after its first half."""

    def _one_step(self, batches):
        if self.step == 5:
            raise Halted
        return super()._one_step(batches)


def stopped(job, folder, *overrides):
    """Losses of the first half of a run."""
    fit = HalfFit(recipes.load(job, overrides), folder, quiet=True)
    with pytest.raises(Halted):
        fit.run()
    return [numbers["loss"] for numbers in fit.numbers]
