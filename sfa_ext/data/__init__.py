"""Data sets: the embedded scenes and readers for data sets in their own folder layouts."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from sfa_ext.data.errors import DataError

# Name -> module and class; a module is imported when its data set is asked for.
DATASETS: dict[str, tuple[str, str]] = {
    "ade20k": ("sfa_ext.data.ade20k", "ADE20K"),
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
    """The data set called `name`, made with its own settings.

    Raises:
        ValueError: an unknown name or setting; the message lists the known ones.
        DataError: the data cannot be read.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; the known ones are {', '.join(sorted(DATASETS))}")
    module, attribute = DATASETS[name]
    dataset = getattr(importlib.import_module(module), attribute)
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
