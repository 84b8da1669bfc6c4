"""A prediction drawn beside its image, whatever the task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .inference import labels
from .overlay import enlarged, overlay, with_legend

SHOWN = 0.5  # smallest score of an object that is drawn
_COLOURS = "turbo_r"  # near is warm
_BAR, _PAD, _TEXT = 16, 10, 52  # pixels: width of the colour bar, margin, room for its numbers


def draw(
    image: np.ndarray, prediction: Mapping[str, Tensor], names: Sequence[str], palette: Sequence[Sequence[int]]
) -> Image.Image:
    """The image, uint8 [H, W, 3], beside what a task predicts for it: objects, classes of pixels, or depth.

    prediction: as `tasks.inference.predict` gives it for a batch of this one image.
    """
    if "boxes" in prediction:
        found = {name: values[0].cpu().numpy() for name, values in prediction.items()}
        return instances_picture(image, found, names, palette)
    if "semantic" in prediction:
        return overlay(image, labels(prediction), names, palette)
    return depth_picture(image, prediction["depth"][0].float().cpu().numpy())


def instances_picture(
    image: np.ndarray, found: Mapping[str, np.ndarray], names: Sequence[str], palette: Sequence[Sequence[int]]
) -> Image.Image:
    """The image [H, W, 3] beside itself with the objects whose score is at least SHOWN: mask, box, class and score.

    found: "boxes" [n, 4], "labels", "scores" [n] and "masks" bool [n, H, W].
    """
    chosen = np.flatnonzero(found["scores"] >= SHOWN)[::-1]  # the best last, on top of the others
    big = enlarged(image)
    factor = big.shape[0] // image.shape[0]
    grey = (big @ np.array([0.299, 0.587, 0.114]))[..., None].repeat(3, 2)
    for i in chosen:
        mask = enlarged(found["masks"][i], factor)
        inner = _inner(mask)
        colour = np.asarray(palette[found["labels"][i]], float)
        grey[inner] = 0.45 * grey[inner] + 0.55 * colour
        grey[mask & ~inner] = 0.35 * colour
    picture = Image.fromarray(grey.astype(np.uint8))
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(13)
    for i in chosen:
        name, fill = names[found["labels"][i]], tuple(palette[found["labels"][i]])
        x1, y1, x2, y2 = (found["boxes"][i] * factor).round().tolist()
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=fill, width=2)
        text = f"{name} {100 * found['scores'][i]:.0f}"
        left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
        x, y = min(x1, picture.width - right - 4), max(0, y1 - bottom - 4)
        pen.rectangle((x, y, x + right + 4, y + bottom + 3), fill=fill)
        dark = np.dot(fill, (0.299, 0.587, 0.114)) > 140
        pen.text((x + 2, y + 1), text, fill="black" if dark else "white", font=font)
    whole = Image.new("RGB", (2 * picture.width, picture.height))
    whole.paste(Image.fromarray(big), (0, 0))
    whole.paste(picture, (picture.width, 0))
    present = [int(c) for c in np.unique(found["labels"][chosen])]
    none = f"nothing with a score of {100 * SHOWN:.0f} or more"
    return with_legend(whole, [(names[c], tuple(palette[c])) for c in present], none)


def _inner(mask: np.ndarray) -> np.ndarray:
    """A mask [H, W] without the pixels at its edge."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return inner


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
