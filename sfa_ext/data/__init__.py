"""Data sets: the embedded scenes and readers for data sets in their own folder layouts.

A data set is a torch Dataset with `class_names` (a tuple of str, empty where there are no classes), `object_classes`
(positions in `class_names`: the classes that have instances) and `palette` (uint8 [C, 3]). A sample is a dict of
    "image"     tv Image uint8 [3, H, W]
    "semantic"  tv Mask uint8 [H, W], a position in `class_names` or 255 = not labelled
    "depth"     tv Mask float32 [H, W] in metres, 0 = not measured
    "boxes"     tv BoundingBoxes float32 [n, 4], XYXY in pixels, the far corner outside the object (as COCO's x + w)
    "labels"    int64 [n], positions in `class_names`
    "masks"     tv Mask bool [n, H, W]
    "crowd"     bool [n], regions that are neither trained nor counted (COCO's iscrowd); absent: there are none
    "area"      float32 [n], pixels of each instance in the annotation's own words (COCO's area); absent: the mask's
    "image_id"  int, the number by which the data set's own annotations know the image
    "label"     int, the class of the whole image
    "name"      str
of which it has those that its annotations give; boxes, labels and masks come together. Transforms keep all of them in
step with the image. In a batch (`loading.collate`) "image" (float32, normalised), "semantic" (int64) and "depth" are
tensors, padded on the right and below to the largest image; "label" is a tensor, everything else a list with one entry
an image. The masks of an image have its own size, before padding. The loaders add "unreadable" (dict) where samples
could not be read, which `Unreadable` takes out again.
"""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from sfa_ext.data.errors import DataError

# Name -> module and class; a module is imported when its data set is asked for.
DATASETS: dict[str, tuple[str, str]] = {
    "ade20k": ("sfa_ext.data.ade20k", "ADE20K"),
    "cityscapes": ("sfa_ext.data.cityscapes", "Cityscapes"),
    "coco": ("sfa_ext.data.coco", "COCO"),
    "kitti": ("sfa_ext.data.kitti", "KITTI"),
    "nyuv2": ("sfa_ext.data.nyuv2", "NYUv2"),
    "nyuv2-folders": ("sfa_ext.data.nyuv2", "NYUv2Folders"),
    "scenes": ("sfa_ext.data.scenes", "Scenes"),
}
# These need torchvision; processes that only render scenes must not load it.
_LAZY = {
    "collate": "sfa_ext.data.loading",
    "loader": "sfa_ext.data.loading",
    "eval_loader": "sfa_ext.data.loading",
    "train_transform": "sfa_ext.data.augment",
    "eval_transform": "sfa_ext.data.augment",
    "normalise": "sfa_ext.data.augment",
}

__all__ = ["DATASETS", "DataError", "build", *_LAZY]


def build(name: str, **settings: Any) -> Any:
    """The data set called `name`, made with its own settings, after a look at whether all of its files are there.

    Raises:
        ValueError: an unknown name or setting; the message lists the known ones.
        DataError: the data cannot be read, or a file is missing.
    """
    from sfa_ext.data.folders import require_files

    dataset = construct(name, **settings)
    require_files(dataset)
    return dataset


def dataset_class(name: str) -> type:
    """The class of the data set called `name`. Raises ValueError for an unknown one, listing the known ones."""
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; the known ones are {', '.join(sorted(DATASETS))}")
    module, attribute = DATASETS[name]
    return getattr(importlib.import_module(module), attribute)


def construct(name: str, **settings: Any) -> Any:
    """As `build`, but files may be missing."""
    dataset = dataset_class(name)
    known = inspect.signature(dataset).parameters
    for setting in settings:
        if setting not in known:
            raise ValueError(f"unknown setting {setting!r} of data set {name!r}; the known ones are {', '.join(known)}")
    for parameter in known.values():
        if parameter.default is parameter.empty and parameter.name not in settings:
            raise ValueError(f"data set {name!r} needs the setting {parameter.name!r}")
    return dataset(**settings)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
