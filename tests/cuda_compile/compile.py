"""Compiles CUDA kernels without a GPU and reads what ptxas says of each: registers, stack and spills."""

from __future__ import annotations

import ctypes
import importlib.util
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "build_backend"))
import cuda_toolkit  # noqa: E402

PATTERN = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>\w+)'.*?(?P<stack>\d+) bytes stack frame, "
    r"(?P<spills>\d+) bytes spill stores.*?Used (?P<registers>\d+) registers",
    re.S,
)


@dataclass(frozen=True)
class Kernel:
    name: str  # mangled
    arch: str  # "sm_80"
    registers: int
    stack: int  # bytes; more than 0 means an array in local memory
    spills: int  # bytes


def read_kernels(log: str) -> list[Kernel]:
    found = [match.groupdict() for match in PATTERN.finditer(log)]
    return [Kernel(k["name"], k["arch"], *(int(k[key]) for key in ("registers", "stack", "spills"))) for k in found]


def with_nvcc(source: Path, *flags: str) -> list[Kernel]:
    """Every kernel of `source`, on every architecture that a build for all GPUs would compile."""
    nvcc = cuda_toolkit.find_nvcc()
    if nvcc is None:
        pytest.skip("no nvcc on this machine")
    known = cuda_toolkit.known_archs(nvcc)
    archs = [arch for arch in cuda_toolkit.DEFAULT_ARCHS if arch in known]
    targets = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-std=c++20", "-O3", "-Xptxas=-v", "--threads=2", f"-I{ROOT / 'csrc'}", *targets, *flags]
        done = subprocess.run(
            [*command, "-fatbin", "-o", f"{folder}/kernels.fatbin", source], capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr[-4000:]
    kernels = read_kernels(done.stderr)
    assert {kernel.arch for kernel in kernels} == {f"sm_{arch}" for arch in archs}, done.stderr[-4000:]
    return kernels


def with_nvrtc(source: Path, arch: str = "sm_70") -> list[Kernel]:
    """Every kernel of `source` on one architecture, by CUDA 12's run-time compiler: nvcc 13 does not know sm_70."""
    package = importlib.util.find_spec("nvidia.cuda_nvrtc") if importlib.util.find_spec("nvidia") else None
    if package is None:
        pytest.skip("sm_70 needs CUDA 12's compiler: pip install 'nvidia-cuda-nvrtc-cu12==12.9.*'")
    (folder,) = package.submodule_search_locations
    nvrtc = ctypes.CDLL(str(Path(folder, "lib", "libnvrtc.so.12")), mode=ctypes.RTLD_GLOBAL)
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    code = source.read_bytes()
    assert nvrtc.nvrtcCreateProgram(ctypes.byref(program), code, source.name.encode(), 0, None, None) == 0
    options = [f"-arch={arch}", "-std=c++20", "-default-device", "--ptxas-options=-v", f"-I{ROOT / 'csrc'}"]
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), array)
    nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetProgramLog(program, log)
    text = log.value.decode()
    assert status == 0, text[:4000]
    return read_kernels(text)


def expect_lean(kernels: list[Kernel], limit: Callable[[Kernel], int]) -> None:
    """Every kernel spills nothing, has no array in local memory and keeps to its limit of registers."""
    assert kernels
    for kernel in kernels:
        assert kernel.spills == kernel.stack == 0, kernel
        assert kernel.registers <= limit(kernel), kernel
