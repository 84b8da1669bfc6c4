"""Reader of COCO's instances, as its makers pack them (train2017, val2017, annotations_trainval2017)."""

from __future__ import annotations

import colorsys
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as rle
from torchvision import tv_tensors

from sfa_ext.data.errors import DataError
from sfa_ext.data.folders import FolderDataset, check_split, find_root
from sfa_ext.data.pixels import read_image, size_of

_FIELDS = ("category_id", "bbox", "segmentation", "iscrowd", "area")


class COCO(FolderDataset):
    """COCO 2017: 118287 training or 5000 validation images with boxes, masks and labels of 80 classes.

    Reads annotations/instances_SPLITYEAR.json and SPLITYEAR/*.jpg. Classes stand in the order of their category ids,
    which have gaps: `category_ids` (a tuple) has the id of each class. Any data set in this format will do.

    Args:
        root: the folder that holds annotations and the folders of images, or one that holds it as "coco".
        split: "train" or "val".
        year: the part of the names that follows the split's.
        skip_empty: leaves out images without an instance to train on (one that is no crowd), as is usual in training.

    A sample holds "image" tv Image uint8 [3, H, W], "boxes" tv BoundingBoxes float32 [n, 4] (XYXY, the annotation's
    own numbers), "labels" int64 [n], "masks" tv Mask bool [n, H, W] (polygons and run lengths as pycocotools draws
    them), "crowd" bool [n], "area" float32 [n], "image_id" int and "name" str.

    Raises:
        ValueError: an unknown split.
        DataError: no folder or JSON file there, or one that is no instances file; when a sample is read: a file that is
            missing, truncated, no image or of another size than the annotations say, or an outline that cannot be
            drawn.
    """

    folder = "coco"
    marks = ("annotations/instances_*.json",)
    splits = ("train", "val")

    def __init__(
        self, root: str | Path, split: str = "train", year: str | int = 2017, skip_empty: bool = False
    ) -> None:
        check_split(split, self.splits, " (the test annotations are not public)")
        self.root = find_root(root, ("annotations",), self.folder)
        self._images = self.root / f"{split}{year}"
        self._file = self.root / "annotations" / f"instances_{split}{year}.json"
        whole = _read_instances(self._file)
        try:
            self._take(whole, skip_empty)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"{self._file}: is no file of COCO instances ({type(error).__name__}: {error})") from error
        if not self.names:
            raise DataError(f"{self._file}: holds no images{' with instances' if skip_empty else ''}")

    def _take(self, whole: dict[str, Any], skip_empty: bool) -> None:
        categories = sorted(whole["categories"], key=lambda c: int(c["id"]))
        self.category_ids = tuple(int(c["id"]) for c in categories)
        self.class_names = tuple(str(c["name"]) for c in categories)
        self.object_classes = tuple(range(len(categories)))
        self.palette = _palette(len(categories))
        self._class_of = {number: place for place, number in enumerate(self.category_ids)}
        by_image: dict[int, list[dict]] = defaultdict(list)
        for annotation in whole["annotations"]:
            by_image[annotation["image_id"]].append(annotation)
        images = sorted(whole["images"], key=lambda i: int(i["id"]))
        if skip_empty:
            images = [i for i in images if any(_trainable(a) for a in by_image[i["id"]])]
        self.names = [str(i["file_name"]) for i in images]
        self._ids = np.array([i["id"] for i in images], np.int64)
        self._sizes = np.array([(i["height"], i["width"]) for i in images], np.int64).reshape(-1, 2)
        # As text in one buffer: as Python objects they would take several times as much, and be copied by every worker
        # process as soon as it counts a reference to one.
        texts = [json.dumps([{f: a[f] for f in _FIELDS} for a in by_image[i["id"]]]).encode() for i in images]
        self._ends = np.cumsum([0, *map(len, texts)])
        self._texts = np.frombuffer(bytearray(b"".join(texts)), np.uint8)

    def __len__(self) -> int:
        return len(self.names)

    def files(self, index: int) -> tuple[Path]:
        return (self._images / self.names[index],)

    def _read(self, index: int) -> dict[str, Any]:
        file = self.files(index)[0]
        image = read_image(file)
        height, width = size = tuple(map(int, self._sizes[index]))
        if tuple(image.shape[-2:]) != size:
            raise DataError(
                f"{file}: is {size_of(image.shape)} pixels but {self._file.name} says {width} x {height}; "
                "unpack the data set again"
            )
        found = json.loads(self._texts[self._ends[index] : self._ends[index + 1]].tobytes())
        try:
            instances = self._instances(found, height, width)
        except Exception as error:  # pycocotools raises bare Exception for an outline it does not know
            raise DataError(f"{self._file}: cannot read the instances of {file.name} ({error})") from error
        return {"image": image, **instances, "image_id": int(self._ids[index]), "name": Path(self.names[index]).stem}

    def _instances(self, found: list[dict], height: int, width: int) -> dict[str, Any]:
        boxes = np.array([a["bbox"] for a in found], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        masks = np.zeros((len(found), height, width), bool)
        for mask, annotation in zip(masks, found, strict=True):
            mask[:] = draw(annotation["segmentation"], height, width)
        return {
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy(boxes).float(), format="XYXY", canvas_size=(height, width)
            ),
            "labels": torch.tensor([self._class_of[a["category_id"]] for a in found], dtype=torch.int64),
            "masks": tv_tensors.Mask(torch.from_numpy(masks)),
            "crowd": torch.tensor([bool(a["iscrowd"]) for a in found], dtype=torch.bool),
            "area": torch.tensor([float(a["area"]) for a in found], dtype=torch.float32),
        }


def draw(outline: list | dict, height: int, width: int) -> np.ndarray:
    """The mask, bool [height, width], of COCO's "segmentation": polygons, or run lengths as numbers or as text."""
    if isinstance(outline, list):
        parts = rle.frPyObjects(outline, height, width) if outline else []
        return rle.decode(rle.merge(parts)).astype(bool) if parts else np.zeros((height, width), bool)
    if list(outline["size"]) != [height, width]:
        raise ValueError(f"run lengths of size {outline['size']} in an image of {[height, width]}")
    if isinstance(outline["counts"], list):
        outline = rle.frPyObjects(outline, height, width)
    return rle.decode(outline).astype(bool)


def _trainable(annotation: dict) -> bool:
    return not annotation["iscrowd"] and min(annotation["bbox"][2:]) > 0


def _read_instances(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            whole = json.load(file)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; unpack annotations_trainval2017.zip") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read, it is truncated or no JSON ({error})") from error
    if not isinstance(whole, dict) or not {"images", "annotations", "categories"} <= whole.keys():
        raise DataError(f"{path}: is no file of COCO instances, it must hold images, annotations and categories")
    return whole


def _palette(count: int) -> torch.Tensor:
    """Bright colours whose neighbours differ: hues a golden ratio apart. uint8 [count, 3]."""
    colours = [colorsys.hsv_to_rgb(c * 0.618034 % 1, (0.9, 0.6)[c % 2], (1.0, 0.8)[c % 2]) for c in range(count)]
    return (torch.tensor(colours).reshape(-1, 3) * 255).round().to(torch.uint8)
