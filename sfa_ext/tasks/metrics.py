"""Metrics that grow by batches on the device of the predictions and are summed over ranks when computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sfa_ext import ranks

from .figures import Figure

IGNORE = 255
"""Label of a pixel that neither trains nor counts."""

SEGMENTATION_FIGURES = (Figure("miou", "mIoU"), Figure("miou_objects", "mIoU of objects"))
"""What tables show of SegmentationMetric."""


class SegmentationMetric:
    """Intersection over union from one confusion matrix, kept on the device of the predictions.

    A class is present when it was predicted or labelled at least once (union above zero); the mean runs over the
    present classes, as in torchmetrics' macro MulticlassJaccardIndex.

    Args:
        class_names: names in the order of the label values.
        object_classes: label values that make up "mIoU over objects"; empty leaves that figure out.
    """

    def __init__(self, class_names: Sequence[str], object_classes: Sequence[int] = ()) -> None:
        if len(set(class_names)) != len(class_names):
            raise ValueError(f"class_names must be distinct, got {tuple(class_names)}")
        outside = [c for c in object_classes if not 0 <= c < len(class_names)]
        if outside:
            raise ValueError(f"object_classes must lie in 0..{len(class_names) - 1}, got {outside}")
        self.class_names = tuple(class_names)
        self.object_classes = tuple(object_classes)
        self.confusion: Tensor | None = None  # int64 [label, prediction]

    def update(self, prediction: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> None:
        """Counts one batch.

        Args:
            prediction: "semantic" scores [B, C, H, W] (any monotone scale).
            batch: "semantic" labels [B, H, W], integers, 255 = ignore.

        Raises:
            ValueError: sizes differ, or a label is neither a class nor 255.
        """
        scores, labels = prediction["semantic"], batch["semantic"]
        n = len(self.class_names)
        if scores.shape[1] != n:
            raise ValueError(f"prediction['semantic'] must have {n} channels, got shape {tuple(scores.shape)}")
        if scores.shape[0] != labels.shape[0] or scores.shape[2:] != labels.shape[1:]:
            raise ValueError(
                f"batch['semantic'] {tuple(labels.shape)} and prediction['semantic'] {tuple(scores.shape)} differ in "
                "size; ask predict() for the size of the labels"
            )
        labels = labels.to(scores.device, torch.int64)
        counted = labels != IGNORE
        truth, guess = labels[counted], scores.argmax(1)[counted]
        if truth.numel() and not 0 <= int(truth.min()) <= int(truth.max()) < n:
            raise ValueError(
                f"batch['semantic'] must hold 0..{n - 1} or {IGNORE}, got {int(truth.min())}..{int(truth.max())}"
            )
        counts = torch.bincount(truth * n + guess, minlength=n * n).view(n, n)
        self.confusion = counts if self.confusion is None else self.confusion + counts

    def compute(self) -> dict[str, float]:
        """Fractions in 0..1: "miou", "miou_objects" (with object classes), "pixel_accuracy", "iou/NAME" of each
        present class.

        Raises:
            ValueError: no labelled pixel was counted.
        """
        n = len(self.class_names)
        own = torch.zeros(n, n, dtype=torch.int64) if self.confusion is None else self.confusion.cpu()
        if not int((confusion := ranks.sum_over(own)).sum()):
            raise ValueError("no labelled pixel was counted: check that the labels are not all 255")
        confusion = confusion.double()
        hit = confusion.diagonal()
        union = confusion.sum(0) + confusion.sum(1) - hit
        present = [c for c in range(len(self.class_names)) if union[c] > 0]
        iou = {c: float(hit[c] / union[c]) for c in present}
        figures = {"miou": sum(iou.values()) / len(iou), "pixel_accuracy": float(hit.sum() / confusion.sum())}
        objects = [iou[c] for c in self.object_classes if c in iou]
        if objects:
            figures["miou_objects"] = sum(objects) / len(objects)
        return figures | {f"iou/{self.class_names[c]}": value for c, value in iou.items()}


class RunningMean:
    """Mean of many values in float64, summed over ranks when read."""

    def __init__(self) -> None:
        self.total: Tensor | None = None  # float64 [sum, count]

    def add(self, values: Tensor) -> None:
        """Adds every entry of `values`, a tensor of any shape."""
        total = torch.stack([values.double().sum(), values.new_tensor(values.numel(), dtype=torch.float64)])
        self.total = total if self.total is None else self.total + total

    def value(self) -> float | None:
        """The mean; None when nothing was added on any rank."""
        own = torch.zeros(2, dtype=torch.float64) if self.total is None else self.total.cpu()
        total, count = ranks.sum_over(own).tolist()
        return total / count if count else None
