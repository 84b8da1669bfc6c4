"""Accelerated blocks: timm's outputs and gradients, whatever method acts in them, and back bit by bit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import sfa_ext
from sfa_ext import backbones, deltas
from sfa_ext.backbones import products
from sfa_ext.backbones.swinv2 import FastAttention
from sfa_ext.methods import METHODS, resolve


def distance(ours, reference) -> float:
    return max(
        float((a.detach() - b.detach()).norm() / b.detach().norm()) for a, b in zip(ours, reference, strict=True)
    )


def gradients(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    sum(m.sin().mean() for m in model(images)).backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def test_outputs_are_timms_and_decelerate_brings_every_bit_back(pico):
    images = torch.randn(2, 3, 96, 96)
    before, names, kinds = pico(images), list(pico.state_dict()), [type(m) for m in pico.modules()]
    weights = [p.clone() for p in pico.parameters()]
    assert backbones.accelerate(backbones.accelerate(pico)) is pico
    fast = pico(images)
    assert distance(fast, before) < 1e-6 and not all(torch.equal(a, b) for a, b in zip(fast, before, strict=True))
    assert list(pico.state_dict()) == names
    assert all(torch.equal(a, b) for a, b in zip(pico(images), copy.deepcopy(pico)(images), strict=True))
    backbones.decelerate(pico)
    assert all(torch.equal(a, b) for a, b in zip(pico(images), before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(pico.parameters(), weights, strict=True))
    assert [type(m) for m in pico.modules()] == kinds and not any(hasattr(m, "kept") for m in pico.modules())


@pytest.mark.parametrize("size", [(96, 96), (128, 160), (100, 68), (32, 32)], ids=str)
def test_images_of_any_size(size):
    model = backbones.build("swinv2_pico", size=96, pretrained=True).eval()
    images = torch.randn(1, 3, *size)
    before = model(images)
    assert distance(backbones.accelerate(model)(images), before) < 1e-5


@pytest.mark.parametrize("late", [False, True], ids=["first", "then"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_computes_and_learns_the_same(name, late, pico):
    settings = {"interval": 0} if name == "sfa" else {}
    images = torch.randn(2, 3, 96, 96)
    other = copy.deepcopy(pico)
    slow = sfa_ext.adapt(other, resolve(name, other, settings), seed=1)
    if not late:
        backbones.accelerate(pico)
    quick = sfa_ext.adapt(pico, resolve(name, pico, settings), seed=1)
    if late:
        backbones.accelerate(pico)
    with torch.no_grad():
        for (_, a), (_, b) in zip(slow.named_parameters(), quick.named_parameters(), strict=True):
            a.copy_(b.add_(0.02 * torch.randn_like(b)))
    assert distance(pico(images), other(images)) < 1e-5
    if name != "frozen":
        expected = gradients(other, images)
        found = gradients(pico, images)
        assert found.keys() == expected.keys()
        whole = distance([torch.cat([g.flatten() for g in found.values()])],
                         [torch.cat([g.flatten() for g in expected.values()])])  # fmt: skip
        assert whole < 1e-4
    slow.detach()
    quick.detach()
    assert distance(pico(images), other(images)) < 1e-5
    assert isinstance(next(m for m in pico.modules() if hasattr(m, "cpb_mlp")), FastAttention)


def _through_data(weight):
    weight.data.mul_(1.5)


def _by_optimizer(weight):
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight], lr=0.1, fused=True).step()


def _by_swap(weight):
    torch.ops.sfa.swap_values_(weight.detach(), torch.tensor([0, 3]), torch.tensor([2.0, -1.0]))


def _by_sparse_step(weight):
    index = torch.tensor([1, 2])
    state = [[torch.zeros(2)] for _ in range(2)]
    torch.ops.sfa.sparse_adamw_([weight.detach()], [torch.ones(2)], [index], [torch.zeros(2, dtype=torch.int16)],
                                *state, [], torch.zeros(1, dtype=torch.int64), 0.1, 0.9, 0.999, 1e-8, 0.0)  # fmt: skip


def _by_storage(weight):
    weight.data = weight.data + 1


CHANGES = (_through_data, _by_optimizer, _by_swap, _by_sparse_step, _by_storage)


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__.strip("_"))
@pytest.mark.parametrize("part", ["cpb_mlp.0.weight", "cpb_mlp.2.weight", "logit_scale"])
def test_a_change_of_what_the_bias_is_made_of_is_seen(part, change, pico):
    """Whoever makes it, in place and past autograd: selected weights are trained so, and a bank swaps tasks so."""
    images = torch.randn(1, 3, 96, 96)
    backbones.accelerate(pico).requires_grad_(False)
    attention = next(m for m in pico.modules() if isinstance(m, FastAttention))
    weight = attention.get_parameter(part)
    if weight.numel() < 4:
        attention = [m for m in pico.modules() if isinstance(m, FastAttention)][-1]
        weight = attention.get_parameter(part)
    before = pico(images)
    kept = attention.kept
    assert all(torch.equal(a, b) for a, b in zip(pico(images), before, strict=True)) and attention.kept is kept
    with torch.no_grad():
        change(weight)
    after = pico(images)
    assert attention.kept is not kept and not all(torch.equal(a, b) for a, b in zip(after, before, strict=True))
    fresh = attention._compute_logits(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(attention.kept.logits, fresh, strict=True))
    assert distance(after, backbones.decelerate(pico)(images)) < 1e-6


def test_the_bias_is_trained_where_a_method_trains_it(pico):
    images = torch.randn(1, 3, 96, 96)
    expected = gradients(pico, images)
    found = gradients(backbones.accelerate(pico), images)
    parts = [n for n in expected if "cpb_mlp" in n or "logit_scale" in n]
    assert len(parts) == 36
    assert all(distance([found[n]], [expected[n]]) < 1e-3 for n in parts if expected[n].norm() > 1e-6)
    selected = sfa_ext.SFA(rho=0.0, budget=0.01, interval=0, targets=("attn.cpb_mlp.*.weight",))
    adaptation = sfa_ext.adapt(pico, selected)
    optimizer = adaptation.optimizer(lr=0.1, steps=3)
    before = pico(images)
    for _ in range(2):
        sum(m.sin().mean() for m in pico(images)).backward()
        optimizer.step()
        with torch.no_grad():
            assert distance(pico(images), before) > 1e-5
            before = pico(images)
            slow = backbones.decelerate(copy.deepcopy(pico))(images)
            assert distance(before, slow) < 1e-5


def test_a_bank_of_tasks_swaps_in_an_accelerated_backbone(pico):
    images, tasks = torch.randn(1, 3, 96, 96), []
    for name in ("full", "sfa"):
        settings = {"interval": 0, "targets": ["attn.cpb_mlp.*.weight", "mlp.fc1.weight"], "budget": 0.05}
        twin = copy.deepcopy(pico)
        adaptation = sfa_ext.adapt(twin, resolve(name, twin, settings if name == "sfa" else {}), seed=0)
        optimizer = adaptation.optimizer(lr=0.05, steps=2)
        sum(m.sin().mean() for m in twin(images)).backward()
        optimizer.step()
        tasks.append(deltas.collect(adaptation))
    slow, fast = (deltas.TaskBank(model) for model in (copy.deepcopy(pico), backbones.accelerate(pico)))
    for bank in (slow, fast):
        bank.add(tasks[0], "full")
        bank.add(tasks[1], "sfa")
    outputs = {}
    with torch.no_grad():
        for name in ("full", "sfa", "full", None, "sfa"):
            for bank in (slow, fast):
                bank.deactivate() if name is None else bank.activate(name)
            found = fast.backbone(images)
            assert distance(found, slow.backbone(images)) < 1e-5
            assert all(torch.equal(a, b) for a, b in zip(found, outputs.setdefault(name, found), strict=True))
    assert distance(outputs["full"], outputs[None]) > 1e-3


def test_autocast_inference_mode_and_half_weights(pico):
    images = torch.randn(1, 3, 96, 96)
    exact = pico(images)
    with torch.autocast("cpu", torch.bfloat16):
        eager = pico(images)
        backbones.accelerate(pico)
        ours = pico(images)
    assert [m.dtype for m in ours] == [m.dtype for m in eager]
    assert distance([m.float() for m in ours], exact) < 1.2 * distance([m.float() for m in eager], exact)
    with torch.inference_mode():
        pico(images)
    assert gradients(pico.requires_grad_(True), images)
    half = copy.deepcopy(pico).bfloat16()
    assert distance([m.float() for m in half(images.bfloat16())], exact) < 0.1


@pytest.mark.parametrize("method", [None, "sfa-s", "lora"])
def test_blocks_compile_whole(method, pico):
    backbones.accelerate(pico)
    if method:
        sfa_ext.adapt(pico, method, seed=0)
    stage = pico.model.layers[0].blocks[1]  # its windows are shifted
    x = torch.randn(1, 24, 24, 32, requires_grad=True)
    before = stage(x)
    compiled = torch.compile(stage, fullgraph=True, backend="aot_eager")(x)
    assert distance([compiled], [before]) < 1e-6
    compiled.sum().backward()
    assert x.grad.isfinite().all()


def test_a_vit_has_only_its_mlps_changed_and_a_model_without_blocks_is_refused(vit):
    images = torch.randn(1, 3, 96, 96)
    before, kinds = vit(images), [type(m) for m in vit.modules()]
    assert distance(backbones.accelerate(vit)(images), before) < 1e-6
    assert {type(m) for m in vit.modules()} - set(kinds) == {products.FastMlp}
    assert torch.equal(backbones.decelerate(vit)(images)[0], before[0]) and [type(m) for m in vit.modules()] == kinds
    with pytest.raises(ValueError, match="Sequential holds no transformer block of a known family"):
        backbones.accelerate(nn.Sequential(nn.Linear(2, 2)))
