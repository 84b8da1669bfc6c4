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
