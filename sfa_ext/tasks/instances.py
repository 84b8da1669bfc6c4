"""Instances found in what a network saw, brought to the image they belong to."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
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
    """Masks bool [n, *size]: pixels whose centre is solid in shapes [n, h, w] that are spread over boxes [n, 4].

    torchvision's pasting would round a box to whole pixels and make it one longer, which small objects do not bear.
    """
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool, device=boxes.device)
    for mask, shape, (left, top, right, bottom) in zip(masks, shapes, boxes.tolist(), strict=True):
        rows, y = _centres(top, bottom)
        columns, x = _centres(left, right)
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).to(shape)
        # "border" extends the outermost places to the box's edge; zeros would round the corners of a full box.
        chance = F.grid_sample(shape[None, None], grid[None], padding_mode="border", align_corners=False)
        mask[rows, columns] = chance[0, 0] > SOLID
    return masks


def _centres(start: float, end: float) -> tuple[slice, Tensor]:
    """The pixels whose centre lies between two positions, and where it lies, from -1 at the first to 1 at the other."""
    pixels = slice(math.ceil(start - 0.5), math.ceil(end - 0.5))
    centres = torch.arange(pixels.start, pixels.stop, dtype=torch.float64) + 0.5
    return pixels, (centres - start) / (end - start) * 2 - 1
