"""A prediction drawn beside its image, whatever the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .inference import labels
from .overlay import enlarged, overlay

_COLOURS = "turbo_r"  # near is warm
_BAR, _PAD, _TEXT = 16, 10, 52  # pixels: width of the colour bar, margin, room for its numbers


def draw(
    image: np.ndarray, prediction: Mapping[str, Tensor], names: Sequence[str], palette: Sequence[Sequence[int]]
) -> Image.Image:
    """The image, uint8 [H, W, 3], beside what a task predicts for it: its classes, or else its depth.

    prediction: as `tasks.inference.predict` gives it for a batch of this one image.
    """
    if "semantic" in prediction:
        return overlay(image, labels(prediction), names, palette)
    return depth_picture(image, prediction["depth"][0].float().cpu().numpy())


def depth_picture(image: np.ndarray, depth: np.ndarray) -> Image.Image:
    """The image [H, W, 3] beside its depth [H, W] in metres, colours from nearest to farthest, with a bar of metres."""
    near, far = float(depth.min()), float(depth.max())
    span = max(far - near, 1e-6)
    pair = np.concatenate([enlarged(image), enlarged(_coloured((depth - near) / span))], 1)
    height, width = pair.shape[:2]
    whole = Image.new("RGB", (width + _PAD + _BAR + _TEXT, height), "white")
    whole.paste(Image.fromarray(pair), (0, 0))
    left, top, bottom = width + _PAD, _PAD, height - _PAD
    ramp = np.linspace(0, 1, bottom - top)[:, None].repeat(_BAR, 1)
    whole.paste(Image.fromarray(_coloured(ramp)), (left, top))
    pen, font = ImageDraw.Draw(whole), ImageFont.load_default(12)
    pen.rectangle((left - 1, top - 1, left + _BAR, bottom), outline="black")
    for metres in _ticks(near, far):
        y = top + (bottom - top - 1) * (metres - near) / span
        pen.line((left + _BAR, y, left + _BAR + 4, y), fill="black")
        pen.text((left + _BAR + 7, y), f"{metres:g} m", fill="black", font=font, anchor="lm")
    return whole


def _coloured(values: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] of values in 0..1."""
    return matplotlib.colormaps[_COLOURS](values, bytes=True)[..., :3]


def _ticks(near: float, far: float) -> list[float]:
    """Round numbers from near to far, four to ten of them where the span allows."""
    step = 10.0 ** np.floor(np.log10(max(far - near, 1e-6)))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if (far - near) / s <= 9)
    first = int(np.ceil(near / step))
    return [round(i * step, 6) for i in range(first, int(np.floor(far / step)) + 1)]
