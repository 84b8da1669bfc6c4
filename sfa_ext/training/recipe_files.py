"""Recipes as files: finding them by name, and what one takes over from others."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

_BASES = "bases"  # holds parts of recipes, which only others can name


def names() -> list[str]:
    """Names of the recipes in the package."""
    return sorted(path.stem for path in _folder().rglob("*.yaml") if path.parent.name != _BASES)


def find(source: str | Path) -> Path:
    """Path of a recipe file or of a recipe in the package. Raises FileNotFoundError, listing the known names."""
    path = Path(source)
    if path.is_dir() and (path / "config.yaml").is_file():
        return path / "config.yaml"
    if path.is_file():
        return path
    if inside := _inside(str(source)):
        return inside
    raise FileNotFoundError(f"recipe {str(source)!r}: no such file, and no recipe of the package: {', '.join(names())}")


def read(path: Path, before: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a recipe file, on top of those of the recipes that its key "extends" names.

    "extends" is a name or a list of them: files, their paths counted from the file's own folder, or recipes of the
    package. Mappings are merged key by key, a later one going over an earlier one and the file's own over all. Where
    the `name` of a part changes, its former `settings` are dropped: they are another part's.

    before: the files that led here.

    Raises FileNotFoundError for a name that is not there, ValueError for a file that is no YAML of keys and values, or
    that extends itself.
    """
    if path.resolve() in before:
        raise ValueError(f"recipe {path}: extends itself, by way of {', '.join(p.name for p in before)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path}: is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ValueError(f"recipe {path}: must hold keys and values, got {type(values).__name__}")
    extended = values.pop("extends", [])
    extended = [extended] if isinstance(extended, str) else extended
    if not isinstance(extended, list) or not all(isinstance(name, str) for name in extended):
        raise ValueError(f"recipe {path}: extends must be the name of a recipe or a list of names, got {extended!r}")
    merged: dict[str, Any] = {}
    for name in extended:
        merged = _merge(merged, read(_beside(path, name), (*before, path.resolve())))
    return _merge(merged, values)


def _beside(path: Path, name: str) -> Path:
    if (file := path.parent / name).is_file():
        return file
    if inside := _inside(name):
        return inside
    raise FileNotFoundError(f"recipe {path}: extends {name!r}, which is no file in its folder and no recipe")


def _inside(name: str) -> Path | None:
    if os.sep in name:
        return None
    return next(_folder().rglob(f"{name.removesuffix('.yaml')}.yaml"), None)


def _folder() -> Path:
    return Path(str(resources.files("sfa_ext"))) / "recipes"


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    if "name" in over and "name" in under and over["name"] != under["name"]:
        under = {key: value for key, value in under.items() if key != "settings"}
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
