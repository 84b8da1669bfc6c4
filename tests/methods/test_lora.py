"""LoRA against loralib and peft with the same weights, and its merge."""

from __future__ import annotations

import copy

import loralib
import pytest
import torch

import sfa_ext
from sfa_ext import LoRA
from sfa_ext.methods.lora import LowRankUpdate


def images():
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def randomise(adaptation):
    """B starts at zero, where half of the gradients are zero too."""
    for parameter in adaptation.parameters():
        torch.nn.init.normal_(parameter, std=0.05)


def close(ours, theirs):
    assert theirs.norm() > 0 and (ours - theirs).norm() <= 1e-6 * theirs.norm()


@pytest.mark.parametrize("targets", [("q", "v"), ("q", "k", "v"), ("k",)], ids="".join)
def test_outputs_and_gradients_are_those_of_loralib(targets):
    enabled = [t in targets for t in ("q", "k", "v")]
    theirs = loralib.MergedLinear(24, 72, r=4, lora_alpha=8, enable_lora=enabled, merge_weights=False)
    plain = torch.nn.Linear(24, 72)
    plain.load_state_dict({"weight": theirs.weight, "bias": theirs.bias})
    torch.nn.init.normal_(theirs.lora_B)
    rows = [(t, 24 * i, 24 * i + 24) for i, t in enumerate("qkv") if t in targets]
    ours = LowRankUpdate(24, rows, rank=4, scale=8 / 4, dropout=0.0)
    with torch.no_grad():
        for i, (target, *_) in enumerate(rows):
            ours.parts[target].down.copy_(theirs.lora_A[4 * i : 4 * i + 4])
            ours.parts[target].up.copy_(theirs.lora_B[24 * i : 24 * i + 24])
    x = torch.randn(3, 10, 24)
    a, b = ours(x, plain(x)), theirs(x)
    close(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    for i, (target, *_) in enumerate(rows):
        close(ours.parts[target].down.grad, theirs.lora_A.grad[4 * i : 4 * i + 4])
        close(ours.parts[target].up.grad, theirs.lora_B.grad[24 * i : 24 * i + 24])
    weight, _ = ours.folded(plain.weight.detach(), plain.bias.detach())
    theirs.merge_weights = True
    theirs.eval()
    close(weight, theirs.weight)


def test_a_whole_swinv2_gives_what_peft_gives(pico):
    import peft

    theirs = copy.deepcopy(pico)
    for module in theirs.modules():
        if hasattr(module, "qkv_bias_separate"):
            module.qkv_bias_separate = True  # else timm reads qkv.weight past peft's wrapper, and nothing is trained
    names = ["qkv", "proj", "fc1", "fc2"]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=r".*blocks.*\.(qkv|proj|fc1|fc2)")
    theirs = peft.inject_adapter_in_model(config, theirs).eval()
    adaptation = sfa_ext.adapt(pico, LoRA(rank=4, alpha=8, targets=tuple(names)))
    randomise(adaptation)
    given = dict(theirs.named_parameters())
    pairs = []
    for name, parameter in adaptation.named_parameters():
        place, _, target, side = name.rsplit(".", 3)
        assert target in names
        twin = given[f"{place}.lora_{'A' if side == 'down' else 'B'}.default.weight"]
        twin.data.copy_(parameter.detach())
        pairs.append((parameter, twin))
    assert len(pairs) == 2 * 4 * 9
    maps = pico(images()), theirs(images())
    for ours, others in zip(*maps, strict=True):
        close(ours, others)
    for out in maps:
        sum(m.square().mean() for m in out).backward()
    for ours, others in pairs:
        close(ours.grad, others.grad)


def test_the_update_reaches_q_and_v_of_swinv2_and_leaves_k_alone(pico):
    adaptation = sfa_ext.adapt(pico, LoRA(rank=2))
    block = pico.model.layers[1].blocks[1]
    x, before = torch.randn(1, 36, 64), [t.clone() for t in block.attn._heads(torch.randn(1, 36, 64))]
    before = [t.clone() for t in block.attn._heads(x)]
    randomise(adaptation)
    moved = [not torch.equal(a, b) for a, b in zip(before, block.attn._heads(x), strict=True)]
    assert moved == [True, False, True]


def test_the_rank_stays_within_small_weights(pico):
    adaptation = sfa_ext.adapt(pico, LoRA(rank=100))
    ranks = {n: p.shape[0] for n, p in adaptation.named_parameters() if n.endswith("down")}
    assert ranks["model.layers.0.blocks.0.attn.qkv.parts.q.down"] == 32
    assert ranks["model.layers.3.blocks.0.attn.qkv.parts.q.down"] == 100
