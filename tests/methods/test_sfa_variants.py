"""SFA's variants: order, fixed masks from elsewhere, continual selection, whole rows, displacement."""

from __future__ import annotations

import copy

import pytest
import torch

import sfa_ext
from sfa_ext import SFA, backbones
from sfa_ext.selection import Schedule, Search, Selection

BOTH = {"budget": 0.05, "rho": 0.5, "rounds": 2, "interval": 1}


def loss_of(model, seed=0):
    images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(seed))
    return sum(m.square().mean() for m in model(images))


def train(model, optimizer, steps):
    for step in steps:
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def values(adaptation):
    return torch.cat(list(adaptation.selection.values().values()))


def positions(adaptation):
    return {n: e.index.clone() for n, e in adaptation.selection}


def test_displacement_under_plain_sgd_selects_what_gradient_selects(pico):
    pico.double()
    weights = backbones.eligible_weights(pico)
    by_sum, by_way = (
        Search(Selection(weights), Schedule(20_000, 1, 3), criterion) for criterion in ("gradient", "displacement")
    )
    sgd = torch.optim.SGD(weights.values(), lr=0.05)
    for _ in range(3):
        sum(m.square().mean() for m in pico(torch.randn(1, 3, 96, 96).double())).backward()
        by_sum.score()
        sgd.step()
        for search in (by_sum, by_way):
            search.observe()
        sgd.zero_grad()
    for search in (by_sum, by_way):
        search.select()
    for (_, a), (_, b) in zip(by_sum.selection, by_way.selection, strict=True):
        assert torch.equal(a.index, b.index)
    assert by_sum.selection.count() == 20_000


def test_internal_first_trains_one_adapter_after_the_other(backbone):
    adaptation = sfa_ext.adapt(backbone, SFA(**BOTH, order="internal_first"), seed=0)
    optimizer = adaptation.optimizer(1e-2, steps=6)
    external = [p.detach().clone() for p in adaptation.parameters() if p.dim() > 1]
    train(backbone, optimizer, range(3))
    assert optimizer.phase == 2 and adaptation.selection.count() == adaptation.report().internal
    kept = [p for _, p in adaptation.named_parameters() if p.dim() > 1]
    assert all(torch.equal(a, b) for a, b in zip(external, kept, strict=True))
    original = torch.cat([e.original for _, e in adaptation.selection])
    learned = values(adaptation)
    assert not torch.equal(learned, original)
    train(backbone, optimizer, range(3, 6))
    assert torch.equal(values(adaptation), learned)
    assert not any(torch.equal(a, b) for a, b in zip(external, kept, strict=True))


def test_internal_first_says_what_it_needs(pico):
    with pytest.raises(ValueError, match="order: internal_first needs both adapters"):
        sfa_ext.adapt(pico, SFA(rho=0.0, order="internal_first"))
    adaptation = sfa_ext.adapt(pico, SFA(**BOTH, order="internal_first"))
    with pytest.raises(ValueError, match="steps: order internal_first needs the number of training steps"):
        adaptation.optimizer()
    with pytest.raises(ValueError, match="2 rounds of 1 steps do not fit into 1 training steps"):
        adaptation.optimizer(steps=2)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_selected_weights_have_a_learning_rate_of_their_own(pico, scale):
    adaptation = sfa_ext.adapt(pico, SFA(**BOTH | {"rounds": 1}, internal_lr_scale=scale))
    optimizer = adaptation.optimizer(lr=1e-3, weight_decay=0.0, steps=2)
    train(pico, optimizer, [0])  # ends with the selection; the next step is the first of what it selected
    inside, beside = values(adaptation), [p.detach().clone() for _, p in adaptation.named_parameters()]
    train(pico, optimizer, [1])
    assert (values(adaptation) - inside).abs().max().item() == pytest.approx(scale * 1e-3, rel=1e-2)
    moved = [(p - old).abs().max() for (_, p), old in zip(adaptation.named_parameters(), beside, strict=True)]
    assert max(moved).item() == pytest.approx(1e-3, rel=0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_selection_from_elsewhere_is_the_mask_and_starts_from_theta_0(pico, dtype):
    twin = copy.deepcopy(pico)
    first = sfa_ext.adapt(pico, SFA(**BOTH))
    train(pico, first.optimizer(1e-2), range(2))
    twin.to(dtype)
    start = copy.deepcopy(twin.state_dict())
    second = sfa_ext.adapt(twin, SFA(**BOTH))
    second.use_selection(positions(first))
    assert second.report().internal == first.report().internal
    assert all(torch.equal(p, start[n]) for n, p in twin.named_parameters() if n in start)
    optimizer = second.optimizer(1e-2)
    for step in range(2):
        images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(step)).to(dtype)
        sum(m.float().square().mean() for m in twin(images)).backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = 0
    for name, index in positions(first).items():
        differ = (second.selection.weights[name] != start[name]).flatten()
        moved += int(differ.sum())
        differ[index] = False
        assert not differ.any() and torch.equal(second.selection.entries[name].index, index)
    assert moved > 0.5 * second.report().internal
    second.detach()
    assert all(torch.equal(t, start[n]) for n, t in twin.state_dict().items())


