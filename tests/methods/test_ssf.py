"""SSF: where scales and shifts act, and that they fold into the weights."""

from __future__ import annotations

import copy

import pytest
import torch

import sfa_ext
from sfa_ext import SSF, backbones


def images():
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def test_every_operation_has_its_scale_and_shift(pico):
    names = [n.removesuffix(".scale") for n, _ in sfa_ext.adapt(pico, SSF()).named_parameters() if n.endswith("scale")]
    block = "model.layers.2.blocks.1"
    assert [n for n in names if n.startswith(block)] == [
        f"{block}.{part}" for part in ("attn.qkv", "attn.proj", "norm1", "mlp.fc1", "mlp.fc2", "norm2")
    ]
    outside = [n for n in names if ".blocks." not in n]
    assert outside == ["model.patch_embed.proj", "model.patch_embed.norm"] + [
        f"model.layers.{i}.downsample.norm" for i in (1, 2, 3)
    ]


def test_an_operations_output_is_scaled_and_shifted(backbone):
    at = {op.name: op.module for op in backbones.find_operations(backbone)}
    before, after = {}, {}
    plain = copy.deepcopy(backbone)
    adaptation = sfa_ext.adapt(backbone, SSF())
    pairs = dict(adaptation.named_parameters())
    name = next(n for n in at if n.endswith("patch_embed.proj"))
    x = images()
    before, after = plain.get_submodule(name)(x), backbone.get_submodule(name)(x)
    scale, shift = pairs[f"{name}.scale"], pairs[f"{name}.shift"]
    assert torch.allclose(after, before * scale[:, None, None] + shift[:, None, None], atol=1e-6)
    name = next(n for n in at if n.endswith("fc1"))
    x = torch.randn(2, 5, at[name].in_features)
    before, after = plain.get_submodule(name)(x), backbone.get_submodule(name)(x)
    assert torch.allclose(after, before * pairs[f"{name}.scale"] + pairs[f"{name}.shift"], atol=1e-6)


@pytest.mark.parametrize("bias", [True, False], ids=["qkv_bias", "no_qkv_bias"])
@pytest.mark.parametrize("name", ["swinv2_pico", "vit_pico"])
def test_merged_equals_unmerged_with_large_shifts(name, bias, monkeypatch):
    real, settings = backbones.BACKBONE_CLASSES[name]
    monkeypatch.setitem(backbones.BACKBONE_CLASSES, name, (real, settings | {"qkv_bias": bias}))
    model = backbones.build(name, size=96, dynamic=False).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    start = copy.deepcopy(model.state_dict())
    adaptation = sfa_ext.adapt(model, SSF())
    for n, parameter in adaptation.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if n.endswith("scale") else 0.0, std=0.3)
    adapted = model(images())
    adaptation.merge()
    for a, b in zip(model(images()), adapted, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm()
    # All of it is in the state dict, the shift of k too, for which timm's SwinV2 has a buffer that it does not save.
    twin = copy.deepcopy(model)
    for parameter in (*twin.parameters(), *(b for n, b in twin.named_buffers() if n.endswith("k_bias"))):
        parameter.data.zero_()
    twin.load_state_dict(model.state_dict())
    for a, b in zip(model(images()), twin(images()), strict=True):
        assert torch.equal(a, b)
    adaptation.detach()
    assert list(model.state_dict()) == list(start)
    assert all(torch.equal(t, start[n]) for n, t in model.state_dict().items())


def test_scales_start_around_one_and_shifts_around_zero(pico):
    parts = {"scale": [], "shift": []}
    for name, parameter in sfa_ext.adapt(pico, SSF(), seed=0).named_parameters():
        parts[name.rsplit(".", 1)[1]].append(parameter.detach())
    scale, shift = (torch.cat(parts[p]) for p in ("scale", "shift"))
    assert abs(scale.mean() - 1) < 1e-3 and abs(shift.mean()) < 1e-3
    assert abs(scale.std() - 0.02) < 1e-3 and abs(shift.std() - 0.02) < 1e-3
