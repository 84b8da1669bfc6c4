"""Prediction for images of any size, by a backbone and a task's head: whole, in windows, and averaged over views."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfa_ext.data.augment import reference_length

STRIDE = 32  # the coarsest map; images are padded to a multiple of it


@dataclass(frozen=True)
class Views:
    """How often and how an image is looked at; predictions are averaged.

    Attributes:
        scales: zooms, 1 being the scale of training.
        mirror: also looks at the mirror image, at every scale.
        window: side in pixels of the square windows that the scaled image is cut into; None: it is seen as a whole.
        overlap: share of a window that its neighbour repeats, at least.
    """

    scales: tuple[float, ...] = (1.0,)
    mirror: bool = False
    window: int | None = None
    overlap: float = 1 / 3

    def __post_init__(self) -> None:
        if not self.scales or not all(s > 0 for s in self.scales):
            raise ValueError(f"scales must be zooms above 0, for example 0.5 1 1.5; got {self.scales}")
        if self.window is not None and self.window < STRIDE:
            raise ValueError(f"window must be at least {STRIDE} pixels, got {self.window}")
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap must lie in [0, 1), got {self.overlap}")

    @property
    def plain(self) -> bool:
        """One look at the whole image, as it is in training."""
        return self.scales == (1.0,) and not self.mirror and self.window is None

    @property
    def text(self) -> str:
        """How images are looked at, for people."""
        parts = ["single scale" if self.scales == (1.0,) else f"scales {', '.join(f'{s:g}' for s in self.scales)}"]
        parts += ["with mirror images"] if self.mirror else []
        return ", ".join(parts + ([f"windows of {self.window} pixels"] if self.window else []))


def predict(
    backbone: nn.Module,
    task: nn.Module,
    images: Tensor,
    crop: int | None = None,
    side: str = "shorter",
    views: Views = Views(),  # noqa: B008  (frozen)
) -> dict[str, Any]:
    """The task's prediction for normalised images [B, 3, H, W] of any size, at their size.

    The network sees them at the scale it was trained at: with the side that `reference_length` says as long as the
    training crop, or with `crop` None as they are.

    Raises ValueError for a task that finds instances where `views` are several: boxes have no average.
    """
    size = tuple(images.shape[-2:])
    factor = 1 if crop is None else crop / reference_length(size, crop, side)
    total: dict[str, Any] = {}
    for scale in views.scales:
        scaled = _scaled(images, factor * scale)
        for mirrored in (False, True) if views.mirror else (False,):
            seen = scaled.flip(-1) if mirrored else scaled
            found = _in_windows(backbone, task, seen, views) if views.window else _whole(backbone, task, seen)
            if "boxes" in found and not views.plain:
                raise ValueError("a task that finds instances looks at an image once; leave out tta and window")
            found = to_image(found, tuple(scaled.shape[-2:]), size)
            if views.plain:
                return found
            for name, value in found.items():
                value = _as_seen_once(name, value, scale, mirrored)
                total[name] = total[name] + value if name in total else value
    looks = len(views.scales) * (1 + views.mirror)
    return {name: value / looks for name, value in total.items()}


def _scaled(images: Tensor, factor: float) -> Tensor:
    if factor == 1:
        return images
    size = [max(1, round(side * factor)) for side in images.shape[-2:]]
    return F.interpolate(images, size, mode="bilinear", antialias=True, align_corners=False)


def _as_seen_once(name: str, value: Tensor, scale: float, mirrored: bool) -> Tensor:
    """A map brought back from a mirrored or zoomed view."""
    if value.dim() < 3:
        return value
    value = value.flip(-1) if mirrored else value
    # Training divides depth by the zoom, as though the camera had come closer.
    return value * scale if name == "depth" else value


def _whole(backbone: nn.Module, task: nn.Module, images: Tensor) -> dict[str, Any]:
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, -width % STRIDE, 0, -height % STRIDE))
    return task.predict(backbone(padded), tuple(padded.shape[-2:]))


def _in_windows(backbone: nn.Module, task: nn.Module, images: Tensor, views: Views) -> dict[str, Any]:
    """Maps at the images' size, each pixel the mean over the windows that show it; other tensors over all windows."""
    height, width = images.shape[-2:]
    sums: dict[str, Any] = {}
    counts = images.new_zeros(height, width)
    number = 0
    for rows, columns in windows((height, width), views.window, views.overlap):
        part = images[..., rows, columns]
        found = _whole(backbone, task, part)
        if "boxes" in found:
            return found
        for name, value in found.items():
            if value.dim() < 3:
                sums[name] = sums.get(name, 0) + value
                continue
            if name not in sums:
                sums[name] = value.new_zeros(*value.shape[:-2], height, width)
            sums[name][..., rows, columns] += value[..., : part.shape[-2], : part.shape[-1]]
        counts[rows, columns] += 1
        number += 1
    return {name: value / (counts if value.dim() >= 3 else number) for name, value in sums.items()}


def windows(size: tuple[int, int], window: int, overlap: float) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of windows that cover an image of `size`; the last of a row or column ends at the border."""
    step = max(1, int(window * (1 - overlap)))

    def starts(length: int) -> list[int]:
        last = max(0, length - window)
        return [*range(0, last, step), last]

    for top in starts(size[0]):
        for left in starts(size[1]):
            yield slice(top, min(top + window, size[0])), slice(left, min(left + window, size[1]))


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
