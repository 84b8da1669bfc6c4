"""Mask R-CNN with its three necks and heads: what it learns, what it is given, and what it gives back."""

import math

import pytest
import torch
from tiny_scenes import CHANNELS, CLASSES, TinyBackbone
from torchvision.ops import box_iou

from sfa_ext import data, tasks
from sfa_ext.tasks.inference import predict
from sfa_ext.tasks.instances import instances_to_image

KINDS = {"fpn": {}, "bifpn": {"neck": "bifpn"}, "cascade": {"neck": "bifpn", "cascade": True}}
QUICK = {"width": 32, "box_dim": 128, "roi_samples": 32}


def task(kind="fpn", **values):
    torch.manual_seed(0)
    tiny = {"width": 16, "box_dim": 32, "roi_samples": 16, "rpn_samples": 16}
    return tasks.build("maskrcnn", {"size": "small", **tiny, **KINDS[kind], **values}, CHANNELS, CLASSES, (1, 2, 3))


def rooms(count, size):
    """A batch of scenes, and the names of their classes."""
    scenes = data.build("scenes", count=count, size=size, cache=None)
    return data.collate([data.eval_transform()(scenes[i]) for i in range(count)]), scenes


def fitted(kind, batch, scenes, steps, rate, **values):
    """Figures on the very images that it was trained on."""
    torch.set_num_threads(1)  # so small a model waits for its threads on a busy machine
    torch.manual_seed(0)
    settings = {"size": "small", **KINDS[kind], **values}
    head = tasks.build("maskrcnn", settings, CHANNELS, scenes.class_names, scenes.object_classes)
    backbone = TinyBackbone()
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 10, (steps - step) / (0.5 * steps))
        loss, terms = head.loss(backbone(batch["image"]), batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    assert loss.item() == pytest.approx(sum(t.item() for t in terms.values()), rel=1e-5)
    metric = head.eval().metrics()
    with torch.no_grad():
        metric.update(predict(backbone, head, batch["image"]), batch)
    return metric.compute()


def test_learns_rooms():
    figures = fitted("fpn", *rooms(8, 64), steps=60, rate=5e-3, **QUICK)
    assert figures["box_ap50"] > 0.7 and figures["mask_ap50"] > 0.6


def test_small_anchors_meet_the_solids_of_rooms():
    batch, scenes = rooms(8, 96)
    small = tasks.build("maskrcnn", {"size": "small"}, CHANNELS, scenes.class_names, scenes.object_classes)
    features, images = small._features(TinyBackbone()(batch["image"]), (96, 96))
    anchors = small.rpn.anchor_generator(images, [*features.values()])[0]
    best = torch.cat([box_iou(boxes.as_subclass(torch.Tensor), anchors).amax(1) for boxes in batch["boxes"]])
    assert (best > 0.7).float().mean() > 0.7 and (best > 0.5).float().mean() > 0.95


def objects(*boxes, labels, size=(64, 96)):
    boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    return {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64), "masks": masks}


def batch_of(*images, size=(64, 96)):
    return {"image": torch.randn(len(images), 3, *size), **{k: [i[k] for i in images] for k in images[0]}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 96), (97, 131), (33, 34)], ids=str)
def test_any_size_trains_and_predicts(kind, size):
    head, images = task(kind, score_threshold=0.0), torch.randn(2, 3, *size)
    one, none = objects((2, 3, 30, 28), labels=[2], size=size), objects(labels=[], size=size)
    batch = {"image": images, **{k: [one[k], none[k]] for k in one}}
    backbone = TinyBackbone()
    loss, terms = head.loss(backbone(images), batch)
    loss.backward()
    assert set(terms) == {"objectness", "proposal", "class", "box", "mask"}
    assert all(math.isfinite(t) for t in terms.values())
    unused = {n for n, p in head.named_parameters() if p.grad is None or not p.grad.isfinite().all()}
    assert not unused
    with torch.no_grad():
        found = predict(backbone, head.eval(), images)
    for boxes, labels, scores, masks in zip(*(found[k] for k in ("boxes", "labels", "scores", "masks")), strict=True):
        assert len(boxes) == len(labels) == len(scores) == len(masks) > 0 and masks.shape[1:] == size
        assert masks.dtype == torch.bool and set(labels.tolist()) <= {1, 2, 3}
        assert boxes.min() >= 0 and boxes[:, 2].max() <= size[1] and boxes[:, 3].max() <= size[0]
        assert (scores.diff() <= 0).all()


def test_a_batch_without_any_object_gives_finite_gradients():
    head = task("cascade")
    batch = batch_of(objects(labels=[]), objects(labels=[]))
    loss, _ = head.loss(TinyBackbone()(batch["image"]), batch)
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


def test_crowds_do_not_train():
    head, backbone = task(), TinyBackbone()
    both = objects((2, 3, 30, 28), (40, 20, 90, 60), labels=[2, 1]) | {"crowd": torch.tensor([False, True])}
    batch = batch_of(both)
    maps = backbone(batch["image"])
    torch.manual_seed(5)
    with_crowd, _ = head.loss(maps, batch)
    one = batch_of(objects((2, 3, 30, 28), labels=[2]))
    torch.manual_seed(5)
    alone, _ = head.loss(maps, one)
    assert with_crowd.item() == alone.item()
    torch.manual_seed(5)
    counted, _ = head.loss(maps, batch | {"crowd": [torch.tensor([False, False])]})
    assert counted.item() != alone.item()