def test_a_selection_that_does_not_fit_is_refused_whole(pico):
    adaptation = sfa_ext.adapt(pico, SFA(**BOTH))
    name = next(iter(adaptation.selection.weights))
    whole = {n: torch.arange(w.numel()) for n, w in adaptation.selection.weights.items()}
    with pytest.raises(ValueError, match="selection: has 1695744 weights, the budget .* the smallest budget is"):
        adaptation.use_selection(whole)
    with pytest.raises(ValueError, match="'nowhere' is none of the weights that may be selected here"):
        adaptation.use_selection({"nowhere": torch.tensor([1])})
    with pytest.raises(ValueError, match="not sorted inside"):
        adaptation.use_selection({name: torch.tensor([5, 2])})
    assert adaptation.selection.count() == 0
    adaptation.optimizer(steps=10)
    with pytest.raises(ValueError, match="has begun a search already"):
        adaptation.use_selection({name: torch.tensor([5])})


def test_what_one_task_selected_is_folded_in_for_the_next(pico):
    bare = copy.deepcopy(pico)
    first = sfa_ext.adapt(pico, SFA(**BOTH))
    with pytest.raises(ValueError, match=r"fold_selection\(\) to leave them out"):
        first.merge()
    optimizer = first.optimizer(1e-2)
    with pytest.raises(ValueError, match="the search is at round 0 of 2"):
        first.fold_selection()
    train(pico, optimizer, range(3))
    adapted, learned = loss_of(pico), values(first)
    first.fold_selection()
    folded = torch.cat([w.detach().flatten()[first.selection.entries[n].index]
                        for n, w in backbones.eligible_weights(pico).items()])  # fmt: skip
    assert torch.equal(folded, learned) and len(list(pico.parameters())) == len(list(bare.parameters()))
    second = sfa_ext.adapt(pico, SFA(**BOTH))
    assert second.fingerprint != first.fingerprint
    train(pico, second.optimizer(1e-2), range(10, 13))
    (shared,) = second.overlaps()
    ours, theirs = positions(second), positions(first)
    assert shared.both == sum(len(set(ours[n].tolist()) & set(theirs[n].tolist())) for n in ours) > 0
    assert (shared.first, shared.second) == (first.selection.count(), second.selection.count())
    second.detach()
    first.unmerge()
    assert torch.equal(loss_of(pico), adapted)
    first.detach()
    assert torch.equal(loss_of(pico), loss_of(bare))


def test_rows_train_whole_output_channels_within_the_budget(backbone):
    start = copy.deepcopy(backbone.state_dict())
    adaptation = sfa_ext.adapt(backbone, SFA(budget=0.05, rho=0.0, rounds=2, interval=1, granularity="row"))
    room = adaptation.total
    train(backbone, adaptation.optimizer(1e-2), range(3))
    count = adaptation.report().internal
    assert room - 1024 < count == adaptation.selection.count() <= room
    for name, weight in adaptation.selection.weights.items():
        rows = (weight.detach() != start[name]).sum(1)
        assert ((rows == 0) | (rows > 0.9 * weight.shape[1])).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": "sideways"}, "order: unknown 'sideways', known: external_first, internal_first"),
        ({"granularity": "block"}, "granularity: unknown 'block', known: element, row"),
        ({"phase": 1.0}, "phase: must be between 0 and 1, a part of the training, got 1.0"),
    ],
)
def test_bad_settings_name_the_value(settings, message):
    with pytest.raises(ValueError, match=message):
        SFA(**settings)
