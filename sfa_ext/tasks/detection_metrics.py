"""Average precision of boxes and masks, computed by COCO's own evaluation from what is in memory."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from sfa_ext import ranks

from .figures import Figure

DETECTION_FIGURES = (
    Figure("box_ap", "box AP"),
    Figure("mask_ap", "mask AP"),
    Figure("box_ap50", "box AP50"),
    Figure("mask_ap50", "mask AP50"),
)
# Names of COCOeval's twelve summary numbers.
_SUMMARY = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
            "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")  # fmt: skip


class DetectionMetric:
    """COCO's figures of boxes and masks, fractions in 0..1: "box_ap" (IoU 0.5 to 0.95), "box_ap50", "box_ap75",
    "box_ap_small", "_medium", "_large" (below 32^2, 96^2 and from there on), "box_ar1", "_ar10", "_ar100" and by size;
    the same with "mask_"; and "box_ap/NAME", "mask_ap/NAME" of each class. What no true instance tells is left out.

    Args:
        class_names: names in the order of the label values.
        objects: label values that have instances.
    """

    def __init__(self, class_names: Sequence[str], objects: Sequence[int]) -> None:
        self.class_names, self.objects = tuple(class_names), tuple(objects)
        self._images: list[dict[str, Any]] = []
        self._truths: list[dict[str, Any]] = []
        self._found: list[dict[str, Any]] = []

    def update(self, prediction: Mapping[str, Sequence[Tensor]], batch: Mapping[str, Any]) -> None:
        """Counts one batch.

        Args:
            prediction: lists with an entry an image: "boxes" [n, 4] xyxy, "labels" [n], "scores" [n], "masks" bool
                [n, H, W].
            batch: "boxes", "labels", "masks" and, where there, "crowd" and "area" (else the mask's) in lists alike.

        Raises:
            ValueError: masks of another size than the true ones.
        """
        for i, masks in enumerate(batch["masks"]):
            found = prediction["masks"][i]
            if found.shape[1:] != masks.shape[1:]:
                raise ValueError(
                    f"batch['masks'] are {tuple(masks.shape[1:])} and prediction['masks'] {tuple(found.shape[1:])}; "
                    "ask for a prediction at the image's own size"
                )
            image = len(self._images) + 1
            self._images.append({"id": image, "height": masks.shape[1], "width": masks.shape[2]})
            truth = _annotations(batch["boxes"][i], batch["labels"][i], masks, image)
            crowd = batch["crowd"][i].tolist() if "crowd" in batch else [False] * len(truth)
            areas = batch["area"][i].tolist() if "area" in batch else [int(rle.area(t["segmentation"])) for t in truth]
            for t, is_crowd, area in zip(truth, crowd, areas, strict=True):
                t |= {"iscrowd": int(is_crowd), "area": area}
            self._truths += truth
            guesses = _annotations(prediction["boxes"][i], prediction["labels"][i], found, image)
            for guess, score in zip(guesses, prediction["scores"][i].tolist(), strict=True):
                guess["score"] = score
            self._found += guesses

    def compute(self) -> dict[str, float]:
        """The figures over all batches so far, of all ranks. Raises ValueError where no true instance was counted."""
        images, truths, found = _from_all_ranks(self._images, self._truths, self._found)
        if not any(not t["iscrowd"] for t in truths):
            raise ValueError("no instance was counted: check that the images are labelled with boxes and masks")
        for number, truth in enumerate(truths, 1):  # COCOeval takes an annotation numbered 0 for none
            truth["id"] = number
        categories = [{"id": c, "name": self.class_names[c]} for c in self.objects]
        whole = {"images": images, "annotations": truths, "categories": categories}
        figures = {}
        for kind, field, task in (("box", "bbox", "bbox"), ("mask", "segmentation", "segm")):
            # Given both, COCO would take a mask's area from its box.
            results = [{k: f[k] for k in ("image_id", "category_id", "score", field)} for f in found]
            figures |= {f"{kind}_{n}": v for n, v in self._evaluated(whole, results, task).items()}
        whole, by_class = ({n: v for n, v in figures.items() if ("/" in n) == split} for split in (False, True))
        return whole | by_class

    def _evaluated(self, whole: dict[str, Any], results: list[dict[str, Any]], kind: str) -> dict[str, float]:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = whole
            truth.createIndex()
            evaluation = COCOeval(truth, _loaded(truth, results), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        figures = dict(zip(_SUMMARY, evaluation.stats.tolist(), strict=True))
        # precision: [IoU, recall, class, size, limit]; the first size is all, the last limit 100 an image.
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        for k, category in enumerate(evaluation.params.catIds):
            figures[f"ap/{self.class_names[category]}"] = float(np.mean(precision[:, :, k]))
        return {name: value for name, value in figures.items() if value >= 0}


def _annotations(boxes: Tensor, labels: Tensor, masks: Tensor, image: int) -> list[dict[str, Any]]:
    """Boxes, labels and masks of one image as COCO writes them."""
    boxes = boxes.double().cpu()
    sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
    columns = np.asfortranarray(masks.cpu().numpy().astype(np.uint8).transpose(1, 2, 0))
    return [
        {"image_id": image, "category_id": c, "bbox": box, "segmentation": _text(code)}
        for c, box, code in zip(labels.tolist(), sides, rle.encode(columns) if len(sides) else [], strict=True)
    ]


def _text(code: dict[str, Any]) -> dict[str, Any]:
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def _loaded(truth: COCO, results: list[dict[str, Any]]) -> COCO:
    if results:
        return truth.loadRes(results)
    empty = COCO()  # loadRes cannot take an empty list
    empty.dataset = truth.dataset | {"annotations": []}
    empty.createIndex()
    return empty


def _from_all_ranks(*lists: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The lists of all ranks one after another, images numbered anew; the lists themselves when not distributed."""
    if ranks.size() == 1:
        return [*lists]
    whole: list[list[dict[str, Any]]] = [[] for _ in lists]
    for part in ranks.gathered(json.dumps(lists).encode()):
        images, *rest = json.loads(part)
        shift = len(whole[0])
        whole[0] += [image | {"id": image["id"] + shift} for image in images]
        for target, entries in zip(whole[1:], rest, strict=True):
            target += [entry | {"image_id": entry["image_id"] + shift} for entry in entries]
    return whole
