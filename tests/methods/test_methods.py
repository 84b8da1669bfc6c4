"""Every method under one interface, on every family: what it trains, and that it can be taken out without trace."""

from __future__ import annotations

import copy

import pytest
import torch

import sfa_ext
from sfa_ext.methods import METHODS, PRESETS, resolve

NAMES = [*METHODS, *PRESETS]
MERGEABLE = ["frozen", "full", "ssf", "lora", "sfa-internal"]


def images(seed=0):
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(seed))


def adapt(model, name, **more):
    settings = {"rounds": 1, "interval": 1} if "sfa" in name else {}
    return sfa_ext.adapt(model, resolve(name, model, settings | more), seed=1)


def train(model, adaptation, steps=3):
    """A few steps over all maps; frozen trains only the head that every method gets."""
    head = torch.nn.Parameter(torch.ones(()))
    optimizer = adaptation.optimizer(1e-2, head=[head], steps=steps)
    model.train()
    for step in range(steps):
        (head * sum(m.square().mean() for m in model(images(step)))).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


@torch.no_grad()
def outputs(model):
    return model(images(99))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def close(a, b, bound=1e-5):
    return all((x - y).norm() <= bound * y.norm() for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_a_method_starts_at_the_backbones_output_where_it_promises_to(backbone, name):
    before = outputs(backbone)
    adaptation = adapt(backbone, name)
    assert same(before, outputs(backbone)) == adaptation.settings.starts_as_identity


@pytest.mark.parametrize("name", NAMES)
def test_training_then_detaching_restores_every_bit(backbone, name):
    start, before = copy.deepcopy(backbone.state_dict()), outputs(backbone)
    modules = [(n, type(m)) for n, m in backbone.named_modules()]
    adaptation = adapt(backbone, name)
    first = copy.deepcopy(adaptation.state())
    train(backbone, adaptation)
    assert same(before, outputs(backbone)) == (name == "frozen")
    learned = {n: t for n, t in adaptation.state().items() if n.startswith("parameters/")}
    # One step moves W_up alone, the next ones all the rest.
    assert not [n for n, t in learned.items() if t.requires_grad and torch.equal(t, first[n])]
    adaptation.detach()
    assert all(torch.equal(t, start[n]) for n, t in backbone.state_dict().items())
    assert list(backbone.state_dict()) == list(start) and same(before, outputs(backbone))
    assert [(n, type(m)) for n, m in backbone.named_modules()] == modules
    hooks = [m for m in backbone.modules() if m._forward_hooks or m._forward_pre_hooks or "train" in vars(m)]
    assert not hooks and all(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_adaptation_is_taken_up_by_a_fresh_backbone(backbone, tmp_path, name):
    twin = copy.deepcopy(backbone)
    adaptation = adapt(backbone, name)
    train(backbone, adaptation, 2)
    adaptation.save(tmp_path / "task.safetensors")
    other = adapt(twin, name)
    other.load(tmp_path / "task.safetensors")
    assert same(outputs(backbone), outputs(twin))


@pytest.mark.parametrize("name", MERGEABLE)
def test_merging_leaves_a_plain_model_and_unmerging_the_same_bits(backbone, name):
    start, classes = copy.deepcopy(backbone.state_dict()), [type(m) for m in backbone.modules()]
    before = outputs(backbone)
    adaptation = adapt(backbone, name)
    train(backbone, adaptation)
    adapted = outputs(backbone)
    assert adaptation.merge() is backbone
    assert [type(m) for m in backbone.modules()] == classes and all(p.requires_grad for p in backbone.parameters())
    assert close(outputs(backbone), adapted)
    adaptation.unmerge()
    assert same(outputs(backbone), adapted)
    adaptation.merge()
    adaptation.detach()
    assert same(outputs(backbone), before) and list(backbone.state_dict()) == list(start)
    assert all(torch.equal(t, start[n]) for n, t in backbone.state_dict().items())


@pytest.mark.parametrize("name", sorted({*NAMES} - {*MERGEABLE}))
def test_what_computes_beside_the_weights_cannot_be_merged_and_stays_whole(backbone, name):
    adaptation = adapt(backbone, name)
    adapted = outputs(backbone)
    with pytest.raises(ValueError, match="merge: .* beside the backbone's weights and cannot be folded into them"):
        adaptation.merge()
    assert same(outputs(backbone), adapted)


def test_a_merged_backbone_can_be_adapted_again_and_unwound_in_order(pico):
    before = outputs(pico)
    first = adapt(pico, "lora")
    train(pico, first)
    first.merge()
    merged = outputs(pico)
    second = adapt(pico, "ssf")
    with pytest.raises(ValueError, match="unmerge: the backbone was adapted again since"):
        first.unmerge()
    second.merge()
    with pytest.raises(ValueError, match="unmerge: the backbone was adapted again since"):
        first.detach()
    second.detach()
    assert same(outputs(pico), merged)
    first.detach()
    assert same(outputs(pico), before)


@pytest.mark.parametrize("name", ["lora", "adaptformer", "vpt", "mona", "sfa-external"])
def test_a_budget_takes_the_largest_size_that_fits(backbone, name):
    adaptation = adapt(backbone, name, budget=0.05)
    report = adaptation.report()
    native = {"lora": "rank", "vpt": "tokens", "sfa-external": "dim"}.get(name, "dim")
    size = getattr(adaptation, native)
    # From 32 on SFA keeps to multiples of 8.
    larger = size + (8 if name == "sfa-external" and size >= 32 else 1)
    adaptation.detach()
    more = sfa_ext.adapt(
        backbone, resolve(name, backbone, {native: larger} | ({"budget": 0.1} if "sfa" in name else {}))
    )
    assert report.external <= 0.05 * report.with_head < more.report().external


@pytest.mark.parametrize("name", ["ssf", "lora", "adaptformer", "vpt", "mona", "sfa"])
def test_an_impossible_budget_says_the_smallest_possible_one(backbone, name):
    start = [type(m) for m in backbone.modules()]
    with pytest.raises(ValueError, match="the smallest budget is") as caught:
        adapt(backbone, name, budget=1e-5)
    assert [type(m) for m in backbone.modules()] == start
    smallest = float(str(caught.value).split("the smallest budget is ")[1].split(",")[0])
    adapt(backbone, name, budget=smallest).detach()
    with pytest.raises(ValueError, match="the smallest budget is"):
        adapt(backbone, name, budget=smallest - 2e-5)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("lora", {"rank": 0}, "rank: must be 1 or more, got 0"),
        ("lora", {"rank": 4, "budget": 0.1}, "budget: give rank=4 or budget=0.1, not both"),
        ("lora", {"targets": ("q", "w")}, "targets: must be different ones of q, k, v, qkv, proj, fc1, fc2"),
        ("lora", {"targets": ("q", "qkv")}, "qkv holds q, k and v already"),
        ("lora", {"dropout": 1.0}, r"dropout: must be in \[0, 1\), got 1.0"),
        ("vpt", {"tokens": -1}, "tokens: must be 1 or more, got -1"),
        ("adaptformer", {"budget": 0}, r"budget: must be in \(0, 1\], a share of the backbone's weights, got 0"),
        ("mona", {"dropout": -0.1}, r"dropout: must be in \[0, 1\), got -0.1"),
        ("ssf", {"budget": 2}, r"budget: must be in \(0, 1\].*got 2"),
    ],
    ids=str,
)
def test_bad_settings_name_the_value(pico, name, settings, message):
    with pytest.raises(ValueError, match=message):
        resolve(name, pico, settings)


