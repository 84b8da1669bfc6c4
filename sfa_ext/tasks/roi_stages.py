"""Boxes, classes and masks of proposed regions, in one stage (Mask R-CNN) or several (Cascade Mask R-CNN)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image

from sfa_ext import ranks

Features = dict[str, Tensor]
Sizes = list[tuple[int, int]]

# Of each stage: smallest IoU of a positive, scale of box offsets, weight of the loss. Cai and Vasconcelos 2018.
STAGES = (
    (0.5, (10.0, 10.0, 5.0, 5.0), 1.0),
    (0.6, (20.0, 20.0, 10.0, 10.0), 0.5),
    (0.7, (30.0, 30.0, 15.0, 15.0), 0.25),
)


class AgnosticPredictor(nn.Module):
    """Class scores [N, C], and one box [N, 4] for all classes, repeated as [N, 4 C] so that any class finds it."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.score, self.box, self.classes = nn.Linear(inputs, classes), nn.Linear(inputs, 4), classes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.score(x), self.box(x).repeat(1, self.classes)


class RoIStages(nn.Module):
    """Stages that each take over the boxes of the one before, and one mask head on the first stage's samples.

    Args:
        stages: torchvision's RoIHeads without masks; each has its own IoU threshold, box coder and predictor. Boxes of
            any but the last must not depend on the class.
        weights: of the stages' losses.
        mask_pool, mask_head, mask_predictor: as RoIHeads takes them.
    """

    def __init__(
        self,
        stages: Sequence[RoIHeads],
        weights: Sequence[float],
        mask_pool: nn.Module,
        mask_head: nn.Module,
        mask_predictor: nn.Module,
    ) -> None:
        super().__init__()
        self.stages, self.weights = nn.ModuleList(stages), tuple(weights)
        self.mask_pool, self.mask_head, self.mask_predictor = mask_pool, mask_head, mask_predictor

    def losses(
        self, features: Features, proposals: list[Tensor], sizes: Sizes, targets: Sequence[Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """ "class" and "box" (weighted sums over the stages) and "mask".

        Args:
            features: maps by level.
            proposals: boxes [n, 4] of each image; not changed.
            sizes: (height, width) of each image.
            targets: "boxes" float [n, 4], "labels" int64 [n] from 1 on, "masks" uint8 [n, H, W] of each image.
        """
        terms = {"class": 0.0, "box": 0.0}
        proposals = [*proposals]
        for i, (stage, weight) in enumerate(zip(self.stages, self.weights, strict=True)):
            proposals, matched, labels, offsets = stage.select_training_samples(proposals, targets)
            if i == 0:
                mask = self._mask_loss(features, proposals, matched, labels, sizes, targets)
            scores, regression = _boxes(stage, features, proposals, sizes)
            of_class, of_box = fastrcnn_loss(scores, regression, labels, offsets)
            weight = weight * ranks.relative(len(scores), scores)  # torchvision's are means over this rank's samples
            terms["class"] = terms["class"] + weight * of_class
            terms["box"] = terms["box"] + weight * of_box
            if i + 1 < len(self.stages):
                # Every stage adds the true boxes to its samples; handed on as well, they would multiply.
                refined = _refined(stage, regression, proposals, sizes)
                true = [(p[:, None] == t["boxes"]).all(2).any(1) for p, t in zip(proposals, targets, strict=True)]
                proposals = [r[~t] for r, t in zip(refined, true, strict=True)]
        return terms | {"mask": mask}

    def _mask_loss(self, features, proposals, matched, labels, sizes, targets) -> Tensor:
        positive = [found > 0 for found in labels]
        boxes = [p[keep] for p, keep in zip(proposals, positive, strict=True)]
        which = [m[keep] for m, keep in zip(matched, positive, strict=True)]
        logits = self.mask_predictor(self.mask_head(self.mask_pool(features, boxes, sizes)))
        # torchvision takes a mask's pixels to stand at whole positions, ours fill the places from one to the next.
        shifted = [b - 0.5 for b in boxes]
        mean = maskrcnn_loss(
            logits.float(), shifted, [t["masks"] for t in targets], [t["labels"] for t in targets], which
        )
        return mean * ranks.relative(len(logits), logits)

    def detect(self, features: Features, proposals: list[Tensor], sizes: Sizes) -> list[dict[str, Tensor]]:
        """For each image "boxes" [n, 4], "labels" int64 [n] from 1 on, "scores" [n] and "shapes" [n, 28, 28], the
        chance of each place in a box to belong to the object; best first.

        Boxes are the last stage's, scores the mean of all stages'.
        """
        chances = []
        for i, stage in enumerate(self.stages):
            scores, regression = _boxes(stage, features, proposals, sizes)
            chances.append(scores.softmax(-1))
            if i + 1 < len(self.stages):
                proposals = _refined(stage, regression, proposals, sizes)
        mean = torch.stack(chances).mean(0)
        # postprocess_detections takes logits: the softmax of a logarithm of chances is the chances.
        found = stage.postprocess_detections(mean.log(), regression, proposals, sizes)
        boxes, scores, labels = found
        logits = self.mask_predictor(self.mask_head(self.mask_pool(features, boxes, sizes)))
        shapes = maskrcnn_inference(logits.float(), labels)
        return [
            {"boxes": b, "labels": c, "scores": s, "shapes": m[:, 0]}
            for b, c, s, m in zip(boxes, labels, scores, shapes, strict=True)
        ]


def _boxes(stage: RoIHeads, features: Features, proposals: list[Tensor], sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Class scores [N, C] and box offsets [N, 4 C] of all proposals, float32."""
    scores, regression = stage.box_predictor(stage.box_head(stage.box_roi_pool(features, proposals, sizes)))
    return scores.float(), regression.float()


@torch.no_grad()
def _refined(stage: RoIHeads, regression: Tensor, proposals: list[Tensor], sizes: Sizes) -> list[Tensor]:
    """The boxes that a class-agnostic stage makes of its proposals, cut at the images' borders."""
    boxes = stage.box_coder.decode(regression, proposals)[:, 0].split([len(p) for p in proposals])
    return [clip_boxes_to_image(b, size) for b, size in zip(boxes, sizes, strict=True)]


def build_stages(settings, width: int, classes: int) -> RoIStages:
    """The stages of MaskRcnnSettings over maps of `width` channels; `classes` counts the background."""
    levels = [str(i) for i in range(4)]
    # Torchvision sends a box of 224 pixels to stride 16 where the smallest anchor has 32.
    place = {"canonical_scale": 7 * settings.anchor, "canonical_level": 4}
    pool = MultiScaleRoIAlign(levels, 7, 2, **place)
    stages = []
    for threshold, code, _ in STAGES if settings.cascade else STAGES[:1]:
        predictor = AgnosticPredictor if settings.cascade else FastRCNNPredictor
        stages.append(
            RoIHeads(
                pool,
                TwoMLPHead(49 * width, settings.box_dim),
                predictor(settings.box_dim, classes),
                fg_iou_thresh=threshold,
                bg_iou_thresh=threshold,
                batch_size_per_image=settings.roi_samples,
                positive_fraction=0.25,
                bbox_reg_weights=code,
                score_thresh=settings.score_threshold,
                nms_thresh=settings.nms_threshold,
                detections_per_img=settings.detections,
            )
        )
    weights = [weight for _, _, weight in STAGES[: len(stages)]]
    masks = MultiScaleRoIAlign(levels, 14, 2, **place)
    head = MaskRCNNHeads(width, (width,) * settings.mask_convs, 1)
    return RoIStages(stages, weights, masks, head, MaskRCNNPredictor(width, width, classes))
