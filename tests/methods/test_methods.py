"""Every method under one interface: what it trains, and that it can be taken out without trace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sfa_ext
from sfa_ext.methods import METHODS, PRESETS, resolve


@pytest.mark.parametrize("name", [*METHODS, *PRESETS])
def test_training_then_detaching_restores_every_bit(pico, name):
    start = copy.deepcopy(pico.state_dict())
    settings = {"rounds": 1, "interval": 1} if "sfa" in name else {}
    adaptation = sfa_ext.adapt(pico, resolve(name, pico, settings))
    head = nn.Linear(32, 2)
    optimizer = adaptation.optimizer(1e-2, head=head.parameters(), steps=3)
    for step in range(3):
        images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(step))
        head(pico(images)[0].mean((2, 3))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = [n for n, t in pico.state_dict().items() if n in start and not torch.equal(t, start[n])]
    assert bool(moved) == (name != "frozen")
    adaptation.detach()
    assert all(torch.equal(t, start[n]) for n, t in pico.state_dict().items())
    assert list(pico.state_dict()) == list(start)


def test_full_counts_everything_and_frozen_nothing(pico):
    total = sum(p.numel() for p in pico.parameters())
    full = sfa_ext.adapt(pico, "full")
    assert full.report().internal + full.report().biases == total
    full.detach()
    assert sfa_ext.adapt(pico, "frozen").report().trainable == 0


def test_frozen_without_a_head_has_nothing_to_train(pico):
    with pytest.raises(ValueError, match="trains nothing in the backbone; give the head's parameters"):
        sfa_ext.adapt(pico, "frozen").optimizer()


def test_unknown_settings_list_the_known_ones(pico):
    with pytest.raises(ValueError, match="unknown setting 'budge', known: budget, criterion, dim"):
        resolve("sfa", pico, {"budge": 0.1})


def test_vectors_are_not_decayed(pico):
    groups = sfa_ext.adapt(pico, "full").optimizer(weight_decay=0.3).param_groups
    assert all((g["weight_decay"] == 0.0) == all(p.dim() <= 1 for p in g["params"]) for g in groups)


@pytest.mark.parametrize("name", [*METHODS, *PRESETS])
def test_a_saved_adaptation_is_taken_up_by_a_fresh_backbone(pico, tmp_path, name):
    settings = {"rounds": 1, "interval": 1} if "sfa" in name else {}
    twin, images = copy.deepcopy(pico), torch.randn(2, 3, 96, 96)
    adaptation = sfa_ext.adapt(pico, resolve(name, pico, settings))
    head = nn.Linear(32, 2)
    optimizer = adaptation.optimizer(1e-2, head=head.parameters())
    for _ in range(2):
        head(pico(images)[0].mean((2, 3))).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    adaptation.save(tmp_path / "task.safetensors")
    other = sfa_ext.adapt(twin, resolve(name, twin, settings))
    other.load(tmp_path / "task.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(pico(images), twin(images), strict=True))


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
