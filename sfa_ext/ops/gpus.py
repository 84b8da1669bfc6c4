"""Whether the compiled CUDA kernels run on the GPUs of this machine."""

from __future__ import annotations

import ctypes
import re

Capability = tuple[int, int]


def capabilities() -> list[Capability]:
    """Compute capabilities of the machine's NVIDIA GPUs, in order; empty where there is none or no driver.

    Asks the driver's management library, not CUDA: a process that has initialised CUDA can no longer fork.
    """
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return []
    count = ctypes.c_uint()
    if nvml.nvmlInit_v2() != 0:
        return []
    try:
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            return []
        found = [_capability(nvml, number) for number in range(count.value)]
    finally:
        nvml.nvmlShutdown()
    return [capability for capability in found if capability is not None]


def _capability(nvml: ctypes.CDLL, number: int) -> Capability | None:
    device, major, minor = ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    if nvml.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(device)) != 0:
        return None
    if nvml.nvmlDeviceGetCudaComputeCapability(device, ctypes.byref(major), ctypes.byref(minor)) != 0:
        return None
    return major.value, minor.value


def has_image(archs: tuple[str, ...], capability: Capability) -> bool:
    """Whether kernels built for `archs`, written as TORCH_CUDA_ARCH_LIST writes them, run on such a GPU.

    Compiled code runs on its own capability and higher ones of the same major version, PTX on every higher one; with an
    "a" it runs on its own alone.
    """
    for arch in archs:
        major, minor, feature, ptx = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", arch).groups()
        built = int(major), int(minor)
        if feature == "a":
            fits = capability == built
        elif ptx and not feature:
            fits = capability >= built
        else:
            fits = capability[0] == built[0] and capability >= built
        if fits:
            return True
    return False


def obstacle(torch_cuda: str | None, archs: tuple[str, ...]) -> str | None:
    """Why the compiled CUDA kernels are not used here, None where they can be.

    One GPU without an image rules them out for all: a kernel of an operator serves every GPU or none.
    """
    if torch_cuda is None:
        return "this torch is one without CUDA"
    missing = [capability for capability in capabilities() if not has_image(archs, capability)]
    if not missing:
        return None
    names = ", ".join(f"{major}.{minor}" for major, minor in dict.fromkeys(missing))
    return f"they are built for compute capability {', '.join(archs)}, and this machine has a GPU of {names}"
