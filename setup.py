"""Builds the native part with CMake and ninja; everything else about the package stands in pyproject.toml."""

from __future__ import annotations

import fcntl
import filecmp
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import ExecError, SetupError

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "build_backend"))
from torch_location import OLDEST_TORCH, find_torch, torch_version  # noqa: E402


def check_cuda_wish() -> None:
    """SFA_CUDA=off|auto|on says whether CUDA kernels are built; this version has none to build."""
    wish = os.environ.get("SFA_CUDA", "auto")
    if wish not in ("off", "auto", "on"):
        raise SetupError(f"SFA_CUDA must be off, auto or on, got {wish!r}")
    if wish == "on":
        raise SetupError(
            "SFA_CUDA=on asks for CUDA kernels, but this version of sfa_ext has none; unset it, or use auto or off"
        )


def find_tool(name: str) -> str:
    """Path of a build tool: this Python's own scripts first, for a virtual environment that was not activated."""
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if path is None:
        raise SetupError(f"{name} was not found; install it (pip install {name}) or build without --no-build-isolation")
    return path


def check_compiler() -> None:
    names = [os.environ["CXX"].split()[0]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    if not any(map(shutil.which, names)):
        raise SetupError(
            f"no C++ compiler found (looked for {', '.join(names)}); install one that knows C++20, for example with "
            "'apt-get install g++', or name it in the environment variable CXX"
        )


def run(*command: str) -> None:
    if subprocess.run(command).returncode != 0:
        raise ExecError(f"this step of the build failed, its output stands above: {' '.join(command)}")


def cmake_build(folder: Path, version: str) -> Path:
    """Compiles everything in `folder` and returns the folder with the finished libraries."""
    torch = find_torch()
    if torch is None:
        oldest = ".".join(map(str, OLDEST_TORCH))
        raise SetupError(f"no torch >= {oldest} found: install it (pip install 'torch>={oldest}') and build again")
    try:
        import pybind11
    except ImportError:
        raise SetupError(
            "pybind11 was not found; pip install pybind11, or build without --no-build-isolation"
        ) from None
    check_compiler()
    cmake = find_tool("cmake")
    run(
        *(cmake, "--log-level=WARNING", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DTORCH_DIR={torch}",
        f"-DTORCH_VERSION={torch_version(torch)}",
        f"-DSFA_VERSION={version}",
    )
    run(cmake, "--build", str(folder))
    return folder / "out"


def install(source: Path, target: Path) -> None:
    """Puts a library in place in one step: a process that has the old one loaded keeps it and does not crash."""
    if target.is_file() and filecmp.cmp(source, target, shallow=False):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.copy2(source, temporary)
    os.replace(temporary, target)


class BuildNative(build_ext):
    """Builds every library in one CMake run and puts them into the package, or into the working tree (`--inplace`)."""

    def run(self) -> None:
        check_cuda_wish()
        if self.inplace or self.editable_mode:
            # Kept, so that the next build compiles only what changed.
            package, folder = ROOT / "sfa_ext", ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        else:
            package, folder = Path(self.build_lib, "sfa_ext"), Path(self.build_temp, "cmake").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            finished = cmake_build(folder, self.distribution.get_version())
            for library in sorted(finished.iterdir()):
                install(library, package / ("_lib" if library.name.startswith("lib") else "") / library.name)


setup(
    # Without sources of its own: it marks the wheel as one for this Python and this platform.
    ext_modules=[Extension("sfa_ext._C", sources=[])],
    cmdclass={"build_ext": BuildNative},
)
