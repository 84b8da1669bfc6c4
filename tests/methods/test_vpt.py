"""VPT-Deep: prompts reach every window of every block, image tokens get what the published computation gives them."""

from __future__ import annotations

import copy

import pytest
import torch
from reference import vpt_deep_maps
from torch.nn import functional as F

import sfa_ext
from sfa_ext import VPT


def images(dtype=torch.float32):
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)).to(dtype)


def masked(model, monkeypatch):
    """Takes the prompts out of attention: the logits at their keys become minus infinity."""
    pad, attend = F.pad, F.scaled_dot_product_attention

    def pad_with_minus_infinity(x, padding, *rest, **named):
        return pad(x, padding, value=float("-inf")) if padding == (5, 0) else pad(x, padding, *rest, **named)

    def without_prompts(q, k, v, **named):
        mask = torch.zeros(q.shape[-2], k.shape[-2], dtype=q.dtype)
        mask[:, :5] = float("-inf")
        return attend(q, k, v, attn_mask=mask)

    monkeypatch.setattr(F, "pad", pad_with_minus_infinity)
    monkeypatch.setattr(F, "scaled_dot_product_attention", without_prompts)


def test_maps_are_those_of_the_whole_published_computation(pico):
    pico.double()
    plain = copy.deepcopy(pico.model)
    adaptation = sfa_ext.adapt(pico, VPT(tokens=5), seed=0)
    prompts = {n.removesuffix(".attention_tail.tokens"): p for n, p in adaptation.named_parameters()}
    expected = vpt_deep_maps(plain, images(torch.float64), prompts)
    for ours, theirs in zip(pico(images(torch.float64)), expected, strict=True):
        assert (ours - theirs).norm() <= 1e-12 * theirs.norm()
    gradients = [torch.autograd.grad(sum(m.square().mean() for m in maps), adaptation.parameters())
                 for maps in (pico(images(torch.float64)), expected)]  # fmt: skip
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours - theirs).norm() <= 1e-10 * theirs.norm() > 0


def test_prompts_that_attention_cannot_see_change_nothing(backbone, monkeypatch):
    # float64, because a sum over more keys, of which some count nothing, may round in another order.
    backbone.double()
    before = backbone(images(torch.float64))
    sfa_ext.adapt(backbone, VPT(tokens=5), seed=0)
    seen = backbone(images(torch.float64))
    masked(backbone, monkeypatch)
    for a, b, c in zip(before, backbone(images(torch.float64)), seen, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= 1e-14 * a.norm() and (a - c).norm() > 1e-6 * a.norm()


def test_every_token_of_every_window_feels_the_prompts_of_its_block(pico):
    adaptation = sfa_ext.adapt(pico, VPT(tokens=5), seed=0)
    branch = {}
    for stage in pico.model.layers:
        for block in stage.blocks:
            block.attn.register_forward_hook(lambda module, _, out: branch.__setitem__(module, out))
    pico(images())
    before = dict(branch)
    for parameter in adaptation.parameters():
        torch.nn.init.normal_(parameter)
    pico(images())
    assert len(branch) == 9
    assert all(((branch[m] - before[m]).norm(dim=-1) > 0).all() for m in branch)


def test_the_encoder_stays_in_eval_mode_and_gets_its_mode_back(pico):
    pico.train()
    adaptation = sfa_ext.adapt(pico, VPT(tokens=2))
    outer = torch.nn.Sequential(pico).train()
    assert outer.training and not any(m.training for m in pico.model.modules())
    adaptation.detach()
    assert all(m.training for m in pico.model.modules())


@pytest.mark.parametrize("family", ["pico", "vit"])
def test_prompts_start_inside_glorots_bound(request, family):
    model = request.getfixturevalue(family)
    width, patch = (32, 4) if family == "pico" else (192, 16)
    bound = (6 / (3 * patch**2 + width)) ** 0.5
    largest = max(p.abs().max() for p in sfa_ext.adapt(model, VPT()).parameters())
    assert 0.99 * bound < largest <= bound
