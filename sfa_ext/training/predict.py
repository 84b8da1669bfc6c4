"""Predictions for image files, drawn so that a person can judge them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sfa_ext.data.augment import normalise
from sfa_ext.tasks import inference
from sfa_ext.tasks.pictures import draw
from sfa_ext.training.model import Model


def predict_files(model: Model, images: Sequence[str | Path], folder: str | Path) -> Iterator[tuple[Path, Path]]:
    """Writes a PNG of what the task finds in each image file into `folder`; yields (image, PNG) as they are done.

    All files are looked at first: a missing or unreadable one raises ValueError before anything is written.
    """
    folder = Path(folder)
    paths = [Path(image) for image in images]
    for path in paths:
        read_image(path)
    folder.mkdir(parents=True, exist_ok=True)
    for target, path in zip(_names(paths, folder), paths, strict=True):
        image = read_image(path)
        draw(image, predict(model, image), model.classes.names, model.classes.palette).save(target)
        yield path, target


def read_image(path: Path) -> np.ndarray:
    """The image as uint8 [H, W, 3]. Raises ValueError for a missing, truncated or foreign file, naming it."""
    try:
        with Image.open(path) as file:
            return np.asarray(file.convert("RGB"))
    except FileNotFoundError:
        raise ValueError(f"image {path}: no such file") from None
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"image {path}: cannot be read, it is truncated or no image ({error})") from error


def label_map(model: Model, image: np.ndarray) -> np.ndarray:
    """Class of each pixel, uint8 [H, W], for an image uint8 [H, W, 3] of any size."""
    return inference.labels(predict(model, image))


@torch.no_grad()
def predict(model: Model, image: np.ndarray) -> dict[str, Tensor]:
    """The task's prediction for an image uint8 [H, W, 3] of any size, as a batch of one."""
    device = next(model.task.parameters()).device
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    model.train(False)
    return model.predict(normalise(tensor)[None].to(device))


def _names(paths: Sequence[Path], folder: Path) -> list[Path]:
    """One name a picture; pictures of the same name in different folders are numbered."""
    seen: dict[str, int] = {}
    names = []
    for path in paths:
        count = seen.get(path.stem, 0)
        seen[path.stem] = count + 1
        names.append(folder / (f"{path.stem}.png" if not count else f"{path.stem}-{count}.png"))
    return names
