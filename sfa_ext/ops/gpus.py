"""Whether the compiled CUDA kernels run on the GPUs and the driver of this machine."""

from __future__ import annotations

import ctypes
import re
from typing import NamedTuple

Version = tuple[int, int]  # of CUDA, or a compute capability
OLDEST_DRIVER = (12, 1)  # older ones take no more than 4 KB of arguments for a kernel, see csrc/cuda/table.cuh


class Machine(NamedTuple):
    """What the driver says: the newest CUDA it knows (None where it does not say), and the compute capability of each
    NVIDIA GPU, in order."""

    driver: Version | None
    gpus: tuple[Version, ...]


def machine() -> Machine:
    """This machine; one without GPUs where there is no driver.

    Asks the driver's management library, not CUDA: a process that has initialised CUDA can no longer fork.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return Machine(None, ())
    if nvml.nvmlInit_v2() != 0:
        return Machine(None, ())
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return Machine(None, ())
        found = (_capability(nvml, number) for number in range(count.value))
        return Machine(_driver(nvml), tuple(capability for capability in found if capability is not None))
    finally:
        nvml.nvmlShutdown()


def _driver(nvml: ctypes.CDLL) -> Version | None:
    version = ctypes.c_int()  # 13010 for CUDA 13.1
    if nvml.nvmlSystemGetCudaDriverVersion_v2(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def _capability(nvml: ctypes.CDLL, number: int) -> Version | None:
    device, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    if nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(device)) != 0:
        return None
    if nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor)) != 0:
        return None
    return major.value, minor.value


def has_image(archs: tuple[str, ...], capability: Version, takes_ptx: bool = True) -> bool:
    """Whether kernels built for `archs`, written as TORCH_CUDA_ARCH_LIST writes them, run on such a GPU.

    Compiled code runs on its own capability and higher ones of the same major version, PTX on every higher one if the
    driver takes it; with an "a" code runs on its own capability alone.
    """
    for arch in archs:
        major, minor, feature, ptx = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch).groups()
        built = int(major), int(minor)
        if feature == "a":
            fits = capability == built
        elif ptx and takes_ptx and not feature:
            fits = capability >= built
        else:
            fits = capability[0] == built[0] and capability >= built
        if fits:
            return True
    return False


def obstacle(torch_cuda: str | None, archs: tuple[str, ...], compiler: str) -> str | None:
    """Why kernels built for `archs` by `compiler` ("nvcc 13.0.88") are not used here, None where they can be.

    One GPU without an image rules them out for all: a kernel of an operator serves every GPU or none. Code of a CUDA
    runs under every driver of that major version or a later one, but PTX only under one that knows its compiler's CUDA.
    """
    if torch_cuda is None:
        return "this torch is one without CUDA"
    driver, gpus = machine()
    major, minor = re.search(r"(\d+)\.(\d+)", compiler).groups()
    built = int(major), int(minor)
    needed = max((built[0], 0), OLDEST_DRIVER)
    if driver is not None and driver < needed:
        return (
            f"they are built with {compiler} for drivers that know CUDA {_dotted(needed)}, and this machine's driver "
            f"knows CUDA up to {_dotted(driver)}"
        )
    takes_ptx = driver is None or driver >= built
    missing = [capability for capability in gpus if not has_image(archs, capability, takes_ptx)]
    if not missing:
        return None
    names = ", ".join(map(_dotted, dict.fromkeys(missing)))
    if all(has_image(archs, capability) for capability in missing):
        return (
            f"on this machine's GPU of {names} they are PTX of {compiler}, and its driver knows CUDA up to "
            f"{_dotted(driver)}"
        )
    return f"they are built for compute capability {', '.join(archs)}, and this machine has a GPU of {names}"


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))
