"""Data sets: the embedded scenes and readers for data sets in their own folder layouts."""

from __future__ import annotations

import importlib
from typing import Any

from sfa_ext.data.errors import DataError

__all__ = ["DATASETS", "DataError", "build"]

# Name -> module and class; a module is imported when its data set is asked for.
DATASETS: dict[str, tuple[str, str]] = {
    "scenes": ("sfa_ext.data.scenes", "Scenes"),
}


def build(name: str, **settings: Any) -> Any:
    """The data set called `name`, made with its own settings.

    Raises:
        ValueError: an unknown name or setting; the message lists the known ones.
        DataError: the data cannot be read.
    """
    if name not in DATASETS:
        raise ValueError(f"unknown data set {name!r}; the known ones are {', '.join(sorted(DATASETS))}")
    module, attribute = DATASETS[name]
    return getattr(importlib.import_module(module), attribute)(**settings)
