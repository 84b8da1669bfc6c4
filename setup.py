"""Builds the native part with CMake and ninja; everything else about the package stands in pyproject.toml."""

from __future__ import annotations

import fcntl
import filecmp
import os
import re
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
from cuda_toolkit import CudaBuild, cuda_wish, plan  # noqa: E402
from torch_location import OLDEST_TORCH, find_torch, torch_version  # noqa: E402

CUDA_LIBRARY = "libsfa_cuda.so"


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


def cuda_options(cuda: CudaBuild | str) -> list[str]:
    """What CMake is told about CUDA; empty names take back what an earlier build in the same folder was told."""
    if isinstance(cuda, str):
        print(f"sfa_ext: CUDA kernels are not built: {cuda}", file=sys.stderr)
        return ["-DSFA_CUDA_ARCHS=", "-DSFA_CUDA_TOOLKIT="]
    archs = ", ".join(map(str, cuda.archs))
    print(f"sfa_ext: CUDA kernels are built for compute capability {archs} with {cuda.nvcc}", file=sys.stderr)
    return [
        f"-DSFA_CUDA_ARCHS={','.join(map(str, cuda.archs))}",
        f"-DSFA_CUDA_TOOLKIT={cuda.toolkit}",
        f"-DCMAKE_CUDA_COMPILER={cuda.nvcc}",
        f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(name for arch in cuda.archs for name in arch.cmake())}",
    ]


def forget_other_compiler(folder: Path, cuda: CudaBuild | str) -> None:
    """CMake cannot change the CUDA compiler of a folder it has configured: let it start anew."""
    cache = folder / "CMakeCache.txt"
    known = re.search(r"^CMAKE_CUDA_COMPILER:\w+=(.+)$", cache.read_text(), re.M) if cache.is_file() else None
    if known and not isinstance(cuda, str) and known.group(1) != str(cuda.nvcc):
        cache.unlink()
        shutil.rmtree(folder / "CMakeFiles")


def cmake_build(folder: Path, version: str, developer: bool) -> Path:
    """Compiles everything in `folder` and returns the folder with the finished libraries."""
    cuda_wish()
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
    cuda = plan(torch, developer)
    forget_other_compiler(folder, cuda)
    cmake = find_tool("cmake")
    run(
        *(cmake, "--log-level=WARNING", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
        f"-DTORCH_DIR={torch}",
        f"-DTORCH_VERSION={torch_version(torch)}",
        f"-DSFA_VERSION={version}",
        *cuda_options(cuda),
    )
    finished = folder / "out"
    if isinstance(cuda, str):
        (finished / CUDA_LIBRARY).unlink(missing_ok=True)
    run(cmake, "--build", str(folder))
    return finished


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
        developer = self.inplace or self.editable_mode
        if developer:
            # Kept, so that the next build compiles only what changed.
            package, folder = ROOT / "sfa_ext", ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        else:
            package, folder = Path(self.build_lib, "sfa_ext"), Path(self.build_temp, "cmake").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            finished = cmake_build(folder, self.distribution.get_version(), developer)
            if not (finished / CUDA_LIBRARY).is_file():
                (package / "_lib" / CUDA_LIBRARY).unlink(missing_ok=True)
            for library in sorted(finished.iterdir()):
                install(library, package / ("_lib" if library.name.startswith("lib") else "") / library.name)


setup(
    # Without sources of its own: it marks the wheel as one for this Python and this platform.
    ext_modules=[Extension("sfa_ext._C", sources=[])],
    cmdclass={"build_ext": BuildNative},
)
