"""Folders of a few small pictures in each data set's own layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (64, 80)
COUNT = {"train": 2, "val": 1}


def _picture(path: Path, seed: int) -> None:
    _save(path, np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), np.uint8))


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _blocks(values: list[int], seed: int) -> np.ndarray:
    """A map of 4 x 5 blocks, each of one of the values."""
    chosen = np.random.default_rng(seed).choice(values, (4, 5)).astype(np.uint8)
    return chosen.repeat(SIZE[0] // 4, 0).repeat(SIZE[1] // 5, 1)


def ade20k(root: Path) -> None:
    for split, folder in {"train": "training", "val": "validation"}.items():
        for i in range(COUNT[split]):
            _picture(root / "images" / folder / f"ADE_{split}_{i}.jpg", i)
            _save(root / "annotations" / folder / f"ADE_{split}_{i}.png", _blocks([0, 1, 2, 13], i))


def cityscapes(root: Path) -> None:
    for split, count in COUNT.items():
        for i in range(count):
            frame = f"{split}/ulm/ulm_{i:06d}_000019"
            _picture(root / "leftImg8bit" / f"{frame}_leftImg8bit.png", i)
            _save(root / "gtFine" / f"{frame}_gtFine_labelIds.png", _blocks([0, 7, 8, 26], i))


def coco(root: Path) -> None:
    (root / "annotations").mkdir(parents=True)
    for split, count in COUNT.items():
        annotations = []
        for i in range(count):
            _picture(root / f"{split}2017" / f"{i:012d}.jpg", i)
            for n, (x, y, w, h) in enumerate(((4, 6, 40, 30), (30, 20, 44, 40))):
                corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotations.append(
                    {"id": 10 * i + n, "image_id": i, "category_id": (1, 90)[n], "iscrowd": 0, "bbox": [x, y, w, h],
                     "area": w * h, "segmentation": [corners]}
                )  # fmt: skip
        whole = {
            "images": [
                {"id": i, "file_name": f"{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]} for i in range(count)
            ],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
        }
        (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(whole))


def _depth(root: Path, lists: dict[str, str], scale: int) -> None:
    for split, count in (("train", COUNT["train"]), ("test", COUNT["val"])):
        lines = []
        for i in range(count):
            _picture(root / split / f"rgb_{i}.png", i)
            metres = np.random.default_rng(i).uniform(1, 9, SIZE)
            _save(root / split / f"depth_{i}.png", (metres * scale).astype(np.uint16))
            lines.append(f"{split}/rgb_{i}.png {split}/depth_{i}.png 500.0\n")
        (root / lists[split]).write_text("".join(lines))


def nyuv2(root: Path) -> None:
    _depth(root, {"train": "nyu_train.txt", "test": "nyu_test.txt"}, 1000)


def kitti(root: Path) -> None:
    _depth(root, {"train": "kitti_eigen_train.txt", "test": "kitti_eigen_test.txt"}, 256)


WRITERS = {"ade20k": ade20k, "cityscapes": cityscapes, "coco": coco, "nyuv2-folders": nyuv2, "kitti": kitti}
