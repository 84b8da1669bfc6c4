"""Heads made for four maps, on the one map of a plain ViT: what they learn through the simple feature pyramid."""

import pytest
import timm
import torch
from tiny_scenes import CLASSES, shapes
from torch import nn
from torchvision.ops import masks_to_boxes

from sfa_ext import tasks
from sfa_ext.tasks.inference import predict

SMALL = {"uper": {"size": "small", "width": 32}, "maskrcnn": {"size": "small", "width": 16, "box_dim": 64}}


def vit():
    """A plain ViT of two blocks: one map [B, 48, H / 16, W / 16]."""
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64, "dynamic_img_size": True}
    return timm.create_model("vit_tiny_patch16_224", features_only=True, out_indices=[-1], **sizes)


def objects(semantic):
    """Every shape in labels [B, H, W] as an instance."""
    found = [[c for c in labels.unique().tolist() if c] for labels in semantic]
    masks = [torch.stack([labels == c for c in some]) for labels, some in zip(semantic, found, strict=True)]
    boxes = [masks_to_boxes(some) + torch.tensor([0, 0, 1, 1]) for some in masks]
    return {"masks": masks, "boxes": boxes, "labels": [torch.tensor(some) for some in found]}


def fitted(name, steps, rate):
    """Figures of a head on the very images that it was trained on, with its ViT."""
    torch.manual_seed(0)
    backbone = vit()
    head = tasks.build(name, SMALL[name], backbone.feature_info.channels(), CLASSES, (1, 2, 3))
    images, semantic = shapes(4, 64, seed=4)
    batch = {"image": images, "semantic": semantic, **objects(semantic)}
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, rate)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 10, (steps - step) / (0.5 * steps))
        loss, _ = head.loss(backbone(images), batch)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    metric = head.eval().metrics()
    with torch.no_grad():
        metric.update(predict(backbone, head, images), batch)
    return metric.compute()


@pytest.mark.parametrize(
    ("name", "steps", "figure", "least"), [("uper", 40, "miou", 0.8), ("maskrcnn", 50, "mask_ap50", 0.8)]
)
def test_learns_on_a_plain_vit(name, steps, figure, least):
    figures = fitted(name, steps, 3e-3)
    assert figures[figure] > least


@pytest.mark.parametrize("size", [(64, 96), (97, 131), (33, 34)], ids=str)
@pytest.mark.parametrize("name", SMALL)
def test_predicts_at_any_size_on_a_plain_vit(name, size):
    backbone = vit().eval()
    more = {"score_threshold": 0.0} if name == "maskrcnn" else {}
    head = tasks.build(name, SMALL[name] | more, [48], CLASSES, (1, 2, 3)).eval()
    with torch.no_grad():
        found = predict(backbone, head, torch.randn(2, 3, *size))
    if name == "uper":
        assert found["semantic"].shape == (2, 4, *size)
    else:
        assert all(len(m) and m.shape[1:] == size for m in found["masks"])
