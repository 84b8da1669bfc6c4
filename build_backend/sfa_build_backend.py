"""PEP 517 backend: setuptools, with torch and nvcc as build requirements only where they are missing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cuda_toolkit import toolkit_requirement
from setuptools import build_meta
from setuptools.build_meta import (  # noqa: F401  (hooks that stay as they are)
    build_editable,
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)
from torch_location import OLDEST_TORCH, find_torch


def _with_missing(requires: list[str]) -> list[str]:
    torch = None if find_torch() else "torch>=" + ".".join(map(str, OLDEST_TORCH))
    return [*requires, *(package for package in (torch, toolkit_requirement()) if package)]


def get_requires_for_build_wheel(config_settings: dict | None = None) -> list[str]:
    return _with_missing(build_meta.get_requires_for_build_wheel(config_settings))


def get_requires_for_build_editable(config_settings: dict | None = None) -> list[str]:
    return _with_missing(build_meta.get_requires_for_build_editable(config_settings))


@contextmanager
def _fresh_build_folder() -> Iterator[None]:
    """setuptools packs everything it finds in its build folder, files of earlier builds included; give it a new one."""
    before = os.environ.get("DIST_EXTRA_CONFIG")
    with tempfile.TemporaryDirectory(prefix="sfa_build_") as folder:
        config = Path(folder, "build.cfg")
        config.write_text(f"[build]\nbuild_base = {folder}\n")
        os.environ["DIST_EXTRA_CONFIG"] = str(config)
        try:
            yield
        finally:
            del os.environ["DIST_EXTRA_CONFIG"]
            if before is not None:
                os.environ["DIST_EXTRA_CONFIG"] = before


def build_wheel(
    wheel_directory: str, config_settings: dict | None = None, metadata_directory: str | None = None
) -> str:
    with _fresh_build_folder():
        return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)
