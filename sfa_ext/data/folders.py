"""What data sets in folders have in common: their files can be counted and missed before one of them is read."""

from __future__ import annotations

import abc
import operator
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from sfa_ext.data.errors import DataError


class FolderDataset(Dataset, abc.ABC):
    """A data set of files, of which each sample knows its own. Says nothing about whether they are there.

    A subclass sets `root`, `splits` (values of its setting "split"), `folder` (what the data set's folder is called, if
    it has a name) and `marks` (glob patterns: where one of them finds something, the folder is one of this format), and
    has `files` and `_read`.
    """

    root: Path
    splits: tuple[str, ...]
    folder: str = ""
    marks: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    object_classes: tuple[int, ...] = ()

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def files(self, index: int) -> tuple[Path, ...]:
        """The files that sample `index` is read from."""

    @abc.abstractmethod
    def _read(self, index: int) -> dict[str, Any]: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self._read(index % len(self))


def missing_files(dataset: Any) -> list[Path]:
    """The files of a data set that are not there, each once, in order. Data sets without files miss none.

    Lists each folder once instead of asking for every file, which on a network's file system takes minutes.
    """
    if not isinstance(dataset, FolderDataset):
        return []
    wanted: dict[Path, dict[str, None]] = defaultdict(dict)
    for index in range(len(dataset)):
        for file in dataset.files(index):
            wanted[file.parent][file.name] = None
    return [folder / name for folder, names in wanted.items() for name in _absent(folder, names)]


def _absent(folder: Path, names: Iterable[str]) -> list[str]:
    try:
        there = {entry.name for entry in os.scandir(folder) if entry.is_file()}
    except OSError:
        there = set()
    return [name for name in names if name not in there]


def require_files(dataset: Any) -> None:
    """Raises DataError that names the first file of a data set that is not there and counts the others."""
    if missing := missing_files(dataset):
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise DataError(
            f"{missing[0]}: is missing{more}; unpack the data set again, `sfa data check {dataset.root}` names all"
        )


def find_root(root: str | Path, wanted: Iterable[str], name: str) -> Path:
    """The folder that holds all of `wanted`: `root`, or the one called `name` in it.

    Raises DataError, with what root must be.
    """
    root = Path(root).expanduser()
    for candidate in (root, root / name):
        if all((candidate / part).exists() for part in wanted):
            return candidate
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; root must be the unpacked {name}")
    raise DataError(f"{root}: holds no {' and '.join(wanted)}; root must be the unpacked {name}")


def check_split(split: str, known: Iterable[str], why: str = "") -> None:
    """Raises ValueError for a split that is not one of `known`."""
    if split not in known:
        raise ValueError(f"split must be one of {', '.join(known)}{why}; got {split!r}")


def stems(folder: Path, suffix: str) -> set[str]:
    """Names of the files in `folder` that end in `suffix`, without it. Raises DataError where there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; unpack the data set again")
    found = {entry.name.removesuffix(suffix) for entry in os.scandir(folder) if entry.name.endswith(suffix)}
    if not found:
        raise DataError(f"{folder}: holds no {suffix} files; unpack the data set again")
    return found