def test_full_counts_everything_and_frozen_nothing(backbone):
    total = sum(p.numel() for p in backbone.parameters())
    full = sfa_ext.adapt(backbone, "full")
    assert full.report().internal + full.report().biases == total
    full.detach()
    assert sfa_ext.adapt(backbone, "frozen").report().trainable == 0


def test_frozen_without_a_head_has_nothing_to_train(pico):
    with pytest.raises(ValueError, match="trains nothing in the backbone; give the head's parameters"):
        sfa_ext.adapt(pico, "frozen").optimizer()


def test_unknown_settings_list_the_known_ones(pico):
    with pytest.raises(ValueError, match="unknown setting 'budge', known: budget, criterion, dim"):
        resolve("sfa", pico, {"budge": 0.1})


def test_vectors_are_not_decayed(pico):
    groups = sfa_ext.adapt(pico, "full").optimizer(weight_decay=0.3).param_groups
    assert all((g["weight_decay"] == 0.0) == all(p.dim() <= 1 for p in g["params"]) for g in groups)


def test_a_saved_adaptation_is_refused_whole_by_another_backbone_or_setting(pico, tmp_path):
    path = tmp_path / "task.safetensors"
    other = copy.deepcopy(pico)
    sfa_ext.adapt(pico, "sfa-s").save(path)
    wider = sfa_ext.adapt(copy.deepcopy(other), sfa_ext.SFA(dim=20, budget=0.1))
    with pytest.raises(ValueError, match=r"does not fit SFA\(budget=0.1.*'.*down.weight' is of shape"):
        wider.load(path)
    other.model.layers[3].blocks[0].mlp.fc1.weight.data[0, 0] += 1
    changed = sfa_ext.adapt(other, "sfa-s")
    with pytest.raises(ValueError, match="made on another backbone"):
        changed.load(path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="truncated"):
        changed.load(path)
