"""The plan: exact counts, and memory and traffic of runs that take place."""

from __future__ import annotations

import json

import processes
import pytest
import torch
from torch import nn

import sfa_ext
from sfa_ext import backbones, ranks
from sfa_ext.cli import main
from sfa_ext.methods import resolve
from sfa_ext.training.plan import plan


def test_the_giant_has_three_billion_parameters():
    with torch.device("meta"):
        giant = backbones.build("swinv2_giant", size=384, dynamic=False)
    assert 2.99e9 < sum(p.numel() for p in giant.parameters()) < 3.01e9
    assert giant.feature_info.channels() == [512, 1024, 2048, 4096]


def sent(method, settings):
    """Bytes given to collectives in a step of the search, for the round after it, and in a step after that."""
    backbone = backbones.build("swinv2_pico", size=96, dynamic=False)
    adaptation = sfa_ext.adapt(backbone, resolve(method, backbone, settings), seed=0)
    head = nn.Linear(1, 1)
    optimizer = adaptation.optimizer(1e-3, head=head.parameters(), steps=2)
    counts = []
    for _ in range(2):
        before = ranks.traffic.bytes
        sum(m.mean() for m in backbone(torch.randn(1, 3, 96, 96))).backward()
        ranks.mean_gradients(adaptation.parameters())
        counts.append(ranks.traffic.bytes - before)
        optimizer.step()
        counts.append(ranks.traffic.bytes - before - counts[-1])
    return counts


@pytest.mark.parametrize("method", ["sfa-s", "lora", "full"])
def test_ddp_sends_what_is_planned(method):
    settings = {"rounds": 1, "interval": 1} if method == "sfa-s" else {}
    searching, a_round, after, _ = processes.run(2, sent, method, settings)[0]
    (planned,) = plan("swinv2_pico", [2], method, 1, 96, settings, ["ddp"])
    # Beside gradients travels a flag for each tensor; two ranks in a ring send each message once.
    assert planned.sent_searching == pytest.approx(searching, rel=0.01)
    assert planned.sent_after == pytest.approx(after, rel=0.01)
    assert planned.sent_round == pytest.approx(a_round, rel=0.01)


def test_the_planned_memory_is_within_a_tenth_of_the_measured_peak():
    from benchmarks import scaling

    for method, layout, stretch, planned, found in scaling.compare(2, scaling.CASES[2]):
        assert planned == pytest.approx(found, rel=0.1), (method, layout, stretch)


def test_shares_fall_with_the_number_of_ranks():
    plans = {p.ranks: p for p in plan("swinv2_pico", [1, 2, 8], crop=96, layouts=["fsdp2"])}
    for kind in ("optimizer", "scores"):
        parts = [getattr(plans[n], kind) for n in (1, 2, 8)]
        assert parts[0] > 1.9 * parts[1] > 7 * parts[2]
    assert plans[8].sent_round < 100_000 < plans[8].sent_after


def test_the_command_prints_a_table_or_json(capsys):
    assert main(["plan", "--backbone", "vit_pico", "--ranks", "1", "2", "--method", "lora", "--crop", "96"]) == 0
    assert "lora on vit_pico, 1 image(s) of 96 x 96 a rank" in capsys.readouterr().out
    assert main(["plan", "--backbone", "vit_pico", "--ranks", "2", "--method", "full", "--crop", "96", "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["layout"], second["layout"]) == ("ddp", "fsdp2") and first["scores"] == 0
    assert first["memory_after"] == first["parameters"] + first["optimizer"] + first["after"]
    assert main(["plan", "--backbone", "vit_pico", "--ranks", "0"]) == 2
    assert "ranks: must be 1 or more, got 0" in capsys.readouterr().err
