"""Reader of ADE20K as its makers pack it for scene parsing (SceneParse150, the folder ADEChallengeData2016)."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors

from sfa_ext.data.errors import DataError
from sfa_ext.data.folders import FolderDataset, check_split, find_root, stems
from sfa_ext.data.pixels import read_image, read_labels

_FOLDERS = {"train": "training", "val": "validation"}
_CLASSES = 150
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


class ADE20K(FolderDataset):
    """ADE20K's 20210 training or 2000 validation images with 150 classes.

    Reads images/{training,validation}/*.jpg and annotations/{training,validation}/*.png, whose label 0 (other) becomes
    255 and 1 to 150 become 0 to 149. Class names come from objectInfo150.txt where the folder has it.

    Args:
        root: the folder ADEChallengeData2016, or the one that holds it.
        split: "train" or "val".

    A sample holds "image" tv Image uint8 [3, H, W], "semantic" tv Mask uint8 [H, W] and "name" str.

    Raises:
        ValueError: an unknown split.
        DataError: a folder that is missing or empty; when a sample is read: a file that is missing, truncated or no
            image, labels of another size than their image or out of range.
    """

    folder = "ADEChallengeData2016"
    marks = ("images/training", "images/validation", "annotations/training", "annotations/validation")
    splits = tuple(_FOLDERS)
    object_classes = tuple(c for c in range(_CLASSES) if c not in _STUFF)

    def __init__(self, root: str | Path, split: str = "train") -> None:
        check_split(split, self.splits, " (the test labels are not public)")
        self.root = find_root(root, ("images", "annotations"), self.folder)
        self._images = self.root / "images" / _FOLDERS[split]
        self._labels = self.root / "annotations" / _FOLDERS[split]
        self.names = sorted(stems(self._images, ".jpg") | stems(self._labels, ".png"))
        self.class_names = _class_names(self.root / "objectInfo150.txt")
        self.palette = _palette()

    def __len__(self) -> int:
        return len(self.names)

    def files(self, index: int) -> tuple[Path, Path]:
        return self._images / f"{self.names[index]}.jpg", self._labels / f"{self.names[index]}.png"

    def _read(self, index: int) -> dict[str, Any]:
        image_file, label_file = self.files(index)
        image = read_image(image_file)
        labels = read_labels(label_file, image, image_file)
        if labels.max() > _CLASSES:
            raise DataError(f"{label_file}: holds label {labels.max()}, the largest of SceneParse150 is {_CLASSES}")
        # In uint8, 0 - 1 is 255, the label of what is ignored.
        semantic = tv_tensors.Mask(torch.from_numpy(labels - np.uint8(1)))
        return {"image": image, "semantic": semantic, "name": self.names[index]}


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
