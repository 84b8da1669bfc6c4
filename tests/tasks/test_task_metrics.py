"""SegmentationMetric and the pretraining metric against counting by hand."""

import math

import numpy as np
import pytest
import torch
from tiny_scenes import CHANNELS

from sfa_ext import tasks
from sfa_ext.tasks.metrics import IGNORE, SegmentationMetric

NAMES = ("a", "b", "c", "d", "e")


def brute_force(labels, guesses, n):
    """IoU of each class from NumPy masks; NaN where a class has no union."""
    labels, guesses = labels.numpy(), guesses.numpy()
    valid = labels != IGNORE
    with np.errstate(invalid="ignore"):
        return np.array(
            [
                np.float64(((labels == c) & (guesses == c) & valid).sum())
                / (((labels == c) | (guesses == c)) & valid).sum()
                for c in range(n)
            ]
        )


def test_iou_equals_counting_over_batches():
    draw = torch.Generator().manual_seed(1)
    scores = torch.randn(6, 5, 17, 23, generator=draw)
    scores[:, 4] = -9  # never predicted, and never labelled: absent
    labels = torch.randint(0, 4, (6, 17, 23), generator=draw)
    labels[torch.rand(labels.shape, generator=draw) < 0.3] = IGNORE
    metric = SegmentationMetric(NAMES, object_classes=(1, 2, 4))
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        metric.update({"semantic": scores[part]}, {"semantic": labels[part]})
    figures, truth = metric.compute(), brute_force(labels, scores.argmax(1), 5)
    assert figures["miou"] == pytest.approx(np.nanmean(truth), abs=1e-12)
    assert figures["miou_objects"] == pytest.approx(np.nanmean(truth[[1, 2, 4]]), abs=1e-12)
    assert figures["iou/c"] == pytest.approx(truth[2], abs=1e-12)
    assert "iou/e" not in figures
    valid = labels != IGNORE
    assert figures["pixel_accuracy"] == pytest.approx((scores.argmax(1) == labels)[valid].double().mean().item())


def test_iou_equals_torchmetrics():
    torchmetrics = pytest.importorskip("torchmetrics.classification")
    draw = torch.Generator().manual_seed(2)
    scores, labels = torch.randn(2, 5, 9, 9, generator=draw), torch.randint(0, 5, (2, 9, 9), generator=draw)
    labels[0, :3] = IGNORE
    metric = SegmentationMetric(NAMES)
    metric.update({"semantic": scores}, {"semantic": labels})
    oracle = torchmetrics.MulticlassJaccardIndex(5, ignore_index=IGNORE)(scores.argmax(1), labels)
    assert metric.compute()["miou"] == pytest.approx(oracle.item(), abs=1e-6)


def test_bad_input_is_named():
    metric = SegmentationMetric(NAMES)
    with pytest.raises(ValueError, match="no labelled pixel"):
        metric.compute()
    scores = {"semantic": torch.zeros(1, 5, 4, 4)}
    with pytest.raises(ValueError, match="differ in size"):
        metric.update(scores, {"semantic": torch.zeros(1, 8, 8, dtype=torch.int64)})
    with pytest.raises(ValueError, match=r"0\.\.4 or 255, got 0\.\.7"):
        metric.update(scores, {"semantic": torch.tensor([[[7, 0, 0, 0]] * 4])})
    with pytest.raises(ValueError, match=r"object_classes .* got \[5\]"):
        SegmentationMetric(NAMES, (5,))


def test_pretraining_figures():
    metric = tasks.build("pretrain", {"image_classes": 3}, CHANNELS, NAMES).metrics()
    semantic = torch.zeros(2, 4, 4, dtype=torch.int64)
    depth = torch.full((2, 4, 4), 2.0)
    depth[1] = 0  # not measured
    prediction = {
        "semantic": torch.zeros(2, 5, 4, 4),
        "depth": torch.full((2, 4, 4), 2.5),
        "label": torch.tensor([[9.0, 0, 0], [0, 9.0, 0]]),
    }
    metric.update(prediction, {"semantic": semantic, "depth": depth, "label": torch.tensor([0, 2])})
    depth = torch.full((2, 4, 4), 4.0)
    metric.update(prediction, {"semantic": semantic, "depth": depth, "label": torch.tensor([-1, 1])})
    figures = metric.compute()
    assert figures["depth_rmse"] == pytest.approx(math.sqrt((16 * 0.5**2 + 32 * 1.5**2) / 48))
    assert figures["accuracy"] == pytest.approx(2 / 3)
