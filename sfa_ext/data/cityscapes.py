"""Reader of Cityscapes with fine annotations, as its makers pack it (leftImg8bit_trainvaltest, gtFine_trainvaltest)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from sfa_ext.data.errors import DataError
from sfa_ext.data.folders import FolderDataset, check_split, find_root, stems
from sfa_ext.data.pixels import read_image, read_labels

# Of cityscapesScripts' table of labels: name, id in *_labelIds.png, colour. Position here = trainId.
_CLASSES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
_LARGEST = 33
_IGNORE = 255
_IMAGE, _LABELS = "_leftImg8bit.png", "_gtFine_labelIds.png"


def _train_ids() -> np.ndarray:
    """trainId of each id, uint8 [256]; 255 for ids that are not evaluated."""
    table = np.full(256, _IGNORE, np.uint8)
    table[[number for _, number, _ in _CLASSES]] = np.arange(len(_CLASSES), dtype=np.uint8)
    return table


class Cityscapes(FolderDataset):
    """Cityscapes' 2975 training or 500 validation images with its 19 classes.

    Reads leftImg8bit/SPLIT/CITY/*_leftImg8bit.png and gtFine/SPLIT/CITY/*_gtFine_labelIds.png; ids that are not
    evaluated become 255.

    Args:
        root: the folder that holds leftImg8bit and gtFine, or one that holds it as "cityscapes".
        split: "train" or "val".

    A sample holds "image" tv Image uint8 [3, H, W], "semantic" tv Mask uint8 [H, W] and "name" str (CITY_FRAME).

    Raises:
        ValueError: an unknown split.
        DataError: a folder that is missing or empty; when a sample is read: a file that is missing, truncated or no
            image, labels of another size than their image, or ids that Cityscapes does not have.
    """

    folder = "cityscapes"
    marks = ("leftImg8bit", "gtFine")
    splits = ("train", "val")
    class_names = tuple(name for name, _, _ in _CLASSES)
    object_classes = tuple(range(11, 19))  # those with instances: person to bicycle

    def __init__(self, root: str | Path, split: str = "train") -> None:
        check_split(split, self.splits, " (the test labels are not public)")
        self.root = find_root(root, ("leftImg8bit", "gtFine"), self.folder)
        self._images, self._labels = (self.root / kind / split for kind in ("leftImg8bit", "gtFine"))
        self._frames = sorted(_frames(self._images, _IMAGE) | _frames(self._labels, _LABELS))
        self.palette = torch.tensor([colour for _, _, colour in _CLASSES], dtype=torch.uint8)
        self._table = _train_ids()

    def __len__(self) -> int:
        return len(self._frames)

    def files(self, index: int) -> tuple[Path, Path]:
        city, name = self._frames[index]
        return self._images / city / f"{name}{_IMAGE}", self._labels / city / f"{name}{_LABELS}"

    def _read(self, index: int) -> dict[str, Any]:
        image_file, label_file = self.files(index)
        image = read_image(image_file)
        ids = read_labels(label_file, image, image_file)
        unknown = ids[(ids > _LARGEST) & (ids != _IGNORE)]
        if unknown.size:
            raise DataError(
                f"{label_file}: holds id {unknown.max()}, the largest of Cityscapes is {_LARGEST}; "
                "the file must be the one with labelIds"
            )
        semantic = tv_tensors.Mask(torch.from_numpy(self._table[ids]))
        return {"image": image, "semantic": semantic, "name": self._frames[index][1]}


def _frames(folder: Path, suffix: str) -> set[tuple[str, str]]:
    """City and name of all frames."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; unpack the data set again")
    cities = [city for city in folder.iterdir() if city.is_dir()]
    if not cities:
        raise DataError(f"{folder}: holds no folders of cities; unpack the data set again")
    return {(city.name, frame) for city in cities for frame in stems(city, suffix)}
