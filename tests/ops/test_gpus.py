"""Compiled CUDA kernels are used only where the driver and every GPU of the machine can run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sfa_ext.ops import _library, gpus

BUILT = ("7.5", "8.0", "8.6", "9.0", "12.0+PTX")


@pytest.mark.parametrize(
    ("archs", "capability", "runs"),
    [
        (BUILT, (8, 0), True),
        (BUILT, (8, 9), True),
        (BUILT, (7, 0), False),
        (BUILT, (10, 0), False),
        (BUILT, (12, 1), True),
        (("8.0+PTX",), (10, 0), True),
        (("8.6",), (8, 0), False),
        (("9.0a",), (9, 0), True),
        (("10.0a+PTX",), (10, 3), False),
        (("10.0f",), (10, 3), True),
        ((), (8, 0), False),
    ],
)
def test_what_was_built_runs_on_its_own_and_newer_gpus(archs, capability, runs):
    assert gpus.has_image(archs, capability) is runs


NVML = """
#include <stdlib.h>
typedef void* device;
int nvmlInit_v2() { return 0; }
int nvmlShutdown() { return 0; }
int nvmlSystemGetCudaDriverVersion_v2(int* version) { *version = atoi(getenv("DRIVER")); return *version == 0; }
int nvmlDeviceGetCount_v2(unsigned* count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned number, device* d) { *d = (device)(number + 1L); return 0; }
int nvmlDeviceGetCudaComputeCapability(device d, int* major, int* minor) {
  *major = d == (device)1L ? 9 : 7;
  *minor = 0;
  return 0;
}
"""


@pytest.fixture(scope="module")
def driver_of_h100_and_v100(tmp_path_factory) -> Path:
    """Folder of a driver that knows these two, and the CUDA of the variable DRIVER."""
    folder = tmp_path_factory.mktemp("driver")
    (folder / "nvml.c").write_text(NVML)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "libnvidia-ml.so.1", folder / "nvml.c"], check=True)
    return folder


@pytest.mark.parametrize(
    ("driver", "archs", "compiler", "obstacle"),
    [
        (13000, ("8.0", "9.0+PTX"), "nvcc 13.0.88", r"built for compute capability 8.0, 9.0\+PTX, .* has a GPU of 7.0"),
        (12060, ("7.0", "9.0"), "nvcc 12.9.86", None),
        (13000, ("7.0", "9.0"), "nvcc 12.9.86", None),
        (12080, ("7.5", "9.0"), "nvcc 13.0.88", "nvcc 13.0.88 for drivers that know CUDA 13.0, .* up to 12.8"),
        (12000, ("7.0", "9.0"), "nvcc 12.9.86", "nvcc 12.9.86 for drivers that know CUDA 12.1, .* up to 12.0"),
        (12080, ("7.0+PTX",), "nvcc 12.9.86", "GPU of 9.0 they are PTX of nvcc 12.9.86, and .* CUDA up to 12.8"),
        (12090, ("7.0+PTX",), "nvcc 12.9.86", None),
        (0, ("7.0+PTX",), "nvcc 12.9.86", None),
    ],
    ids=["gpu", "same major", "newer", "driver", "long arguments", "PTX", "PTX that is known", "silent driver"],
)
def test_an_obstacle_says_what_is_missing(driver, archs, compiler, obstacle, driver_of_h100_and_v100):
    code = f"from sfa_ext.ops import gpus; print(gpus.obstacle('13.0', {archs}, '{compiler}'))"
    variables = {**os.environ, "LD_LIBRARY_PATH": str(driver_of_h100_and_v100), "DRIVER": str(driver)}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert re.search(obstacle or "^None$", done.stdout), done.stdout


@pytest.mark.parametrize(
    ("wish", "obstacle", "used"),
    [
        (None, None, True),
        ("", None, True),
        (None, "an old GPU", False),
        ("cuda", "an old GPU", True),
        ("triton", None, False),
        ("reference", None, False),
    ],
)
def test_the_cuda_library_is_loaded_only_where_it_is_wanted_and_runs(wish, obstacle, used, monkeypatch, tmp_path):
    loaded = []
    monkeypatch.setattr(_library, "CUDA_LIBRARY", tmp_path / "libsfa_cuda.so")
    monkeypatch.setattr(_library, "_load", loaded.append)
    monkeypatch.setattr(gpus, "obstacle", lambda *built: obstacle)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.delenv("SFA_BACKEND", raising=False)
    if wish is not None:
        monkeypatch.setenv("SFA_BACKEND", wish)
    _library.load()
    assert loaded == [_library.CPU_LIBRARY]  # none was built
    _library.CUDA_LIBRARY.touch()
    _library.load()
    assert loaded[2:] == ([_library.CUDA_LIBRARY] if used else [])
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.setenv("SFA_BACKEND", "cuda")
    _library.load()
    assert loaded[-1] == _library.CPU_LIBRARY


def test_a_torch_without_cuda_is_an_obstacle():
    assert gpus.obstacle(None, BUILT, "nvcc 13.0.88") == "this torch is one without CUDA"
