"""What happens to a sample before it becomes part of a batch.

All random numbers come from torch's CPU generator. Every operation works pixel by pixel or on fixed neighbourhoods,
with no sum over the image, so that the number of threads changes no bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
IGNORE = 255
# What a crop beyond the picture's border shows; depth 0 means unknown.
_FILL = {"image": [round(255 * m) for m in MEAN], "semantic": IGNORE, "depth": 0.0}

Sample = dict[str, Any]


@dataclass(frozen=True)
class Augmentation:
    """Settings of the training augmentation.

    Attributes:
        scale: smallest and largest zoom; at 1 the image's shorter side is as long as the crop.
        flip: probability of a mirror image.
        jitter: how far brightness, contrast and saturation stray from 1; brightness half as far.
    """

    scale: tuple[float, float] = (0.8, 1.25)
    flip: float = 0.5
    jitter: float = 0.4

    def __post_init__(self) -> None:
        scale = tuple(self.scale) if isinstance(self.scale, (list, tuple)) else ()
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be two zooms in rising order above 0, for example [0.5, 2]; got {self.scale}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be a probability between 0 and 1; got {self.flip}")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter must be at least 0 and below 1; got {self.jitter}")


def train_transform(crop: int, **settings: Any) -> Callable[[Sample], Sample]:
    """The training transform: zoom and crop to `crop` x `crop`, mirror, colour jitter, normalise.

    Acts on "image", "semantic" and "depth", and leaves "label" and "name" as they are; instance labels are dropped.
    Depth is divided by the zoom, as though the camera had come closer.

    Args:
        crop: side of the result in pixels.
        settings: fields of `Augmentation`.

    Raises:
        ValueError: an unknown setting or a value out of range.
    """
    known = [field.name for field in dataclasses.fields(Augmentation)]
    for name in settings:
        if name not in known:
            raise ValueError(f"unknown augmentation setting {name!r}; the known ones are {', '.join(known)}")
    if crop < 1:
        raise ValueError(f"crop must be at least 1 pixel; got {crop}")
    chosen = Augmentation(**settings)
    return v2.Compose(
        [
            _drop_instances,
            _ZoomCrop(crop, chosen.scale),
            v2.RandomHorizontalFlip(chosen.flip),
            _ColourJitter(chosen.jitter),
            _normalise_sample,
        ]
    )


def eval_transform() -> Callable[[Sample], Sample]:
    """The evaluation transform: the image normalised, at its own size."""
    return _normalise_sample


def normalise(image: Tensor) -> Tensor:
    """Float32 [..., 3, H, W], ImageNet's mean and deviation taken out of uint8 [..., 3, H, W] or of float in [0, 1]."""
    image = image.as_subclass(Tensor)
    scale = 1 / 255 if image.dtype == torch.uint8 else 1.0
    mean = torch.tensor(MEAN, device=image.device)[:, None, None]
    std = torch.tensor(STD, device=image.device)[:, None, None]
    return (image.float() * scale - mean) / std


def _normalise_sample(sample: Sample) -> Sample:
    return {**sample, "image": normalise(sample["image"])}


def _drop_instances(sample: Sample) -> Sample:
    return {name: value for name, value in sample.items() if name not in ("masks", "boxes", "labels")}


class _ZoomCrop:
    """Cuts out the part that fills the crop at a random zoom, and resizes only that."""

    def __init__(self, crop: int, scale: tuple[float, float]) -> None:
        self.crop, self.scale = crop, (float(scale[0]), float(scale[1]))

    def __call__(self, sample: Sample) -> Sample:
        height, width = sample["image"].shape[-2:]
        low, high = self.scale
        factor = math.exp(torch.empty(()).uniform_(math.log(low), math.log(high)).item()) if low < high else low
        zoom = factor * self.crop / min(height, width)
        part = [max(1, min(side, round(self.crop / zoom))) for side in (height, width)]
        start = [int(torch.randint(side - p + 1, ())) for side, p in zip((height, width), part, strict=True)]
        size = [max(1, min(self.crop, round(p * zoom))) if p == side else self.crop
                for side, p in zip((height, width), part, strict=True)]  # fmt: skip
        room = [self.crop - s for s in size]
        before = [int(torch.randint(r + 1, ())) for r in room]
        padding = [before[1], before[0], room[1] - before[1], room[0] - before[0]]
        out = dict(sample)
        for name in _FILL.keys() & sample.keys():
            value = v2.functional.crop(sample[name], *start, *part)
            value = v2.functional.resize(value, size) if name == "image" else _resize_labels(value, size)
            value = v2.functional.pad(value, padding, _FILL[name]) if any(room) else value
            out[name] = tv_tensors.wrap(value / factor, like=value) if name == "depth" and factor != 1 else value
        return out


def _resize_labels(value: Tensor, size: list[int]) -> Tensor:
    """The label at the centre of each new pixel. torchvision takes that of its corner, up to half a pixel away."""
    if list(value.shape[-2:]) == size:
        return value
    resized = F.interpolate(value.as_subclass(Tensor)[None, None], size, mode="nearest-exact")[0, 0]
    return tv_tensors.wrap(resized, like=value)


class _ColourJitter:
    """Brightness, contrast around mid-grey, and saturation. Contrast around the image's own mean would need a sum."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def __call__(self, sample: Sample) -> Sample:
        if self.strength == 0:
            return sample
        draw = (torch.rand(3) * 2 - 1).tolist()
        brightness, contrast, saturation = (1 + self.strength * d for d in (draw[0] / 2, draw[1], draw[2]))
        image = sample["image"].as_subclass(Tensor).float() * (brightness * contrast / 255) + 0.5 * (1 - contrast)
        grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
        image = torch.lerp(grey.expand_as(image), image, saturation).clamp_(0, 1)
        return {**sample, "image": tv_tensors.Image(image)}
