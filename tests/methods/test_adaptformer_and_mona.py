"""AdaptFormer and Mona against plain transcriptions of their formulas."""

from __future__ import annotations

import copy

import pytest
import torch
from reference import swinv2_maps
from torch.nn import functional as F

import sfa_ext
from sfa_ext import AdaptFormer, Mona, backbones


def images(width=96):
    return torch.randn(2, 3, 96, width, generator=torch.Generator().manual_seed(0))


def randomise(adaptation):
    for parameter in adaptation.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return dict(adaptation.named_parameters())


def close(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_adaptformer_runs_beside_the_mlp_on_its_input(pico):
    plain = copy.deepcopy(pico.model)
    given = randomise(sfa_ext.adapt(pico, AdaptFormer(dim=16)))

    def beside(name, x, new):
        w = {k: given[f"{name}.mlp_tail.{k}"] for k in ("down.weight", "down.bias", "up.weight", "up.bias")}
        hidden = F.linear(x, w["down.weight"], w["down.bias"]).relu()
        return new + 0.1 * F.linear(hidden, w["up.weight"], w["up.bias"])

    assert len(given) == 4 * 9
    close(pico(images()), swinv2_maps(plain, images(), after_mlp=beside))


def test_adaptformer_is_outside_drop_path_and_drops_ten_percent_inside():
    model = backbones.build("swinv2_pico", size=96, drop_path=0.9999, dynamic=False)
    adaptation = sfa_ext.adapt(model, AdaptFormer(dim=512))
    randomise(adaptation)
    site = backbones.find_sites(model)[5]
    tail = site.block.mlp_tail.train()
    x = torch.randn(64, 3, 3, site.width)
    seen = []
    tail.up.register_forward_hook(lambda _, inputs, __: seen.append((inputs[0] == 0).float().mean()))
    out = tail(x, torch.zeros_like(x), torch.nn.Identity(), lambda y: torch.zeros_like(y))
    assert not torch.equal(out, x)
    kept = F.linear(x, tail.down.weight, tail.down.bias).relu()
    dropped = (seen[0] - (kept == 0).float().mean()) / (kept > 0).float().mean()
    assert abs(dropped - 0.1) < 0.02


def mona(x, given, name):  # [B, H, W, D]
    w = lambda key: given[f"{name}.adapter.{key}"]  # noqa: E731
    y = F.layer_norm(x, x.shape[-1:], w("norm.weight"), w("norm.bias")) * w("norm_scale") + x * w("stream_scale")
    h = F.linear(y, w("down.weight"), w("down.bias")).permute(0, 3, 1, 2)
    convs = [
        F.conv2d(h, w(f"depthwise.{i}.weight"), w(f"depthwise.{i}.bias"), padding=k // 2, groups=h.shape[1])
        for i, k in enumerate((3, 5, 7))
    ]
    h = (convs[0] + convs[1] + convs[2]) / 3.0 + h
    h = h + F.conv2d(h, w("pointwise.weight"), w("pointwise.bias"))
    return x + F.linear(F.gelu(h).permute(0, 2, 3, 1), w("up.weight"), w("up.bias"))


def test_mona_follows_every_residual_sum(pico):
    plain = copy.deepcopy(pico.model)
    given = randomise(sfa_ext.adapt(pico, Mona(dim=8)))
    assert len(given) == 16 * 18
    expected = swinv2_maps(
        plain,
        images(),
        after_attention=lambda name, _, new: mona(new, given, f"{name}.attention_tail"),
        after_mlp=lambda name, _, new: mona(new, given, f"{name}.mlp_tail"),
    )
    close(pico(images()), expected)


@pytest.mark.parametrize("width", [96, 160])
def test_mona_sees_the_patches_of_a_vit_as_a_map(width):
    model = backbones.build("vit_pico", size=96).eval()
    given = randomise(sfa_ext.adapt(model, Mona(dim=8)))
    block, seen = model.model.blocks[1], []
    block.attention_tail.adapter.register_forward_hook(lambda _, inputs, out: seen.append((inputs[0], out)))
    model(images(width))
    x, out = seen[0]
    assert x.shape[1] == 3 + 6 * width // 16
    patches = x[:, 3:].unflatten(1, (6, width // 16))
    expected = mona(patches, given, "model.blocks.1.attention_tail")
    close([out[:, 3:].unflatten(1, (6, width // 16))], [expected])


def test_mona_starts_with_the_published_scales(pico):
    given = dict(sfa_ext.adapt(pico, Mona()).named_parameters())
    first = "model.layers.0.blocks.0.mlp_tail.adapter"
    assert (given[f"{first}.norm_scale"] == 1e-6).all() and (given[f"{first}.stream_scale"] == 1).all()
    assert given[f"{first}.down.weight"].shape == (64, 32) and given[f"{first}.up.weight"].std() > 0
