"""The ViT family: open blocks compute the same bits, other sizes, checkpoints of other sizes, and the pyramid."""

from __future__ import annotations

import pytest
import torch

from sfa_ext import backbones, tasks
from sfa_ext.tasks.pyramid import SimpleFeaturePyramid


def test_open_blocks_compute_the_same_bits_and_close_without_trace(vit):
    images = torch.randn(2, 3, 96, 96)
    before, classes = vit(images)[0], [type(m) for m in vit.modules()]
    sites = backbones.find_sites(vit)
    assert torch.equal(before, vit(images)[0]) and before.shape == (2, 192, 6, 6)
    assert [s.kind for s in sites] == ["attention", "mlp"] * 4 and {s.width for s in sites} == {192}
    backbones.close_sites(vit)
    assert torch.equal(before, vit(images)[0]) and [type(m) for m in vit.modules()] == classes
    assert not vit.model.patch_embed._forward_pre_hooks


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "vit_base_patch14_reg4_dinov2"])
def test_counts_do_not_depend_on_how_timm_built_the_model(name):
    import timm

    with torch.device("meta"):
        whole, maps = timm.create_model(name), backbones.build(name, size=224)
        if "dinov2" not in name:  # its position embedding follows the size, and it has no classifier
            assert backbones.accounted_size(whole)["with_head"] == sum(p.numel() for p in whole.parameters())
            assert backbones.accounted_size(whole) == backbones.accounted_size(maps)
    assert len(backbones.eligible_weights(maps)) == 48


def test_a_checkpoint_of_another_image_size_has_its_positions_resampled(vit, tmp_path):
    backbones.save_weights(vit, tmp_path / "weights.safetensors")
    larger = backbones.build("vit_pico", size=160, checkpoint=tmp_path / "weights.safetensors")
    assert larger.model.pos_embed.shape == (1, 3 + 100, 192)
    assert torch.equal(larger.model.pos_embed[:, :3], vit.model.pos_embed[:, :3])
    assert torch.equal(larger.model.blocks[3].mlp.fc2.weight, vit.model.blocks[3].mlp.fc2.weight)


def test_a_vit_of_other_blocks_is_refused():
    with pytest.raises(ValueError, match="'swinv2_cr_tiny_224' is built of other blocks than a timm SwinV2"):
        backbones.build("swinv2_cr_tiny_224", size=224)


def test_the_pyramid_gives_four_maps_at_the_strides_of_a_hierarchy():
    maps = SimpleFeaturePyramid(48, 32)(torch.randn(2, 48, 6, 7))
    assert [tuple(m.shape) for m in maps] == [(2, 32, 24, 28), (2, 32, 12, 14), (2, 32, 6, 7), (2, 32, 3, 4)]


def test_a_task_over_one_map_trains_its_pyramid(vit):
    task = tasks.build("pretrain", {"width": 16, "image_classes": 4}, [192], ["floor", "wall"])
    maps = vit(torch.randn(2, 3, 96, 96))
    assert task.predict(maps, (96, 96))["semantic"].shape == (2, 2, 96, 96)
    batch = {"semantic": torch.randint(0, 2, (2, 96, 96)), "depth": torch.rand(2, 96, 96) + 1,
             "label": torch.tensor([0, 3])}  # fmt: skip
    task.loss(maps, batch)[0].backward()
    assert all(p.grad is not None for p in task.pyramid.parameters())
