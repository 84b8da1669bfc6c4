"""What happens to a sample before it becomes part of a batch.

All random numbers come from torch's CPU generator. Every operation works pixel by pixel or on fixed neighbourhoods,
with no sum over the image, so that the number of threads changes no bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
IGNORE = 255
# What a crop beyond the picture's border shows; depth 0 means unknown.
_FILL = {"image": [round(255 * m) for m in MEAN], "semantic": IGNORE, "depth": 0.0, "masks": 0}
# What a sample holds once an instance.
_INSTANCES = ("boxes", "labels", "masks", "crowd")
SIDES = ("shorter", "longer", "none")

Sample = dict[str, Any]


@dataclass(frozen=True)
class Augmentation:
    """Settings of the training augmentation.

    Attributes:
        scale: smallest and largest zoom; [0.1, 2] is large-scale jitter. What zoom 1 is says `side`.
        flip: probability of a mirror image.
        jitter: how far brightness, contrast and saturation stray from 1; brightness half as far.
        photometric: the stronger colour changes of SSD instead of the jitter: brightness, contrast, saturation and hue,
            each with probability 1/2.
    """

    scale: tuple[float, float] = (0.8, 1.25)
    flip: float = 0.5
    jitter: float = 0.4
    photometric: bool = False

    def __post_init__(self) -> None:
        scale = tuple(self.scale) if isinstance(self.scale, (list, tuple)) else ()
        if len(scale) != 2 or not 0 < scale[0] <= scale[1]:
            raise ValueError(f"scale must be two zooms in rising order above 0, for example [0.5, 2]; got {self.scale}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip must be a probability between 0 and 1; got {self.flip}")
        if not 0 <= self.jitter < 1:
            raise ValueError(f"jitter must be at least 0 and below 1; got {self.jitter}")


def reference_length(size: Sequence[int], crop: int, side: str) -> int:
    """The length that zoom 1 makes as long as the crop, in an image of `size` (height, width).

    side: "shorter" or "longer" side of the image; "none": the crop itself, so that pixels stay as large as they are.
    """
    if side not in SIDES:
        raise ValueError(f"side must be one of {', '.join(SIDES)}; got {side!r}")
    return {"shorter": min(size), "longer": max(size), "none": crop}[side]


def train_transform(
    crop: int, side: str = "shorter", instances: bool = True, **settings: Any
) -> Callable[[Sample], Sample]:
    """The training transform: zoom and crop to `crop` x `crop`, mirror, change colours, normalise.

    Everything in a sample goes along with its image. Depth is divided by the zoom, as though the camera had come
    closer. Of an instance that the crop cuts, the box is that of the mask that is left; one with nothing left, or with
    a box less than a pixel wide or high, is dropped. "area" is dropped: it would be that of the whole instance.

    Args:
        crop: side of the result in pixels.
        side: which side of the image is as long as the crop at zoom 1, see `reference_length`.
        instances: false drops boxes, labels and masks, which on small images take as long as all the rest.
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
    reference_length((1, 1), crop, side)
    chosen = Augmentation(**settings)
    return v2.Compose(
        [
            *([] if instances else [_drop_instances]),
            _ZoomCrop(crop, side, chosen.scale),
            v2.RandomHorizontalFlip(chosen.flip),
            _photometric if chosen.photometric else _ColourJitter(chosen.jitter),
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
    return {name: value for name, value in sample.items() if name not in (*_INSTANCES, "area")}


class _ZoomCrop:
    """Cuts out the part that fills the crop at a random zoom, and resizes only that."""

    def __init__(self, crop: int, side: str, scale: tuple[float, float]) -> None:
        self.crop, self.side, self.scale = crop, side, (float(scale[0]), float(scale[1]))

    def __call__(self, sample: Sample) -> Sample:
        height, width = sample["image"].shape[-2:]
        low, high = self.scale
        factor = math.exp(torch.empty(()).uniform_(math.log(low), math.log(high)).item()) if low < high else low
        zoom = factor * self.crop / reference_length((height, width), self.crop, self.side)
        part = [max(1, min(side, round(self.crop / zoom))) for side in (height, width)]
        start = [int(torch.randint(side - p + 1, ())) for side, p in zip((height, width), part, strict=True)]
        size = [max(1, min(self.crop, round(p * zoom))) if p == side else self.crop
                for side, p in zip((height, width), part, strict=True)]  # fmt: skip
        room = [self.crop - s for s in size]
        before = [int(torch.randint(r + 1, ())) for r in room]
        cut = _Cut(start, part, size, [before[1], before[0], room[1] - before[1], room[0] - before[0]])
        out = _seen_instances(sample, cut) if "boxes" in sample else dict(sample)
        for name in _FILL.keys() & out.keys():
            out[name] = cut(out[name], name)
        if "boxes" in sample:
            out = _sound_instances({**out, "boxes": cut(out["boxes"], "boxes")}, ~cut.holds(out["boxes"]))
        if "depth" in out and factor != 1:
            out["depth"] = tv_tensors.wrap(out["depth"] / factor, like=out["depth"])
        return out


@dataclass(frozen=True)
class _Cut:
    """A part of the picture brought to a size, with a border around it. Lengths are (height, width)."""

    start: list[int]
    part: list[int]
    size: list[int]
    border: list[int]  # left, top, right, bottom

    def __call__(self, value: Tensor, name: str) -> Tensor:
        value = v2.functional.crop(value, *self.start, *self.part)
        smooth = name in ("image", "boxes")
        value = v2.functional.resize(value, self.size) if smooth else _resize_labels(value, self.size)
        return v2.functional.pad(value, self.border, _FILL.get(name, 0)) if any(self.border) else value

    def holds(self, boxes: Tensor) -> Tensor:
        """Which boxes lie in the part as a whole. bool [n]."""
        (top, left), (height, width) = self.start, self.part
        x1, y1, x2, y2 = boxes.as_subclass(Tensor).unbind(1)
        return (x1 >= left) & (y1 >= top) & (x2 <= left + width) & (y2 <= top + height)


def _seen_instances(sample: Sample, cut: _Cut) -> Sample:
    """The sample with those instances alone whose box reaches into the part: masks of others need no resizing."""
    size = _extent(v2.functional.crop(sample["boxes"], *cut.start, *cut.part))
    return _keep({name: value for name, value in sample.items() if name != "area"}, (size > 0).all(1))


def _sound_instances(sample: Sample, changed: Tensor) -> Sample:
    """Takes the box of an instance that was `changed` (bool [n]) from its mask; drops what has become too small."""
    left = sample["masks"].as_subclass(Tensor).flatten(1).any(1)
    sample, changed = _keep(sample, left), changed[left]
    boxes = sample["boxes"].as_subclass(Tensor).clone()
    boxes[changed] = masks_to_boxes(sample["masks"].as_subclass(Tensor)[changed]).to(boxes.dtype)
    boxes[changed, 2:] += 1  # masks_to_boxes gives the last pixel, boxes end behind it
    sample = {**sample, "boxes": tv_tensors.wrap(boxes, like=sample["boxes"])}
    return _keep(sample, (_extent(boxes) >= 1).all(1))


def _keep(sample: Sample, which: Tensor) -> Sample:
    if bool(which.all()):
        return sample
    kept = {name: sample[name][which] for name in _INSTANCES if name in sample}
    typed = {name: tv_tensors.wrap(kept[name], like=sample[name]) for name in ("boxes", "masks")}
    return {**sample, **kept, **typed}


def _extent(boxes: Tensor) -> Tensor:
    """Width and height of boxes, [n, 2]."""
    boxes = boxes.as_subclass(Tensor)
    return boxes[:, 2:] - boxes[:, :2]


def _resize_labels(value: Tensor, size: list[int]) -> Tensor:
    """[..., h, w]: the label at each new pixel's centre. torchvision takes that at its corner, half a pixel off."""
    if list(value.shape[-2:]) == size:
        return value
    plain = value.as_subclass(Tensor)
    bytes_ = plain.view(torch.uint8) if plain.dtype == torch.bool else plain
    resized = F.interpolate(bytes_.reshape(-1, 1, *plain.shape[-2:]), size, mode="nearest-exact")
    return tv_tensors.wrap(resized.view(*plain.shape[:-2], *size).view(plain.dtype), like=value)


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


def _photometric(sample: Sample) -> Sample:
    """SSD's colour changes (arXiv 1512.02325): brightness by up to 32 of 255, contrast and saturation by half, hue by
    18 degrees, each with probability 1/2, contrast before or after the other two. Contrast scales around black."""
    happens = (torch.rand(4) < 0.5).tolist()
    strength = (torch.rand(4) * 2 - 1).tolist()
    late = bool(torch.rand(()) < 0.5)
    image = sample["image"].as_subclass(Tensor).float() / 255
    if happens[0]:
        image = (image + strength[0] * 32 / 255).clamp_(0, 1)
    if happens[1] and not late:
        image = (image * (1 + strength[1] / 2)).clamp_(0, 1)
    if happens[2]:
        image = v2.functional.adjust_saturation(image, 1 + strength[2] / 2)
    if happens[3]:
        image = v2.functional.adjust_hue(image, strength[3] * 18 / 360)
    if happens[1] and late:
        image = (image * (1 + strength[1] / 2)).clamp_(0, 1)
    return {**sample, "image": tv_tensors.Image(image)}
