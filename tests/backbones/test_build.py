"""Backbones by name, and checkpoints that fit, do not fit, or are broken."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file

from sfa_ext import backbones


def test_pico_gives_four_maps_and_has_about_two_million_weights(pico):
    maps = pico(torch.randn(1, 3, 96, 96))
    assert [tuple(m.shape) for m in maps] == [(1, 32, 24, 24), (1, 64, 12, 12), (1, 128, 6, 6), (1, 256, 3, 3)]
    assert 1.8e6 < backbones.accounted_size(pico)["backbone"] < 2.0e6


def test_a_dynamic_backbone_takes_other_sizes():
    model = backbones.build("swinv2_pico", size=96)
    assert model(torch.randn(1, 3, 128, 160))[0].shape == (1, 32, 32, 40)


def test_unknown_name_lists_the_known_ones():
    known = "swinv2_pico, swinv2_giant, vit_pico.*swinv2_cr_giant"
    with pytest.raises(ValueError, match=f"'swinv2_goliath' is no SwinV2 and no plain ViT.*: {known}"):
        backbones.build("swinv2_goliath")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_checkpoint_comes_back_bit_by_bit(pico, tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": {k.removeprefix("model."): v for k, v in pico.state_dict().items()}}, path)
    else:
        backbones.save_weights(pico, path)
    other = backbones.build("swinv2_pico", size=96, checkpoint=path)
    assert all(torch.equal(a, b) for a, b in zip(pico.state_dict().values(), other.state_dict().values(), strict=True))


def test_a_checkpoint_of_another_backbone_is_refused_whole(pico, tmp_path):
    before = {k: v.clone() for k, v in pico.state_dict().items()}
    tensors = {k.removeprefix("model."): v + 1 for k, v in before.items()}
    name = "layers.3.blocks.0.mlp.fc2.weight"
    save_file(tensors | {name: torch.zeros(3, 5)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=rf"{name}' is \[3, 5\], this backbone needs \[256, 1024\]"):
        backbones.load_weights(pico, tmp_path / "other.safetensors")
    tensors.pop(name)
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=f"no tensor '{name}'; it is for another backbone"):
        backbones.load_weights(pico, tmp_path / "less.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in pico.state_dict().items())


def test_missing_truncated_and_pickled_files_are_refused(pico, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        backbones.load_weights(pico, tmp_path / "none.safetensors")
    whole = tmp_path / "whole.safetensors"
    backbones.save_weights(pico, whole)
    for suffix in (".safetensors", ".pth"):
        part = tmp_path / f"part{suffix}"
        part.write_bytes(whole.read_bytes()[:5000])
        with pytest.raises(ValueError, match=f"part{suffix}: (cannot be read|refused)"):
            backbones.load_weights(pico, part)
    evil = tmp_path / "evil.pth"
    evil.write_bytes(pickle.dumps({"model": Boom()}))
    with pytest.raises(ValueError, match="refused|cannot be read"):
        backbones.load_weights(pico, evil)
    assert not Boom.ran


class Boom:
    ran = False

    def __reduce__(self):
        return _mark, ()


def _mark():
    Boom.ran = True
