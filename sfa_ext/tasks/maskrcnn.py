"""Detection and instance segmentation with Mask R-CNN: on an FPN, on a BiFPN, and as a cascade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from .bifpn import BiFPN
from .detection_metrics import DETECTION_FIGURES, DetectionMetric
from .roi_stages import build_stages

NECKS = ("fpn", "bifpn")


@dataclass(frozen=True)
class MaskRcnnSettings:
    """Settings of Mask R-CNN (He et al. 2017); the defaults are those of its usual implementations on COCO."""

    sizes: ClassVar[dict[str, dict]] = {
        "paper": {},
        # For crops of about 100 pixels.
        "small": {
            "width": 64, "anchor": 16, "anchor_scales": 2, "box_dim": 256, "mask_convs": 2, "rpn_samples": 64,
            "roi_samples": 64, "proposals_train": 200, "proposals_test": 100, "bifpn_layers": 2,
        },
    }  # fmt: skip

    neck: str = field(default="fpn", metadata={"help": f"what joins the four maps: {', '.join(NECKS)}"})
    cascade: bool = field(default=False, metadata={"help": "three box stages, IoU 0.5, 0.6 and 0.7, scores averaged"})
    width: int = field(default=256, metadata={"help": "channels of the neck, of the RPN and of the mask head"})
    bifpn_layers: int = field(default=3, metadata={"help": "layers of a BiFPN; an FPN has one"})
    anchor: int = field(default=32, metadata={"help": "side of the smallest anchor in pixels; each level doubles it"})
    anchor_scales: int = field(default=1, metadata={"help": "sizes of anchors from one level to the next"})
    box_dim: int = field(default=1024, metadata={"help": "width of the two layers of each box head"})
    mask_convs: int = field(default=4, metadata={"help": "3x3 convolutions of the mask head"})
    rpn_samples: int = field(default=256, metadata={"help": "anchors of an image that the RPN's loss samples"})
    roi_samples: int = field(default=512, metadata={"help": "proposals of an image that the box loss samples"})
    proposals_train: int = field(default=2000, metadata={"help": "proposals of an image in training"})
    proposals_test: int = field(default=1000, metadata={"help": "proposals of an image in prediction"})
    detections: int = field(default=100, metadata={"help": "largest number of objects found in an image"})
    score_threshold: float = field(default=0.05, metadata={"help": "smallest score of an object"})
    nms_threshold: float = field(default=0.5, metadata={"help": "IoU from which of two boxes of a class one goes"})

    def __post_init__(self) -> None:
        if self.neck not in NECKS:
            raise ValueError(f"neck must be one of {', '.join(NECKS)}, got {self.neck!r}")
        for setting in (
            "width", "bifpn_layers", "anchor", "anchor_scales", "box_dim", "mask_convs", "rpn_samples", "roi_samples",
            "proposals_train", "proposals_test", "detections",
        ):  # fmt: skip
            if getattr(self, setting) < 1:
                raise ValueError(f"{setting} must be at least 1, got {getattr(self, setting)}")
        for setting in ("score_threshold", "nms_threshold"):
            if not 0 <= getattr(self, setting) <= 1:
                raise ValueError(f"{setting} must lie in [0, 1], got {getattr(self, setting)}")


class MaskRcnn(nn.Module):
    """Mask R-CNN over four maps.

    Args:
        settings: see MaskRcnnSettings.
        channels: channels of the four maps (strides 4, 8, 16, 32).
        class_names: names of the classes in the order of the label values.
        object_classes: label values that have instances; empty for all.

    batch: "image" [B, 3, H, W] (for its size), "boxes" float [n, 4], "labels" int64 [n], "masks" bool [n, h, w] and, if
    there, "crowd" bool [n], lists with an entry an image. Crowds are left out of training.
    """

    figures = DETECTION_FIGURES

    def __init__(
        self,
        settings: MaskRcnnSettings,
        channels: Sequence[int],
        class_names: Sequence[str],
        object_classes: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.settings = settings
        self.class_names = tuple(class_names)
        self.objects = tuple(object_classes) or tuple(range(len(class_names)))
        width = settings.width
        if settings.neck == "fpn":
            self.neck = FeaturePyramidNetwork(list(channels), width, LastLevelMaxPool())
        else:
            self.neck = BiFPN(channels, width, settings.bifpn_layers)
        levels = len(channels) + 1
        scales = [settings.anchor * 2 ** (s / settings.anchor_scales) for s in range(settings.anchor_scales)]
        sizes = tuple(tuple(scale * 2**level for scale in scales) for level in range(levels))
        ratios = (0.5, 1.0, 2.0)
        self.rpn = RegionProposalNetwork(
            AnchorGenerator(sizes, (ratios,) * levels),
            RPNHead(width, len(scales) * len(ratios)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=settings.rpn_samples,
            positive_fraction=0.5,
            pre_nms_top_n={"training": settings.proposals_train, "testing": settings.proposals_test},
            post_nms_top_n={"training": settings.proposals_train, "testing": settings.proposals_test},
            nms_thresh=0.7,
        )
        self.roi = build_stages(settings, width, len(self.objects) + 1)

    def loss(self, maps: Sequence[Tensor], batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss, and its detached terms "objectness", "proposal", "class", "box" and "mask".

        Raises ValueError for a label that has no instances.
        """
        targets = [self._target(batch, i, maps[0].device) for i in range(len(maps[0]))]
        features, images = self._features(maps, tuple(batch["image"].shape[-2:]))
        proposals, found = self.rpn(images, features, targets)
        terms = {"objectness": found["loss_objectness"], "proposal": found["loss_rpn_box_reg"]}
        terms |= self.roi.losses(features, proposals, images.image_sizes, targets)
        return sum(terms.values()), {name: term.detach() for name, term in terms.items()}

    @torch.no_grad()
    def predict(self, maps: Sequence[Tensor], size: Sequence[int]) -> dict[str, list[Tensor]]:
        """Lists with an entry an image, best first: "boxes" [n, 4] in pixels of an image of `size`, "labels" int64 [n],
        "scores" [n], "shapes" [n, 28, 28], each box's mask in the box. The task must be in eval mode."""
        features, images = self._features(maps, tuple(size))
        proposals, _ = self.rpn(images, features)
        found = self.roi.detect(features, proposals, images.image_sizes)
        objects = torch.tensor(self.objects, device=maps[0].device)
        for image in found:
            image["labels"] = objects[image["labels"] - 1]
        return {name: [image[name] for image in found] for name in ("boxes", "labels", "scores", "shapes")}

    def metrics(self) -> DetectionMetric:
        """A fresh metric, see DetectionMetric."""
        return DetectionMetric(self.class_names, self.objects)

    def _features(self, maps: Sequence[Tensor], size: tuple[int, int]) -> tuple[dict[str, Tensor], ImageList]:
        """The neck's maps by level, and what torchvision asks of the images: their sizes."""
        levels = {str(i): m for i, m in enumerate(maps)}
        neck = self.neck(levels) if self.settings.neck == "fpn" else self.neck(maps)
        neck = neck.values() if isinstance(neck, dict) else neck
        # Anchors take over the maps' dtype, and 16 bits hold no pixel positions.
        features = {str(i): m.float() for i, m in enumerate(neck)}
        pixels = maps[0].new_empty(1).expand(len(maps[0]), 3, *size)
        return features, ImageList(pixels, [size] * len(maps[0]))

    def _target(self, batch: Mapping[str, Any], image: int, device: torch.device) -> dict[str, Tensor]:
        """Boxes, masks and labels (from 1 on) of one image, without crowds."""
        boxes, labels, masks = (torch.as_tensor(batch[name][image]) for name in ("boxes", "labels", "masks"))
        boxes, masks = boxes.as_subclass(Tensor), masks.as_subclass(Tensor)
        if "crowd" in batch:
            keep = ~batch["crowd"][image].bool()
            boxes, labels, masks = boxes[keep], labels[keep], masks[keep]
        same = labels[:, None] == torch.tensor(self.objects)
        if not same.any(1).all():
            wrong = int(labels[~same.any(1)][0])
            raise ValueError(f"batch['labels'] must be among the classes with instances, {self.objects}, got {wrong}")
        numbers = same.int().argmax(1) + 1 if len(labels) else labels
        return {"boxes": boxes.float().to(device), "labels": numbers.to(device), "masks": masks.byte().to(device)}
