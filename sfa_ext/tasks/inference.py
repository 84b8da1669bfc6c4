"""Prediction for images of any size, by a backbone and a task's head."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfa_ext.data.augment import reference_length

STRIDE = 32  # the coarsest map; images are padded to a multiple of it


def predict(
    backbone: nn.Module, task: nn.Module, images: Tensor, crop: int | None = None, side: str = "shorter"
) -> dict[str, Tensor]:
    """The task's prediction for normalised images [B, 3, H, W] of any size, at their size.

    The network sees them at the scale it was trained at: with the side that `reference_length` says as long as the
    training crop, or with `crop` None as they are.
    """
    size = tuple(images.shape[-2:])
    factor = 1 if crop is None else crop / reference_length(size, crop, side)
    if factor != 1:
        scaled = [max(1, round(side * factor)) for side in size]
        images = F.interpolate(images, scaled, mode="bilinear", antialias=True, align_corners=False)
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE))
    found = task.predict(backbone(padded), tuple(padded.shape[-2:]))
    return to_image(found, (height, width), size)


def to_image(found: dict[str, Any], seen: tuple[int, int], size: tuple[int, int]) -> dict[str, Any]:
    """A task's prediction at the images' size. seen: the part of the network's input that shows the image."""
    if "boxes" in found:
        from .instances import instances_to_image

        return instances_to_image(found, seen, size)
    height, width = seen
    return {n: _fit(t[..., :height, :width], size) if t.dim() >= 3 else t for n, t in found.items()}


def _fit(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [B, C, h, w] or [B, h, w] brought to `size`."""
    if tuple(maps.shape[-2:]) == size:
        return maps
    flat = maps if maps.dim() == 4 else maps[:, None]
    return F.interpolate(flat, size, mode="bilinear", align_corners=False).view(*maps.shape[:-2], *size)


def labels(prediction: dict[str, Tensor]) -> np.ndarray:
    """Class of each pixel, uint8 [H, W], of the first image of a prediction."""
    return prediction["semantic"][0].argmax(0).to(torch.uint8).cpu().numpy()
