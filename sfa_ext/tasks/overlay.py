"""A label map over its image, with a legend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SMALLEST_SIDE = 384  # smaller images are enlarged by whole factors, so that outlines and legend can be read


def enlarged(picture: np.ndarray, factor: int | None = None) -> np.ndarray:
    """A picture [H, W, ...], repeated by a whole factor: by default 1, or more where it is below SMALLEST_SIDE."""
    factor = factor or max(1, -(-SMALLEST_SIDE // min(picture.shape[:2])))
    return picture.repeat(factor, 0).repeat(factor, 1)


def colour(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """uint8 [H, W, 3] for labels [H, W]; 255 and other labels outside the palette are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = np.asarray(palette, np.uint8)[:256]
    return table[labels]


def overlay(
    image: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
    strength: float = 0.65,
) -> Image.Image:
    """The image [H, W, 3] beside itself under coloured classes with dark outlines, and a legend of those present."""
    image, labels = enlarged(image), enlarged(labels)
    pair = np.concatenate([image, blend(image, labels, palette, strength)], 1)
    present = [c for c in np.unique(labels) if c < len(names)]
    present.sort(key=lambda c: -(labels == c).sum())
    return with_legend(Image.fromarray(pair), [(names[c], tuple(palette[c])) for c in present])


def blend(
    image: np.ndarray, labels: np.ndarray, palette: Sequence[Sequence[int]], strength: float = 0.65
) -> np.ndarray:
    """uint8 [H, W, 3]: the image in grey under its classes' colours, with dark outlines between classes."""
    grey = image @ np.array([0.299, 0.587, 0.114])
    mixed = (1 - strength) * grey[..., None] + strength * colour(labels, palette)
    mixed[_outline(labels)] *= 0.35
    return mixed.astype(np.uint8)


def _outline(labels: np.ndarray) -> np.ndarray:
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    return edge


def with_legend(picture: Image.Image, entries: Sequence[tuple[str, tuple[int, ...]]], none: str = "") -> Image.Image:
    """The picture with a legend of (name, colour) below it, in as many lines as it needs; `none` where it is empty."""
    font, pad, box = ImageFont.load_default(14), 8, 14
    places, x, y = [], pad, pad
    for name, _ in entries:
        width = box + 6 + int(font.getlength(name)) + 14
        if x + width > picture.width and x > pad:
            x, y = pad, y + box + 8
        places.append((x, y))
        x += width
    whole = Image.new("RGB", (picture.width, picture.height + y + box + pad), "white")
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    for (name, fill), (x, y) in zip(entries, places, strict=True):
        top = picture.height + y
        draw.rectangle((x, top, x + box, top + box), fill=fill, outline="black")
        draw.text((x + box + 6, top - 1), name, fill="black", font=font)
    if not entries:
        draw.text((pad, picture.height + pad - 1), none, fill="black", font=font)
    return whole
