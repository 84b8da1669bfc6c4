"""Examples in rows: image, truth, and what each method saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sfa_ext.tasks.overlay import blend, with_legend

_SCALE, _GAP, _HEAD = 2, 4, 22


def gallery(
    images: Sequence[np.ndarray],
    columns: Mapping[str, Sequence[np.ndarray]],
    names: Sequence[str],
    palette: Sequence[Sequence[int]],
) -> Image.Image:
    """One row an image (uint8 [H, W, 3], all of one size); `columns` maps a heading to label maps [H, W]."""
    height, width = (_SCALE * n for n in images[0].shape[:2])
    headings = ["image", *columns]
    size = (len(headings) * (width + _GAP) - _GAP, _HEAD + len(images) * (height + _GAP) - _GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, heading in enumerate(headings):
        draw.text((i * (width + _GAP) + 4, 3), heading, fill="black", font=font)
    for row, image in enumerate(images):
        cells = [_enlarge(image), *(blend(_enlarge(image), _enlarge(maps[row]), palette) for maps in columns.values())]
        for i, cell in enumerate(cells):
            sheet.paste(Image.fromarray(cell), (i * (width + _GAP), _HEAD + row * (height + _GAP)))
    present = np.unique(np.stack([m for maps in columns.values() for m in maps]))
    return with_legend(sheet, [(names[c], tuple(palette[c])) for c in present if c < len(names)])


def _enlarge(array: np.ndarray) -> np.ndarray:
    return array.repeat(_SCALE, 0).repeat(_SCALE, 1)
