"""Where the torch stands whose headers and libraries the build uses.

Only the headers matter: the op library is built on LibTorch's stable ABI, so it runs on any torch from 2.10 on.
"""

from __future__ import annotations

import re
import site
import sys
import sysconfig
from pathlib import Path

OLDEST_TORCH = (2, 10)


def site_folders() -> list[str]:
    """Folders that may hold torch, the build's own import path first, then the target environment's.

    An isolated build hides the target's site-packages from `sys.path`, but `sysconfig` still names them.
    """
    paths = [*sys.path, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if sys.prefix != sys.base_prefix:
        config = Path(sys.prefix, "pyvenv.cfg")
        if config.is_file() and re.search(r"include-system-site-packages\s*=\s*true", config.read_text(), re.I):
            paths.append(sysconfig.get_path("purelib", vars={"base": sys.base_prefix}))
            paths.extend(site.getsitepackages([sys.base_prefix]))
    return list(dict.fromkeys(path for path in paths if path))


def torch_version(folder: Path) -> str:
    """Version of the torch in `folder`, read from its text: importing torch takes seconds."""
    match = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", (folder / "version.py").read_text(), re.M)
    return match.group(1) if match else "0"


def torch_cuda_version(folder: Path) -> str | None:
    """The CUDA release that the torch in `folder` was built with, such as "13.0"; None for a torch without CUDA."""
    match = re.search(r"^cuda\b[^=\n]*=\s*['\"]([^'\"]+)", (folder / "version.py").read_text(), re.M)
    return match.group(1) if match else None


def find_torch() -> Path | None:
    """Folder of the first torch that has the stable headers and is at least `OLDEST_TORCH`; None without one."""
    for folder in site_folders():
        torch = Path(folder, "torch")
        if not (torch / "include/torch/csrc/stable/library.h").is_file() or not (torch / "version.py").is_file():
            continue
        if tuple(int(part) for part in re.findall(r"\d+", torch_version(torch))[:2]) >= OLDEST_TORCH:
            return torch
    return None
