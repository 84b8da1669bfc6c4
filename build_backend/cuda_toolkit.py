"""Whether the build compiles CUDA kernels, with which nvcc, and for which GPUs.

SFA_CUDA=off builds none. SFA_CUDA=on builds them or says what is missing. SFA_CUDA=auto, the default, builds them where
that can work and otherwise says in a line why not; a build into the working tree does so only where there is a GPU or
TORCH_CUDA_ARCH_LIST names one, so that it stays a matter of seconds everywhere else.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from setuptools.errors import SetupError
from torch_location import find_torch, site_folders, torch_cuda_version

WISHES = ("off", "auto", "on")
# Built where neither a GPU nor TORCH_CUDA_ARCH_LIST says otherwise; what a compiler does not know is left out.
DEFAULT_ARCHS = (70, 75, 80, 86, 89, 90, 100, 120)
NAMED_ARCHS = {
    "Volta": "7.0+PTX",
    "Turing": "7.5+PTX",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;12.0+PTX",
}
OLDEST_NVCC = (12, 1)  # older ones allow a kernel 4 KB of arguments, see csrc/cuda/table.cuh
V100_REMEDY = "nvcc 13 dropped sm_70 (V100): take a torch built for CUDA 12 and nvcc 12, see the README"


@dataclass(frozen=True)
class Arch:
    """One GPU architecture: `number` is 80 for compute capability 8.0, `feature` "a" or "f" or nothing."""

    number: int
    feature: str = ""
    ptx: bool = False

    def __str__(self) -> str:
        """As TORCH_CUDA_ARCH_LIST writes it."""
        return f"{self.number // 10}.{self.number % 10}{self.feature}{'+PTX' if self.ptx else ''}"

    def cmake(self) -> list[str]:
        name = f"{self.number}{self.feature}"
        return [f"{name}-real", f"{name}-virtual"] if self.ptx else [f"{name}-real"]


@dataclass(frozen=True)
class CudaBuild:
    nvcc: Path
    toolkit: Path
    version: tuple[int, int]
    archs: tuple[Arch, ...]


def plan(torch: Path, developer: bool) -> CudaBuild | str:
    """What to build against the torch in the folder `torch`, or a sentence that says why nothing is built.

    `developer`: a build into the working tree. Raises SetupError for a wrong setting, and under SFA_CUDA=on also where
    CUDA kernels cannot be built.
    """
    wish = cuda_wish()
    if wish == "off":
        return "SFA_CUDA=off"
    try:
        if wish == "auto" and developer and not os.environ.get("TORCH_CUDA_ARCH_LIST") and not gpu_archs():
            raise NotBuilt("no GPU was found; SFA_CUDA=on builds them anyway")
        return _plan(torch)
    except NotBuilt as reason:
        if wish == "on":
            raise SetupError(f"SFA_CUDA=on asks for CUDA kernels, but {reason}") from None
        return str(reason)


def toolkit_requirement() -> str | None:
    """The package that brings nvcc, where a GPU or SFA_CUDA=on asks for CUDA kernels and this machine has no nvcc."""
    wish, torch = cuda_wish(), find_torch()
    if wish == "off" or (wish == "auto" and not gpu_archs()) or find_nvcc() is not None:
        return None
    version = torch_cuda_version(torch) if torch else None
    # Before CUDA 13 the packages hold no nvcc. Without a torch the newest one is about to be installed.
    return _toolkit_package(version or "13") if torch is None or (version and _major(version) >= 13) else None


class NotBuilt(Exception):
    """Says why CUDA kernels cannot or need not be built."""


def cuda_wish() -> str:
    wish = os.environ.get("SFA_CUDA", "auto")
    if wish not in WISHES:
        raise SetupError(f"SFA_CUDA must be off, auto or on, got {wish!r}")
    return wish


def _plan(torch: Path) -> CudaBuild:
    wanted = torch_cuda_version(torch)
    if wanted is None:
        raise NotBuilt("this torch is one without CUDA; install one with it (https://pytorch.org/get-started)")
    nvcc = find_nvcc()
    if nvcc is None:
        remedy = f"pip install '{_toolkit_package(wanted)}'" if _major(wanted) >= 13 else f"install CUDA {wanted}"
        raise NotBuilt(
            f"no nvcc was found (looked at CUDACXX, CUDA_HOME, PATH and the packages of this environment); {remedy}"
        )
    version = nvcc_version(nvcc)
    if version[0] != _major(wanted):
        raise NotBuilt(
            f"{nvcc} is of CUDA {version[0]}.{version[1]} and this torch of CUDA {wanted}, which must have the same "
            f"major version; name another nvcc in CUDACXX or CUDA_HOME, or install a torch for CUDA {version[0]}"
        )
    if version < OLDEST_NVCC:
        raise NotBuilt(
            f"{nvcc} is of CUDA {version[0]}.{version[1]} and the kernels need "
            f"{'.'.join(map(str, OLDEST_NVCC))} or newer; name another nvcc in CUDACXX or CUDA_HOME"
        )
    return CudaBuild(nvcc, toolkit_of(nvcc), version, _chosen_archs(nvcc))


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _toolkit_package(version: str) -> str:
    """All parts of one release, so that compiler, headers and runtime fit together."""
    return f"cuda-toolkit[nvcc,cccl,cudart]=={version}.*"


def find_nvcc() -> Path | None:
    """The nvcc that CUDACXX names, or that of CUDA_HOME, of PATH, or of an installed package, in this order."""
    if named := os.environ.get("CUDACXX"):
        if found := shutil.which(named):
            return Path(found)
        raise SetupError(f"CUDACXX={named} does not name a compiler that can be run; name nvcc, or unset it")
    home = os.environ.get("CUDA_HOME")
    places = [Path(home, "bin")] if home else []
    places += [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    places += [bin for folder in site_folders() for bin in sorted(Path(folder, "nvidia").glob("cu[0-9]*/bin"))]
    for place in places:
        if found := shutil.which("nvcc", path=str(place)):
            return Path(found)
    return None


def _ask(nvcc: Path, *arguments: str) -> str:
    result = subprocess.run([nvcc, *arguments], capture_output=True, text=True)
    if result.returncode != 0:
        raise SetupError(f"{nvcc} {' '.join(arguments)} failed: {result.stderr.strip() or result.stdout.strip()}")
    return result.stdout + result.stderr


def nvcc_version(nvcc: Path) -> tuple[int, int]:
    match = re.search(r"release (\d+)\.(\d+)", _ask(nvcc, "--version"))
    if match is None:
        raise SetupError(f"{nvcc} --version does not answer as nvcc does; name another in CUDACXX")
    return int(match.group(1)), int(match.group(2))


def toolkit_of(nvcc: Path) -> Path:
    """Folder with headers and libraries, as the compiler itself says: `nvcc` may be a link or a script."""
    match = re.search(r"^#\$ TOP=(.+)$", _ask(nvcc, "--dryrun", "-E", "-x", "cu", os.devnull), re.M)
    return Path(match.group(1)).resolve() if match else nvcc.resolve().parent.parent


def known_archs(nvcc: Path) -> list[int]:
    """What the compiler can compile for, 80 for compute capability 8.0."""
    return sorted({int(number) for number in re.findall(r"sm_(\d+)\b", _ask(nvcc, "--list-gpu-code"))})


def _chosen_archs(nvcc: Path) -> tuple[Arch, ...]:
    known = known_archs(nvcc)
    if wish := os.environ.get("TORCH_CUDA_ARCH_LIST"):
        archs = parse_arch_list(wish)
        if missing := [str(arch) for arch in archs if arch.number not in known]:
            hint = f" ({V100_REMEDY})" if any(arch.number == 70 for arch in archs) else ""
            raise NotBuilt(f"{nvcc} cannot compile for {', '.join(missing)} of TORCH_CUDA_ARCH_LIST={wish!r}{hint}")
        return archs
    if gpus := gpu_archs():
        return tuple(dict.fromkeys(_arch_for(gpu, known) for gpu in gpus))
    archs = [Arch(number) for number in DEFAULT_ARCHS if number in known]
    return (*archs[:-1], Arch(archs[-1].number, ptx=True))


def _arch_for(gpu: int, known: list[int]) -> Arch:
    """What runs on a GPU of this compute capability: itself, or PTX where the GPU is newer than the compiler."""
    if gpu in known:
        return Arch(gpu)
    older = [number for number in known if number < gpu]
    if not older:
        hint = f" ({V100_REMEDY})" if gpu == 70 else ""
        raise NotBuilt(f"this nvcc cannot compile for the GPU of this machine, compute capability {Arch(gpu)}{hint}")
    return Arch(older[-1], ptx=True)


def parse_arch_list(wish: str) -> tuple[Arch, ...]:
    """TORCH_CUDA_ARCH_LIST as torch reads it: "8.0;9.0+PTX", "8.6 9.0a", "Ampere"."""
    archs = []
    for item in re.split(r"[;,\s]+", wish.strip()):
        for part in NAMED_ARCHS.get(item, item).split(";"):
            match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", part)
            if match is None:
                raise SetupError(
                    f"TORCH_CUDA_ARCH_LIST={wish!r} holds {part!r}; it must list compute capabilities such as "
                    f"'8.0;9.0+PTX', or some of {', '.join(NAMED_ARCHS)}"
                )
            major, minor, feature, ptx = match.groups()
            archs.append(Arch(int(major) * 10 + int(minor), feature, ptx is not None))
    return tuple(dict.fromkeys(archs))


def gpu_archs() -> list[int]:
    """Compute capabilities of this machine's GPUs (80 for 8.0), each once; empty where there is none or no driver.

    Asks the driver itself: importing torch takes seconds.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    return sorted({_capability(driver, number) for number in range(count.value)})


def _capability(driver: ctypes.CDLL, number: int) -> int:
    device, parts = ctypes.c_int(), []
    driver.cuDeviceGet(ctypes.byref(device), number)
    for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        parts.append(value.value)
    return parts[0] * 10 + parts[1]


if __name__ == "__main__":
    print(toolkit_requirement() or "")
