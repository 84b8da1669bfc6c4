"""Sites of a backbone: names, counts, and that opening and closing a model leaves it as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sfa_ext import backbones
from sfa_ext.backbones.sites import close_sites


@pytest.mark.parametrize(
    ("name", "backbone", "with_head", "widths"),
    [
        ("swinv2_base_window8_256", 86_893_816, 87_918_816, 12_032),
        ("swinv2_large_window12_192", 195_202_932, 196_739_932, 18_048),
    ],
)
def test_counts_are_those_of_the_paper(name, backbone, with_head, widths):
    with torch.device("meta"):
        model = backbones.build(name)
    assert backbones.accounted_size(model) == {"backbone": backbone, "with_head": with_head}
    sites = backbones.find_sites(model)
    assert sum(s.width for s in sites if s.kind == "attention") == widths
    assert [s.kind for s in sites[:2]] == ["attention", "mlp"]


def test_counts_do_not_depend_on_how_timm_built_the_model():
    import timm

    with torch.device("meta"):
        whole = timm.create_model("swinv2_tiny_window8_256")
        maps = backbones.build("swinv2_tiny_window8_256")
    assert backbones.accounted_size(whole) == backbones.accounted_size(maps)
    assert backbones.accounted_size(whole)["with_head"] == sum(p.numel() for p in whole.parameters())


def test_open_blocks_compute_the_same_bits_and_close_without_trace(pico):
    images = torch.randn(2, 3, 96, 96)
    names, before = list(pico.state_dict()), pico(images)
    backbones.find_sites(pico)
    assert all(torch.equal(a, b) for a, b in zip(before, pico(images), strict=True))
    assert list(pico.state_dict()) == names
    close_sites(pico)
    assert all(torch.equal(a, b) for a, b in zip(before, pico(images), strict=True))
    assert not [m for m in pico.modules() if type(m).__name__ in ("OpenBlock", "OpenAttention", "ResidualTail")]


def test_a_model_without_known_blocks_is_refused():
    with pytest.raises(ValueError, match="Sequential holds no transformer block of a known family"):
        backbones.find_sites(nn.Sequential(nn.Linear(2, 2)))


def test_targets_pick_weights_by_pattern(pico):
    assert len(backbones.eligible_weights(pico)) == 36
    only = backbones.eligible_weights(pico, ["mlp.*.weight"])
    assert len(only) == 18 and all(".mlp.fc" in name for name in only)
    with pytest.raises(ValueError, match=r"\['attn.nope'\] match no weight"):
        backbones.eligible_weights(pico, ["attn.nope", "mlp.fc1.weight"])