def test_a_label_without_instances_is_named():
    batch = batch_of(objects((2, 3, 30, 28), labels=[0]))
    with pytest.raises(ValueError, match=r"among the classes with instances, \(1, 2, 3\), got 0"):
        task().loss(TinyBackbone()(batch["image"]), batch)


def test_bfloat16_stays_near_float32():
    # All anchors and proposals are sampled: a rounded score must not change which.
    head, backbone = task(rpn_samples=100_000, roi_samples=1000), TinyBackbone()
    batch = batch_of(objects((2, 3, 30, 28), (40, 20, 90, 60), labels=[2, 1]))
    torch.manual_seed(1)
    expected, _ = head.loss(backbone(batch["image"]), batch)
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(1)
        loss, _ = head.loss(backbone(batch["image"]), batch)
        with torch.no_grad():
            found = predict(backbone, head.eval(), batch["image"])
    assert loss.item() == pytest.approx(expected.item(), rel=0.1) and found["boxes"][0].dtype == torch.float32


class Finder(torch.nn.Module):
    """A task that finds one object in the left upper quarter of what it sees, and one in the padding."""

    def predict(self, maps, size):
        boxes = torch.tensor([[0.0, 0.0, 32.0, 24.0], [0.0, 100.0, 9.0, 120.0]])
        return {"boxes": [boxes], "labels": [torch.tensor([1, 2])], "scores": [torch.tensor([0.9, 0.8])],
                "shapes": [torch.ones(2, 28, 28)]}  # fmt: skip


def test_instances_come_back_at_the_images_own_size():
    """An image of 150 x 200 is seen at 48 x 64, padded to 64 x 64."""
    found = predict(torch.nn.Identity(), Finder(), torch.zeros(1, 3, 150, 200), crop=48)
    assert found["boxes"][0].tolist() == [[0, 0, 100, 75]] and found["labels"][0].tolist() == [1]
    assert found["masks"][0].shape == (1, 150, 200) and "shapes" not in found
    mask = found["masks"][0][0]
    assert mask[:75, :100].all() and not mask[75:].any() and not mask[:, 100:].any()


def test_masks_are_pasted_between_the_borders_of_their_boxes():
    """Pixels belong to a mask by their centre, in boxes of any fraction of a pixel, and in one without any centre."""
    boxes = torch.tensor([[2.0, 1.0, 6.0, 4.0], [2.4, 1.6, 5.6, 3.4], [1.6, 1.6, 2.4, 2.4], [4.0, 2.0, 8.0, 6.0]])
    shapes = torch.ones(4, 28, 28)
    shapes[3, :, :14] = 0  # the left half is empty
    found = {"boxes": [boxes], "labels": [torch.ones(4)], "scores": [torch.ones(4)], "shapes": [shapes]}
    masks = instances_to_image(found, (8, 10), (8, 10))["masks"][0]
    wanted = torch.zeros(4, 8, 10, dtype=torch.bool)
    wanted[0, 1:4, 2:6] = wanted[1, 2:3, 2:6] = wanted[3, 2:6, 6:8] = True
    assert torch.equal(masks, wanted)


class Spy(torch.nn.Module):
    """Stands for all of the mask branch: keeps the boxes it is asked about, and answers with logits of 0."""

    def forward(self, features, boxes, sizes):
        self.boxes = boxes
        self.logits = torch.zeros(sum(map(len, boxes)), 9, 28, 28, requires_grad=True)
        return self.logits


def test_true_masks_survive_the_way_through_their_boxes():
    """What the mask head is taught, pasted as what it finds is pasted, is the truth: nothing is lost but in learning.

    Of logits 0 the loss's gradient tells what is taught: it is (1/2 - truth) / n.
    """
    batch, scenes = rooms(4, 96)
    head = tasks.build("maskrcnn", {"size": "small"}, CHANNELS, scenes.class_names, scenes.object_classes)
    targets = [head._target(batch, i, torch.device("cpu")) for i in range(4)]
    head.roi.mask_pool, head.roi.mask_head, head.roi.mask_predictor = Spy(), torch.nn.Identity(), torch.nn.Identity()
    features, images = head._features(TinyBackbone()(batch["image"]), (96, 96))
    proposals = [t["boxes"] + torch.tensor([0.6, -0.4, 0.3, 0.7]) for t in targets]
    head.roi.losses(features, proposals, images.image_sizes, targets)["mask"].backward()
    boxes, logits = head.roi.mask_pool.boxes, head.roi.mask_pool.logits
    taught = (0.5 - logits.grad * len(logits) * 28**2).split([len(b) for b in boxes])
    ious = []
    for found, shapes, target in zip(boxes, taught, targets, strict=True):
        match = box_iou(found, target["boxes"]).argmax(1)
        own = shapes[torch.arange(len(match)), target["labels"][match]]
        fields = {"boxes": found, "labels": match, "scores": match, "shapes": own}
        masks = instances_to_image({n: [v] for n, v in fields.items()}, (96, 96), (96, 96))["masks"][0]
        truth = target["masks"][match].bool()
        ious += ((masks & truth).flatten(1).sum(1) / (masks | truth).flatten(1).sum(1)).tolist()
    assert len(ious) > 20 and sum(ious) / len(ious) > 0.97 and min(ious) > 0.8
