"""The light segmentation head: it learns classes within few steps, and ignores what is not labelled."""

import pytest
import torch
from tiny_scenes import CHANNELS, CLASSES, TinyBackbone, random_maps, shapes

from sfa_ext import tasks


def task(**values):
    torch.manual_seed(0)
    return tasks.build("fpn", values, CHANNELS, CLASSES, (1, 2, 3))


def test_learns_the_classes():
    torch.set_num_threads(1)  # so small a model waits for its threads on a busy machine
    head, backbone = task(), TinyBackbone()
    images, semantic = shapes(8, 64, seed=4)
    optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], 5e-3)
    for _ in range(80):
        loss, terms = head.loss(backbone(images), {"semantic": semantic})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert terms["semantic"] == loss and not terms["semantic"].requires_grad
    metric = head.metrics()
    metric.update(head.predict(backbone(images), (64, 64)), {"semantic": semantic})
    figures = metric.compute()
    assert figures["miou"] > 0.85 and figures["miou_objects"] > 0.8


def test_unlabelled_pixels_do_not_matter():
    head, maps = task(), random_maps()
    semantic = torch.randint(0, 4, (2, 64, 96))
    semantic[:, :20] = 255
    scores = torch.nn.functional.interpolate(head(maps)["semantic"], size=(64, 96), mode="bilinear")
    expected = torch.nn.functional.cross_entropy(scores[:, :, 20:], semantic[:, 20:])
    assert head.loss(maps, {"semantic": semantic})[0].item() == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_labelled_gives_zero_loss_and_finite_gradients():
    head = task()
    loss, _ = head.loss(random_maps(), {"semantic": torch.full((2, 64, 96), 255)})
    loss.backward()
    assert loss.item() == 0 and all(p.grad.isfinite().all() for p in head.parameters())


def test_prediction_has_the_asked_size_and_sums_to_one():
    found = task().predict(random_maps(), (33, 57))["semantic"]
    assert found.shape == (2, 4, 33, 57)
    torch.testing.assert_close(found.sum(1), torch.ones(2, 33, 57))
