"""YAML files with overrides, read as typed dataclasses. The package ships folders of them, such as its recipes."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jsonargparse import ArgumentParser

T = TypeVar("T")
_BASES = "bases"  # a folder inside such a folder, which holds parts that only other files can name


def names(folder: str) -> list[str]:
    """Names of the files in a folder of the package."""
    return sorted(path.stem for path in _path(folder).rglob("*.yaml") if path.parent.name != _BASES)


def find(source: str | Path, folder: str, what: str) -> Path:
    """Path of the file `source`, or of that name in a folder of the package.

    Raises FileNotFoundError, with the nearest of the known names of that kind of file (`what`, such as "recipe").
    """
    if Path(source).is_file():
        return Path(source)
    if inside := _inside(str(source), folder):
        return inside
    known = names(folder)
    near = difflib.get_close_matches(str(source), known, cutoff=0.0)
    raise FileNotFoundError(
        f"{what} {str(source)!r}: no such file, and no {what} of the package; the nearest are {', '.join(near)}, "
        f"all {len(known)} are in {_path(folder)}"
    )


def read(path: Path, folder: str, what: str, before: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The values of a YAML file, on top of those of the files that its key "extends" names.

    "extends" is a name or a list of them: files, their paths counted from the file's own folder, or those of the
    package's `folder`. Mappings are merged key by key, a later one going over an earlier one and the file's own over
    all. Where the `name` of a part changes, its former `settings` are dropped: they are another part's.

    before: the files that led here.

    Raises FileNotFoundError for a name that is not there, ValueError for a file that is no YAML of keys and values, or
    that extends itself.
    """
    if path.resolve() in before:
        raise ValueError(f"{what} {path}: extends itself, by way of {', '.join(p.name for p in before)}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{what} {path}: is not valid YAML ({' '.join(str(error).split())})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{what} {path}: must hold keys and values, got {type(values).__name__}")
    extended = values.pop("extends", [])
    extended = [extended] if isinstance(extended, str) else extended
    if not isinstance(extended, list) or not all(isinstance(name, str) for name in extended):
        raise ValueError(f"{what} {path}: extends must be the name of a {what} or a list of names, got {extended!r}")
    merged: dict[str, Any] = {}
    for name in extended:
        beside = path.parent / name
        found = beside if beside.is_file() else _inside(name, folder)
        if found is None:
            raise FileNotFoundError(f"{what} {path}: extends {name!r}, which is no file in its folder and no {what}")
        merged = _merge(merged, read(found, folder, what, (*before, path.resolve())))
    return _merge(merged, values)


def arguments(overrides: Sequence[str]) -> list[str]:
    """Overrides "key.path=value" as `parse` takes them. Raises ValueError for another form."""
    for override in overrides:
        key, mark, _ = override.partition("=")
        if not mark or not key:
            raise ValueError(f"override {override!r}: must be written key=value, for example optim.lr=0.001")
    return [f"--{override}" for override in overrides]


def parse(kind: type[T], values: dict[str, Any], arguments: Sequence[str], where: str) -> T:
    """An object of dataclass `kind`. Raises ValueError for an unknown key or a wrong type, after `where`."""
    parser = ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_class_arguments(kind)
    try:
        base = parser.parse_object(values)
        made = parser.instantiate(parser.parse_args(list(arguments), namespace=base))
        return kind(**{f.name: getattr(made, f.name) for f in dataclasses.fields(kind)})
    except Exception as error:  # jsonargparse reports every kind of bad value through its own ArgumentError
        text = " ".join(str(error).split()).replace("unrecognized arguments: --", "unknown key: ")
        raise ValueError(f"{where}: {text}") from error


def _inside(name: str, folder: str) -> Path | None:
    if os.sep in name:
        return None
    return next(_path(folder).rglob(f"{name.removesuffix('.yaml')}.yaml"), None)


def _path(folder: str) -> Path:
    return Path(str(resources.files("sfa_ext"))) / folder


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    if "name" in over and "name" in under and over["name"] != under["name"]:
        under = {key: value for key, value in under.items() if key != "settings"}
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
