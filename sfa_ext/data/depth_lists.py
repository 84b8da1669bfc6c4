"""Depth data sets whose samples are named by a text file, as the published splits of KITTI and NYUv2 are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sfa_ext.data.errors import DataError
from sfa_ext.data.folders import FolderDataset, check_split
from sfa_ext.data.pixels import read_depth, read_image


class DepthList(FolderDataset):
    """Images and 16-bit depth maps, one pair a line of a text file: "image depth focal-length".

    Paths count from `root`, or from one of the folders in it that `image_folders` and `depth_folders` name; a slash at
    their start does not matter. A pair whose depth is "None" is left out: those frames have no ground truth.

    A subclass sets `lists` (the usual names of a split's file), `scale` (units of the depth maps in a metre) and the
    folders.

    Args:
        root: the folder that holds images, depth maps and the text files.
        split: one of `splits`.
        list: another text file, its path counted from `root`.

    A sample holds "image" tv Image uint8 [3, H, W], "depth" tv Mask float32 [H, W] in metres (0 = not measured) and
    "name" str (the image's path).

    Raises:
        ValueError: an unknown split.
        DataError: no such folder or text file, or a line of it without two paths; when a sample is read: a file that is
            missing, truncated or no image, or a depth map that is not one of 16 bits as large as its image.
    """

    splits = ("train", "test")
    lists: dict[str, tuple[str, ...]]
    scale: float
    image_folders: tuple[str, ...] = ("",)
    depth_folders: tuple[str, ...] = ("",)

    def __init__(self, root: str | Path, split: str = "train", list: str | Path | None = None) -> None:
        check_split(split, self.splits)
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise DataError(f"{self.root}: no such folder; root must hold images, depth maps and the split's text file")
        self.list_file = self._find_list(split) if list is None else self.root / Path(list).expanduser()
        self._pairs = [*_pairs(self.list_file)]
        if not self._pairs:
            raise DataError(f"{self.list_file}: names no image with a depth map")
        images, depths = (_Finder(self.root, f) for f in (self.image_folders, self.depth_folders))
        self._files = [(images(image), depths(depth)) for image, depth in self._pairs]
        self.palette = torch.zeros(0, 3, dtype=torch.uint8)

    def _find_list(self, split: str) -> Path:
        for name in self.lists[split]:
            if (self.root / name).is_file():
                return self.root / name
        raise DataError(
            f"{self.root}: holds none of {', '.join(self.lists[split])}, the list of the {split} split with a line "
            '"image depth focal-length" a sample; give it with the setting list'
        )

    def __len__(self) -> int:
        return len(self._files)

    def files(self, index: int) -> tuple[Path, Path]:
        return self._files[index]

    def _read(self, index: int) -> dict[str, Any]:
        image_file, depth_file = self.files(index)
        image = read_image(image_file)
        depth = read_depth(depth_file, image, image_file, self.scale)
        return {"image": image, "depth": depth, "name": self._pairs[index][0].rpartition(".")[0]}


class _Finder:
    """Path of a file named in a list: in the first of some folders that has it, else where the list says."""

    def __init__(self, root: Path, folders: tuple[str, ...]) -> None:
        self._candidates = [root / folder for folder in folders]

    def __call__(self, name: str) -> Path:
        for place, folder in enumerate(self._candidates):
            if (path := folder / name).is_file():
                # The next file is most likely where this one was.
                self._candidates.insert(0, self._candidates.pop(place))
                return path
        return self._candidates[0] / name


def _pairs(path: Path) -> Iterator[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; it must name the samples of the split") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error})") from error
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words:
            continue
        if len(words) < 2:
            raise DataError(f'{path}: line {number} must be "image depth focal-length", got {line!r}')
        if words[1] != "None":
            yield words[0].lstrip("/"), words[1].lstrip("/")
