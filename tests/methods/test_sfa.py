"""SFA on a SwinV2: accounting, identity at the start, the budget kept, training, undoing."""

from __future__ import annotations

import copy

import pytest
import torch

import sfa_ext
from sfa_ext import SFA, backbones

SMALL = {"budget": 0.05, "rounds": 2, "interval": 2}


def meta(name):
    with torch.device("meta"):
        return backbones.build(name)


def loss_of(model, seed=0):
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(seed))
    return sum(m.square().mean() for m in model(images))


def train(model, adaptation, optimizer, steps):
    for step in range(steps):
        loss_of(model, step).backward()
        torch.nn.utils.clip_grad_norm_(adaptation.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize(
    ("backbone", "method", "share", "dim"),
    [
        ("swinv2_base_window8_256", "sfa-s", 0.048, 64),
        ("swinv2_base_window8_256", "sfa-b", 0.195, 128),
        ("swinv2_large_window12_192", "sfa-s", 0.045, 64),
        ("swinv2_large_window12_192", "sfa-b", 0.190, 256),
    ],
)
def test_presets_give_the_papers_shares(backbone, method, share, dim):
    adaptation = sfa_ext.adapt(meta(backbone), method)
    assert adaptation.report().share == pytest.approx(share, abs=1e-6)
    assert adaptation.dim == dim


@pytest.mark.parametrize(("dim", "millions"), [(32, 1.540), (64, 3.080), (128, 6.160), (256, 12.19)])
def test_external_adapters_have_the_counted_sizes(dim, millions):
    report = sfa_ext.adapt(meta("swinv2_base_window8_256"), SFA(budget=0.5, dim=dim)).report()
    assert round(report.external / 1e6, 3 if dim < 256 else 2) == millions


@pytest.mark.parametrize("placement", ["branch", "post_norm", "stream"])
def test_an_adapted_model_starts_with_the_same_output(pico, placement):
    images = torch.randn(2, 3, 96, 96)
    before = pico(images)
    adaptation = sfa_ext.adapt(pico, SFA(placement=placement))
    for a, b in zip(before, pico(images), strict=True):
        assert torch.equal(a, b)
    for adapter in adaptation.adapters().values():
        torch.nn.init.normal_(adapter.up.weight)
    assert (before[0] - pico(images)[0]).abs().max() > 1e-2, "the adapters are not in the way of the forward pass"


@pytest.mark.parametrize(
    "settings", [{}, {"rho": 0.0}, {"rho": 1.0}, {"dim": 4}, {"criterion": "displacement"}], ids=str
)
def test_training_spends_exactly_the_budget_and_can_be_undone(pico, settings):
    start = copy.deepcopy(pico.state_dict())
    adaptation = sfa_ext.adapt(pico, SFA(**(SMALL | settings)))
    optimizer = adaptation.optimizer(1e-2)
    train(pico, adaptation, optimizer, 6)
    report = adaptation.report()
    budget = int(0.05 * report.with_head)
    if "rho" not in settings:
        assert report.internal > 0 < report.external
    assert adaptation.selection.count() == report.internal
    assert report.trainable <= budget
    changed = sum(int((p != start[n]).sum()) for n, p in pico.named_parameters() if n in start)
    assert 0.95 * report.internal <= changed <= report.internal
    adaptation.detach()
    assert list(pico.state_dict()) == list(start)
    assert all(torch.equal(t, start[n]) for n, t in pico.state_dict().items())
    assert all(p.requires_grad and not p._post_accumulate_grad_hooks for p in pico.parameters())


def test_after_the_last_round_weights_without_selected_entries_need_no_gradient(pico):
    adaptation = sfa_ext.adapt(pico, SFA(budget=1e-3, rho=0.0, rounds=1, interval=1))
    train(pico, adaptation, adaptation.optimizer(1e-3), 2)
    counts = adaptation.selection.counts()
    assert 0 in counts.values()
    assert all(adaptation.selection.weights[n].requires_grad == (k > 0) for n, k in counts.items())


def test_the_automatic_width_is_the_largest_that_fits(pico):
    adaptation = sfa_ext.adapt(pico, SFA(budget=0.06, rho=0.5))
    report, room = adaptation.report(), 0.03 * adaptation.report().with_head
    per_unit = report.external / adaptation.dim
    assert report.external <= room < report.external + per_unit


def test_state_moves_to_a_fresh_backbone(pico):
    twin = copy.deepcopy(pico)
    adaptation = sfa_ext.adapt(pico, SFA(**SMALL))
    train(pico, adaptation, adaptation.optimizer(1e-2), 5)
    other = sfa_ext.adapt(twin, SFA(**SMALL))
    other.load_state(adaptation.state())
    assert torch.equal(loss_of(pico), loss_of(twin))
    other.detach()
    adaptation.detach()
    assert torch.equal(loss_of(pico), loss_of(twin))


def test_half_precision_backbones_train_too(pico):
    pico.to(torch.bfloat16)
    adaptation = sfa_ext.adapt(pico, SFA(**SMALL))
    optimizer = adaptation.optimizer(1e-2)
    for step in range(5):
        images = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(step)).bfloat16()
        sum(m.float().square().mean() for m in pico(images)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert adaptation.selection.count() == adaptation.report().internal


def test_a_seed_fixes_the_adapters_and_spends_no_global_random_numbers(pico):
    twin = copy.deepcopy(pico)
    torch.manual_seed(3)
    adaptation = sfa_ext.adapt(pico, "sfa-s", seed=7)
    torch.manual_seed(4)
    other = sfa_ext.adapt(twin, "sfa-s", seed=7)
    for a, b in zip(adaptation.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0.0}, r"budget: must be in \(0, 1\].*got 0.0"),
        ({"budget": 1.5}, "got 1.5"),
        ({"rho": -1}, r"rho: must be in \[0, 1\], got -1"),
        ({"dim": -1}, "dim: .*got -1"),
        ({"criterion": "magic"}, "criterion: unknown 'magic', known: gradient, absolute, squared, displacement"),
        ({"placement": "roof"}, "placement: unknown 'roof', known: branch, post_norm, stream"),
        ({"internal_lr_scale": 0.0}, "internal_lr_scale: must be more than 0, got 0.0"),
        ({"rounds": 0}, "rounds: .*got 0"),
        ({"interval": 0, "rounds": 3}, "interval 0 means a single round"),
    ],
)
def test_bad_settings_name_the_value(settings, message):
    with pytest.raises(ValueError, match=message):
        SFA(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 1e-4}, "leaves no room for an adapter of dim=1; the smallest budget is 0.0035"),
        ({"budget": 0.05, "dim": 64}, "adapters of dim=64 alone need 237568; the smallest budget is 0.10956"),
        ({"budget": 0.99, "rho": 0.0}, "weights to select, but targets hold only"),
    ],
)
def test_a_budget_that_cannot_be_met_says_what_can(pico, settings, message):
    with pytest.raises(ValueError, match=message):
        sfa_ext.adapt(pico, SFA(**settings))
    sfa_ext.adapt(pico, "sfa-s")


def test_unknown_names_and_second_adaptations_are_refused(pico):
    with pytest.raises(ValueError, match="unknown 'sfa-xl', known: frozen, full, ssf, .*, sfa, sfa-s, sfa-b, sfa-e"):
        sfa_ext.adapt(pico, "sfa-xl")
    sfa_ext.adapt(pico, "frozen")
    with pytest.raises(ValueError, match="adapted already; call detach"):
        sfa_ext.adapt(pico, "sfa-s")


def test_a_schedule_that_does_not_fit_the_training_is_refused(pico):
    adaptation = sfa_ext.adapt(pico, SFA(rounds=5, interval=100))
    with pytest.raises(
        ValueError, match="5 rounds of 100 steps do not fit into 200 training steps; set interval to 40"
    ):
        adaptation.optimizer(steps=200)
