"""Semantic segmentation with Mask2Former: loss, inference and mIoU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .mask2former import Mask2FormerHead, Mask2FormerSettings
from .mask_loss import MaskClassificationLoss
from .metrics import SEGMENTATION_FIGURES, SegmentationMetric

_CHUNK = 2**24  # pixels of upsampled mask logits held at once in inference: 64 MiB of float32


class SemanticSegmentation(nn.Module):
    """Mask2Former over four maps, trained by 2 class + 5 mask + 5 dice summed over all decoder layers.

    Args:
        settings: see Mask2FormerSettings.
        channels: channels of the four maps (strides 4, 8, 16, 32).
        class_names: names of the classes in the order of the label values.
        object_classes: label values that count as objects in "miou_objects".

    batch: "semantic" int64 [B, H, W], 255 = ignore.
    """

    figures = SEGMENTATION_FIGURES
    needs_instances = False

    def __init__(
        self,
        settings: Mask2FormerSettings,
        channels: Sequence[int],
        class_names: Sequence[str],
        object_classes: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.settings = settings
        self.class_names, self.object_classes = tuple(class_names), tuple(object_classes)
        self.head = Mask2FormerHead(settings, channels, len(self.class_names))
        self.criterion = MaskClassificationLoss(
            len(self.class_names),
            points=settings.points,
            oversample=settings.oversample,
            importance=settings.importance,
            no_object_weight=settings.no_object_weight,
            weights=(settings.class_weight, settings.mask_weight, settings.dice_weight),
        )

    def loss(self, maps: Sequence[Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss, and its unweighted terms "class", "mask" and "dice", detached, as means over the layers."""
        classes, masks = self.head(maps)
        terms = self.criterion(classes, masks, batch["semantic"])
        total = sum(getattr(self.settings, f"{name}_weight") * term for name, term in terms.items())
        return total, {name: term.detach() / len(masks) for name, term in terms.items()}

    @torch.no_grad()
    def predict(self, maps: Sequence[Tensor], size: Sequence[int]) -> dict[str, Tensor]:
        """ "semantic" float32 scores [B, C, *size]: per class, the sum over queries of its chance times the mask's."""
        classes, masks = self.head(maps)
        return {"semantic": semantic_scores(classes[-1], masks[-1], size)}

    def metrics(self) -> SegmentationMetric:
        """A fresh metric: "miou", "miou_objects", "pixel_accuracy", "iou/NAME"."""
        return SegmentationMetric(self.class_names, self.object_classes)


def semantic_scores(classes: Tensor, masks: Tensor, size: Sequence[int]) -> Tensor:
    """Scores [B, C, H, W] = sum_q softmax(classes)[:, q, :C] * sigmoid(masks resized bilinearly to `size`)[:, q].

    Works image by image and a few queries at a time, so beside the result at most `_CHUNK` mask pixels are alive.

    Args:
        classes: class logits [B, Q, C + 1], the last being "no object".
        masks: mask logits [B, Q, h, w].
        size: (H, W).
    """
    height, width = size
    chance = classes.float().softmax(-1)[..., :-1]
    scores = chance.new_zeros(*chance.shape[::2], height * width)
    step = max(1, _CHUNK // (height * width))
    for image in range(len(scores)):
        for part in range(0, masks.shape[1], step):
            some = masks[image : image + 1, part : part + step].float()
            full = F.interpolate(some, size=(height, width), mode="bilinear", align_corners=False)[0].sigmoid_()
            scores[image].addmm_(chance[image, part : part + step].T, full.flatten(1))
    return scores.view(*scores.shape[:2], height, width)
