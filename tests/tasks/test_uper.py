"""The UPerNet head: it learns classes, sees the whole picture, and takes maps of odd sizes."""

import pytest
import torch
from tiny_scenes import CHANNELS, CLASSES, TinyBackbone, random_maps, shapes

from sfa_ext import tasks


def task(**values):
    torch.manual_seed(0)
    return tasks.build("uper", {"size": "small", "width": 32, **values}, CHANNELS, CLASSES, (1, 2, 3))


def test_learns_the_classes():
    torch.set_num_threads(1)  # so small a model waits for its threads on a busy machine
    head, backbone = task(), TinyBackbone()
    images, semantic = shapes(8, 64, seed=4)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], 5e-3)
    for _ in range(60):
        loss, terms = head.loss(backbone(images), {"semantic": semantic})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert terms["semantic"] == loss and not terms["semantic"].requires_grad
    metric = head.eval().metrics()
    metric.update(head.predict(backbone(images), (64, 64)), {"semantic": semantic})
    assert metric.compute()["miou"] > 0.85


def test_the_paper_size_pools_to_four_grids():
    head = tasks.build("uper", None, CHANNELS, CLASSES)
    assert len(head.pooled) == 4 and head.gathered[0].in_channels == CHANNELS[-1] + 4 * 512
    assert head.fuse[0].in_channels == 4 * 512


def test_pooling_carries_the_far_corner_to_every_place():
    head, maps = task().eval(), random_maps()
    maps = [m.requires_grad_() for m in maps]
    corner = head(maps)["semantic"][0, :, 0, 0].sum()
    grads = torch.autograd.grad(corner, maps)
    assert grads[3][0, :, -1, -1].abs().sum() > 0


def test_prediction_has_the_asked_size_and_sums_to_one():
    maps = [torch.randn(1, c, *size) for c, size in zip(CHANNELS, [(25, 19), (13, 10), (7, 5), (4, 3)], strict=True)]
    found = task().eval().predict(maps, (33, 57))["semantic"]
    assert found.shape == (1, 4, 33, 57)
    torch.testing.assert_close(found.sum(1), torch.ones(1, 33, 57))


def test_nothing_labelled_gives_zero_loss_and_wrong_maps_are_refused():
    head = task()
    loss, _ = head.loss(random_maps(), {"semantic": torch.full((2, 64, 96), 255)})
    loss.backward()
    assert loss.item() == 0 and all(p.grad.isfinite().all() for p in head.parameters())
    with pytest.raises(ValueError, match="maps must be 4 feature maps, got 3"):
        head(random_maps()[:3])
