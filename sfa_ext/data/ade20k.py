"""Reader of ADE20K as its makers pack it for scene parsing (SceneParse150, the folder ADEChallengeData2016)."""

from __future__ import annotations

import colorsys
import operator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors

from sfa_ext.data.errors import DataError

_FOLDERS = {"train": "training", "val": "validation"}
_CLASSES = 150
_IGNORE = 255
_NAMES = (
    "wall; building; sky; floor; tree; ceiling; road; bed; windowpane; grass; cabinet; sidewalk; person; earth; door; "
    "table; mountain; plant; curtain; chair; car; water; painting; sofa; shelf; house; sea; mirror; rug; field; "
    "armchair; seat; fence; desk; rock; wardrobe; lamp; bathtub; railing; cushion; base; box; column; signboard; "
    "chest of drawers; counter; sand; sink; skyscraper; fireplace; refrigerator; grandstand; path; stairs; runway; "
    "case; pool table; pillow; screen door; stairway; river; bridge; bookcase; blind; coffee table; toilet; flower; "
    "book; hill; bench; countertop; stove; palm; kitchen island; computer; swivel chair; boat; bar; arcade machine; "
    "hovel; bus; towel; light; truck; tower; chandelier; awning; streetlight; booth; television; airplane; "
    "dirt track; apparel; pole; land; bannister; escalator; ottoman; bottle; buffet; poster; stage; van; ship; "
    "fountain; conveyer belt; canopy; washer; plaything; swimming pool; stool; barrel; basket; waterfall; tent; bag; "
    "minibike; cradle; oven; ball; food; step; tank; trade name; microwave; pot; animal; bicycle; lake; dishwasher; "
    "screen; blanket; sculpture; hood; sconce; vase; traffic light; tray; ashcan; fan; pier; crt screen; plate; "
    "monitor; bulletin board; shower; radiator; glass; clock; flag"
)
# Classes that SceneParse150 has but the 100 object classes of its instance segmentation challenge have not.
_STUFF = {
    0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77, 79,
    84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145,
}  # fmt: skip


class ADE20K(Dataset):
    """ADE20K's 20210 training or 2000 validation images with 150 classes.

    Reads images/{training,validation}/*.jpg and annotations/{training,validation}/*.png, whose label 0 (other) becomes
    255 and 1 to 150 become 0 to 149. Class names come from objectInfo150.txt where the folder has it.

    Args:
        root: the folder ADEChallengeData2016, or the one that holds it.
        split: "train" or "val".

    A sample holds "image" tv Image uint8 [3, H, W], "semantic" tv Mask uint8 [H, W] and "name" str.

    Raises:
        ValueError: an unknown split.
        DataError: a folder that is missing or empty, an image without labels or labels without an image; when a sample
            is read: a file that is truncated or no image, labels of another size than their image or out of range.
    """

    object_classes: tuple[int, ...] = tuple(c for c in range(_CLASSES) if c not in _STUFF)

    def __init__(self, root: str | Path, split: str = "train") -> None:
        if split not in _FOLDERS:
            raise ValueError(
                f"split must be one of {', '.join(_FOLDERS)} (the test labels are not public); got {split!r}"
            )
        self.root = _find_root(Path(root).expanduser())
        self._images = self.root / "images" / _FOLDERS[split]
        self._labels = self.root / "annotations" / _FOLDERS[split]
        self.names = _paired(_stems(self._images, ".jpg"), _stems(self._labels, ".png"), self._images, self._labels)
        self.class_names = _class_names(self.root / "objectInfo150.txt")
        self.palette = _palette()

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.names[operator.index(index)]
        image_file, label_file = self._images / f"{name}.jpg", self._labels / f"{name}.png"
        image = _decode(image_file, "RGB")
        labels = _decode(label_file, "L")
        if labels.shape != image.shape[:2]:
            raise DataError(
                f"{label_file}: is {_size(labels)} pixels but its image {image_file.name} is {_size(image)}; "
                "unpack the data set again"
            )
        if labels.max() > _CLASSES:
            raise DataError(f"{label_file}: holds label {labels.max()}, the largest of SceneParse150 is {_CLASSES}")
        # In uint8, 0 - 1 is 255.
        labels = labels - np.uint8(1)
        return {
            "image": tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1).contiguous()),
            "semantic": tv_tensors.Mask(torch.from_numpy(labels)),
            "name": name,
        }


def _find_root(root: Path) -> Path:
    for candidate in (root, root / "ADEChallengeData2016"):
        if (candidate / "images").is_dir() and (candidate / "annotations").is_dir():
            return candidate
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; root must be the unpacked ADEChallengeData2016")
    raise DataError(f"{root}: holds no images and annotations; root must be the unpacked ADEChallengeData2016")


def _stems(folder: Path, suffix: str) -> set[str]:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; unpack the data set again")
    stems = {file.stem for file in folder.iterdir() if file.suffix == suffix}
    if not stems:
        raise DataError(f"{folder}: holds no {suffix} files; unpack the data set again")
    return stems


def _paired(images: set[str], labels: set[str], image_folder: Path, label_folder: Path) -> list[str]:
    for lonely, folder, suffix in ((images - labels, label_folder, ".png"), (labels - images, image_folder, ".jpg")):
        if lonely:
            more = f" (and {len(lonely) - 1} more)" if len(lonely) > 1 else ""
            raise DataError(f"{folder / (min(lonely) + suffix)}: is missing{more}; unpack the data set again")
    return sorted(images)


def _decode(path: Path, mode: str) -> np.ndarray:
    """uint8 [H, W, 3] for mode "RGB", [H, W] for "L"; labels are never converted from another mode."""
    try:
        with Image.open(path) as file:
            if mode == "L" and file.mode not in ("L", "P"):
                raise DataError(f"{path}: must hold one byte a pixel, got mode {file.mode}")
            return np.array(file if mode == "L" else file.convert(mode))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; unpack the data set again") from None
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read, it is truncated or no image ({error})") from error


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]} x {array.shape[0]}"


def _class_names(path: Path) -> tuple[str, ...]:
    """The first synonym of each class in objectInfo150.txt, or the built-in names."""
    if not path.is_file():
        return tuple(name.strip() for name in _NAMES.split(";"))
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8", errors="replace").splitlines()[1:] if line]
    names = tuple(row[-1].split(",")[0].strip() for row in rows)
    if len(names) != _CLASSES or not all(names):
        raise DataError(f"{path}: must name {_CLASSES} classes, one a line after its heading; got {len(names)}")
    return names


def _palette() -> torch.Tensor:
    """150 colours whose neighbours differ: hues a golden ratio apart, in three brightnesses. uint8 [150, 3]."""
    colours = [
        colorsys.hsv_to_rgb(c * 0.618034 % 1, (0.85, 0.55, 0.7)[c % 3], (0.95, 0.85, 0.6)[c % 3])
        for c in range(_CLASSES)
    ]
    return (torch.tensor(colours) * 255).round().to(torch.uint8)
