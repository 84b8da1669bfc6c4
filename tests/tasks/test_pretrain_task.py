"""The pretraining task: it learns classes, depth and image labels, and ignores what is not labelled."""

import math

import pytest
import torch
from tiny_scenes import CHANNELS, CLASSES, TinyBackbone, random_maps, shapes

from sfa_ext import tasks


def task(**values):
    torch.manual_seed(0)
    return tasks.build("pretrain", {"image_classes": 2, **values}, CHANNELS, CLASSES, (1, 2, 3))


def batch_of(count=8):
    """Images whose depth follows from the class, and whose label says whether the bar lies in the lower half."""
    images, semantic = shapes(count, 64, seed=4)
    depth = torch.tensor([4.0, 1.0, 2.0, 8.0])[semantic]
    label = (semantic[:, 32:] == 3).any(2).any(1).long()
    return {"image": images, "semantic": semantic, "depth": depth, "label": label}


def test_learns_all_three():
    torch.set_num_threads(1)  # so small a model waits for its threads on a busy machine
    head, batch = task(), batch_of()
    backbone = TinyBackbone()
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, 5e-3)
    for _ in range(100):
        loss, _ = head.loss(backbone(batch["image"]), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    metric = head.metrics()
    metric.update(head.predict(backbone(batch["image"]), (64, 64)), batch)
    figures = metric.compute()
    assert figures["miou"] > 0.85 and figures["miou_objects"] > 0.8
    assert figures["depth_rmse"] < 1.2 and figures["accuracy"] == 1.0


def test_unlabelled_pixels_do_not_matter():
    head, maps = task(), random_maps()
    semantic = torch.randint(0, 4, (2, 64, 96))
    depth = torch.rand(2, 64, 96) + 0.5
    semantic[:, :20], depth[:, :20] = 255, 0
    batch = {"semantic": semantic, "depth": depth, "label": torch.tensor([1, -1])}
    loss, terms = head.loss(maps, batch)
    cut = {"semantic": semantic.clone(), "depth": depth.clone(), "label": torch.tensor([1, -7])}
    cut["depth"][:, :20] = math.nan
    assert torch.equal(head.loss(maps, cut)[0], loss)
    out = head(maps)
    scores = torch.nn.functional.interpolate(out["semantic"], size=(64, 96), mode="bilinear", align_corners=False)
    expected = torch.nn.functional.cross_entropy(scores[:, :, 20:], semantic[:, 20:])
    assert terms["semantic"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_labelled_gives_zero_loss_and_finite_gradients():
    head = task()
    batch = {
        "semantic": torch.full((2, 64, 96), 255),
        "depth": torch.zeros(2, 64, 96),
        "label": torch.tensor([-1, -1]),
    }
    loss, _ = head.loss(random_maps(), batch)
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_parts_that_are_not_asked_for_are_absent():
    head = task(image_classes=0, depth_weight=0.0)
    assert set(head.predict(random_maps(), (64, 96))) == {"semantic"}
    _, terms = head.loss(random_maps(), {"semantic": torch.zeros(2, 64, 96, dtype=torch.int64)})
    assert set(terms) == {"semantic"}


def test_prediction_has_the_asked_size_and_sums_to_one():
    found = task().predict(random_maps(), (33, 57))
    assert found["semantic"].shape == (2, 4, 33, 57) and found["depth"].shape == (2, 33, 57)
    torch.testing.assert_close(found["semantic"].sum(1), torch.ones(2, 33, 57))
    assert (found["depth"] > 0).all()


def test_three_maps_are_refused():
    with pytest.raises(ValueError, match="maps must be 4 feature maps, got 3"):
        task()(random_maps()[:3])
