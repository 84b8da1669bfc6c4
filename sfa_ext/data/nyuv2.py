"""Reader of NYU Depth v2: the labelled set as its makers pack it (one .mat file), and folders of images with lists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from scipy.io import loadmat
from scipy.io.matlab import MatReadError
from torchvision import tv_tensors

from sfa_ext.data.depth_lists import DepthList
from sfa_ext.data.errors import DataError
from sfa_ext.data.folders import FolderDataset, check_split
from sfa_ext.data.pixels import image_of

_MAT, _SPLITS = "nyu_depth_v2_labeled.mat", "splits.mat"
_DEPTHS = {"raw": "rawDepths", "filled": "depths"}
_INDICES = {"train": "trainNdxs", "test": "testNdxs"}


class NYUv2Folders(DepthList):
    """NYUv2 as folders of images with 16-bit PNG of 1000 units a metre, by lists. Arguments and samples: `DepthList`.

    So come the 24231 training frames of most depth estimators, and the 654 official test images.
    """

    marks = ("nyu_*.txt", "nyudepthv2_*.txt")
    lists = {
        "train": ("nyu_train.txt", "nyudepthv2_train_files_with_gt.txt", "train.txt"),
        "test": ("nyu_test.txt", "nyudepthv2_test_files_with_gt.txt", "test.txt"),
    }
    scale = 1000.0
    image_folders = depth_folders = ("", "sync", "official_splits/test", "official_splits/train")


class NYUv2(FolderDataset):
    """NYUv2's labelled set: 1449 images, of which splits.mat assigns 795 to training and 654 to the test.

    Reads nyu_depth_v2_labeled.mat (MATLAB 7.3, which is HDF5) and, for a split, splits.mat beside it (any version).

    Args:
        root: the folder that holds the files.
        split: "train", "test" or "all"; the last needs no splits.mat.
        depths: "raw" (the sensor's, as published errors are measured on) or "filled" (holes inpainted).

    A sample holds "image" tv Image uint8 [3, H, W], "depth" tv Mask float32 [H, W] in metres (0 = not measured) and
    "name" str (the number of the image in the file, from 1).

    Raises:
        ValueError: an unknown split or kind of depths.
        DataError: a file that is missing, truncated, or holds something else.
    """

    marks = (_MAT,)
    splits = ("train", "test")

    def __init__(self, root: str | Path, split: str = "train", depths: str = "raw") -> None:
        check_split(split, (*self.splits, "all"))
        if depths not in _DEPTHS:
            raise ValueError(f"depths must be one of {', '.join(_DEPTHS)}; got {depths!r}")
        self.root = Path(root).expanduser()
        self._file, self._depths = self.root / _MAT, _DEPTHS[depths]
        count = self._count()
        self._rows = np.arange(count) if split == "all" else _rows(self.root / _SPLITS, _INDICES[split], count)
        self.palette = torch.zeros(0, 3, dtype=torch.uint8)

    def __len__(self) -> int:
        return len(self._rows)

    def files(self, index: int) -> tuple[Path]:
        return (self._file,)

    def _read(self, index: int) -> dict[str, Any]:
        row = int(self._rows[index])
        # Opened for each sample: a handle that worker processes inherit would share its place in the file.
        try:
            with _open(self._file) as file:
                image, depth = file["images"][row], file[self._depths][row]
        except OSError as error:
            raise DataError(f"{self._file}: image {row + 1} cannot be read, the file is damaged ({error})") from error
        # MATLAB counts the first dimension fastest: H x W x 3 x N there is N x 3 x W x H here.
        depth = np.where(np.isfinite(depth) & (depth > 0), depth, 0).astype(np.float32)
        return {
            "image": image_of(image.transpose(2, 1, 0)),
            "depth": tv_tensors.Mask(torch.from_numpy(np.ascontiguousarray(depth.T))),
            "name": f"{row + 1:04d}",
        }

    def _count(self) -> int:
        with _open(self._file) as file:
            if not {"images", self._depths} <= file.keys():
                raise DataError(
                    f"{self._file}: must hold images and {self._depths}; got {', '.join(file) or 'nothing'}"
                )
            images, depth = file["images"].shape, file[self._depths].shape
            if len(images) != 4 or images[1] != 3 or depth != (images[0], *images[2:]):
                raise DataError(
                    f"{self._file}: images must be H x W x 3 x N and {self._depths} H x W x N; "
                    f"got {images[::-1]} and {depth[::-1]}"
                )
            return images[0]


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; root must hold the {path.name} of NYU Depth v2") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read, it is truncated or no MATLAB 7.3 file ({error})") from error


def _rows(path: Path, name: str, count: int) -> np.ndarray:
    """The rows of one split, from 0. MATLAB counts from 1."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; it comes with NYU Depth v2 and says which images are for the test")
    try:
        if h5py.is_hdf5(path):
            with _open(path) as file:
                numbers = np.array(file[name])
        else:
            numbers = loadmat(path)[name]
    except KeyError:
        raise DataError(f"{path}: holds no {name}") from None
    except (OSError, ValueError, TypeError, MatReadError) as error:
        raise DataError(f"{path}: cannot be read, it is truncated or no MATLAB file ({error})") from error
    rows = np.sort(numbers.ravel().astype(np.int64)) - 1
    if not len(rows) or rows[0] < 0 or rows[-1] >= count:
        raise DataError(f"{path}: {name} must be numbers of the {count} images, from 1")
    return rows
