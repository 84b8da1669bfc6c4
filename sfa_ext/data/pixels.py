"""Image files as arrays; a file that cannot be read is named in one line."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors

from sfa_ext.data.errors import DataError

# What Pillow raises on damaged files, found by cutting and flipping the bytes of JPEG and PNG files.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
_AGAIN = "unpack the data set again"


def read_image(path: Path) -> tv_tensors.Image:
    """The picture as tv Image uint8 [3, H, W]. Raises DataError for a file that is missing, truncated or no image."""
    return image_of(_decode(path, ("RGB",)))


def read_labels(path: Path, like: tv_tensors.Image, image_file: Path) -> np.ndarray:
    """A label map of one byte a pixel, uint8 [H, W], as large as the image `like` that was read from `image_file`.

    Raises DataError also for another size, and for pixels of another mode: a conversion would change labels.
    """
    return _as_large(path, _decode(path, ("L", "P"), "one byte a pixel"), like, image_file)


def read_depth(path: Path, like: tv_tensors.Image, image_file: Path, scale: float) -> tv_tensors.Mask:
    """A depth map of two bytes a pixel as tv Mask float32 [H, W] in metres: the value over `scale`; 0 = not measured.

    Raises DataError as `read_labels`.
    """
    modes = ("I;16", "I;16B", "I;16L", "I")
    values = _as_large(path, _decode(path, modes, "two bytes a pixel"), like, image_file)
    return tv_tensors.Mask(torch.from_numpy(values.astype(np.float32) / np.float32(scale)))


def image_of(pixels: np.ndarray) -> tv_tensors.Image:
    """uint8 [H, W, 3] as tv Image [3, H, W]."""
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).contiguous())


def size_of(shape: tuple[int, ...]) -> str:
    """A size [..., H, W] in words, width first."""
    return f"{shape[-1]} x {shape[-2]}"


def _decode(path: Path, modes: tuple[str, ...], wanted: str = "") -> np.ndarray:
    """The pixels of a file, which for modes ("RGB",) are converted and otherwise must be in one of them."""
    try:
        with Image.open(path) as file:
            if modes == ("RGB",):
                return np.array(file.convert("RGB"))
            if file.mode in modes:
                return np.array(file)
            mode = file.mode
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; {_AGAIN}") from None
    except _DAMAGE as error:
        text = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read, it is truncated or no image ({text})") from error
    raise DataError(f"{path}: must hold {wanted}, got mode {mode}")


def _as_large(path: Path, labels: np.ndarray, like: tv_tensors.Image, image_file: Path) -> np.ndarray:
    if labels.shape != tuple(like.shape[-2:]):
        raise DataError(
            f"{path}: is {size_of(labels.shape)} pixels but its image {image_file.name} is {size_of(like.shape)}; "
            f"{_AGAIN}"
        )
    return labels
