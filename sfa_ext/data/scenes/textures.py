"""Surface colours: plain, simple patterns, and the photographs that ship inside scikit-image."""

from __future__ import annotations

import functools
import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sfa_ext.data.errors import DataError

# File and the square cut out of it: left, top, and side as a fraction of the shorter edge. The retina's black border
# stays out.
_PHOTOGRAPHS = (
    ("brick.png", 0, 0, 1),
    ("grass.png", 0, 0, 1),
    ("gravel.png", 0, 0, 1),
    ("coffee.png", 0.2, 0, 1),
    ("chelsea.png", 0.25, 0, 1),
    ("astronaut.png", 0, 0, 1),
    ("astronaut.png", 0.05, 0.45, 0.5),
    ("rocket.jpg", 0.1, 0, 1),
    ("motorcycle_left.png", 0.2, 0, 1),
    ("coins.png", 0.1, 0, 1),
    ("ihc.png", 0, 0, 1),
    ("page.png", 0, 0, 1),
    ("text.png", 0.5, 0, 1),
    ("moon.png", 0, 0, 1),
    ("retina.jpg", 0.18, 0.18, 0.64),
    ("camera.png", 0, 0, 1),
)
N_PHOTOGRAPHS = len(_PHOTOGRAPHS)
_TILE = 256
_MEAN = np.float32(0.53)  # of all photographs, once they are made equally bright
_LEVELS = 7
PATTERNS = ("checker", "stripes", "waves")


def require_photographs() -> Path:
    """The folder of scikit-image's photographs, found without importing it.

    Raises:
        DataError: scikit-image is not installed, or without its data.
    """
    spec = importlib.util.find_spec("skimage")
    folder = Path(spec.origin).parent / "data" if spec is not None and spec.origin else None
    if folder is None or not (folder / _PHOTOGRAPHS[0][0]).is_file():
        raise DataError(
            "the target scenes are textured with photographs from scikit-image, which is missing: "
            "pip install scikit-image"
        )
    return folder


@functools.lru_cache(maxsize=1)
def _atlas() -> tuple[np.ndarray, np.ndarray]:
    """All photographs as mirrored tiles at every level of detail: texels uint8 [N, 3], offset of each level [P, L]."""
    from PIL import Image

    folder = require_photographs()
    texels, offsets, position = [], np.zeros((N_PHOTOGRAPHS, _LEVELS), np.int32), 0
    for number, (name, left, top, side) in enumerate(_PHOTOGRAPHS):
        with Image.open(folder / name) as opened:
            image = opened.convert("RGB")
        edge = min(image.size) * side
        box = (image.width * left, image.height * top, image.width * left + edge, image.height * top + edge)
        shift = min(0, image.width - box[2]), min(0, image.height - box[3])
        box = (box[0] + shift[0], box[1] + shift[1], box[2] + shift[0], box[3] + shift[1])
        values = np.asarray(image.resize((_TILE, _TILE), Image.Resampling.LANCZOS, box=box), np.float32)
        # A dark photograph would make a dark solid, whose shape nobody could see.
        values = np.clip((values + 10) * np.clip(135 / (values.mean() + 10), 0.7, 2.2), 0, 255)
        values = np.concatenate([values, values[:, ::-1]], 1)
        values = np.concatenate([values, values[::-1]], 0)
        for level in range(_LEVELS):
            offsets[number, level] = position
            texels.append(np.rint(values).astype(np.uint8).reshape(-1, 3))
            position += len(texels[-1])
            values = values.reshape(len(values) // 2, 2, len(values) // 2, 2, 3).mean((1, 3))
    return np.concatenate(texels), offsets


@dataclass(frozen=True)
class Material:
    """What a surface is painted with.

    Attributes:
        kind: "plain", "photo" or one of `PATTERNS`.
        colours: two RGB colours in [0, 1]; a photograph is multiplied by the first.
        photo: number of the photograph.
        tile: metres that one photograph, or one period of a pattern, covers.
        turned: the texture lies on its side.
        offset: metres by which the texture is shifted, [2].
        gloss: strength of the highlight.
        contrast: how much of a photograph's contrast is left; at 0 it is a plain grey.
    """

    kind: str
    colours: tuple[tuple[float, float, float], tuple[float, float, float]]
    photo: int = 0
    tile: float = 1.0
    turned: bool = False
    offset: tuple[float, float] = (0.0, 0.0)
    gloss: float = 0.0
    contrast: float = 1.0

    @property
    def period(self) -> float:
        """Metres after which the texture repeats: a photograph is followed by its mirror image."""
        return self.tile * 2 if self.kind == "photo" else self.tile

    def colour(self, uv: tuple[np.ndarray, np.ndarray], pixel: np.ndarray) -> np.ndarray:
        """RGB [3, R] at surface coordinates in metres, seen with pixels of `pixel` metres."""
        first = np.array(self.colours[0], np.float32)[:, None]
        if self.kind == "plain":
            return np.repeat(first, len(pixel), 1)
        u, v = uv[::-1] if self.turned else uv
        u, v = u + np.float32(self.offset[0]), v + np.float32(self.offset[1])
        if self.kind == "photo":
            return (_MEAN + np.float32(self.contrast) * (self._photograph(u, v, pixel) - _MEAN)) * first
        second = np.array(self.colours[1], np.float32)[:, None]
        turn = np.float32(2 * math.pi / self.tile)
        a, b = np.sin(u * turn), np.sin(v * turn)
        if self.kind == "waves":
            weight = 0.5 + 0.5 * a * b
        else:
            wave = a * b if self.kind == "checker" else a
            # Softened over about a pixel, so that far patterns fade instead of flickering.
            weight = np.clip(0.5 + wave / np.maximum(pixel * turn, np.float32(0.02)), 0, 1)
        return second + (first - second) * weight

    def _photograph(self, u: np.ndarray, v: np.ndarray, pixel: np.ndarray) -> np.ndarray:
        texels, offsets = _atlas()
        scale = np.float32(_TILE / self.tile)
        level = np.clip(np.log2(np.maximum(pixel * scale, np.float32(1))), 0, _LEVELS - 1).astype(np.int32)
        i = np.floor(u * scale).astype(np.int32) & (2 * _TILE - 1)
        j = np.floor(v * scale).astype(np.int32) & (2 * _TILE - 1)
        width = np.right_shift(2 * _TILE, level)
        index = offsets[self.photo][level] + np.right_shift(j, level) * width + np.right_shift(i, level)
        return texels[index].T.astype(np.float32) * np.float32(1 / 255)


def surface_coordinates(
    p: np.ndarray, normal: np.ndarray, period: float, wrapped: bool, around: float
) -> tuple[np.ndarray, np.ndarray]:
    """Texture coordinates in metres of points [3, R] in metres.

    Flat faces take the two coordinates along them; a wrapped side runs around the axis, `around` metres in all, so that
    whole periods meet at the seam.
    """
    x, y, z = np.abs(normal)
    if wrapped:
        repeats = max(1, round(around / period))
        side = z < 0.85 * np.sqrt(x * x + y * y + z * z)
        angle = np.arctan2(p[1], p[0]) * np.float32(repeats * period / (2 * math.pi))
        return np.where(side, angle, p[0]), np.where(side, p[2], p[1])
    on_x = (x >= y) & (x >= z)
    on_z = (z > x) & (z > y)
    return np.where(on_x, p[1], p[0]), np.where(on_z, p[1], p[2])
