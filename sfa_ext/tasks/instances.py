"""Instances found in what a network saw, brought to the image they belong to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import clip_boxes_to_image

SOLID = 0.5  # from this chance on a pixel belongs to the object


def instances_to_image(
    found: Mapping[str, list[Tensor]], seen: tuple[int, int], size: tuple[int, int]
) -> dict[str, list[Tensor]]:
    """The instances with boxes in pixels of images of `size`, and "masks" bool [n, *size] in place of "shapes".

    Args:
        found: "boxes" [n, 4], "labels", "scores" and "shapes" [n, h, w] for each image, as a detector predicts them.
        seen: the part (height, width) of the network's input that shows the image; boxes are cut at its border.
        size: (height, width) of the images.
    """
    scale = found["boxes"][0].new_tensor([size[1] / seen[1], size[0] / seen[0]] * 2)
    boxes = [clip_boxes_to_image(b, seen) * scale for b in found["boxes"]]
    whole = [(b[:, 2:] > b[:, :2]).all(1) for b in boxes]  # what lay in the padding alone has no extent left
    kept = {name: [v[w] for v, w in zip(found[name], whole, strict=True)] for name in ("labels", "scores", "shapes")}
    boxes = [b[w] for b, w in zip(boxes, whole, strict=True)]
    masks = [_pasted(s, b, size) for s, b in zip(kept.pop("shapes"), boxes, strict=True)]
    return {"boxes": boxes, **kept, "masks": masks}


def _pasted(shapes: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks bool [n, *size] from shapes [n, h, w] in boxes [n, 4], one at a time: as numbers they take much memory."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool, device=boxes.device)
    for i in range(len(boxes)):
        masks[i] = paste_masks_in_image(shapes[i : i + 1, None], boxes[i : i + 1], size)[0, 0] > SOLID
    return masks
