"""Compiled CUDA kernels are used only where every GPU of the machine can run them."""

from __future__ import annotations

import os
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
typedef void* device;
int nvmlInit_v2() { return 0; }
int nvmlShutdown() { return 0; }
int nvmlDeviceGetCount_v2(unsigned* count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned number, device* d) { *d = (device)(number + 1L); return 0; }
int nvmlDeviceGetCudaComputeCapability(device d, int* major, int* minor) {
  *major = d == (device)1L ? 9 : 7;
  *minor = 0;
  return 0;
}
"""


@pytest.fixture
def machine_with_h100_and_v100(tmp_path: Path) -> dict[str, str]:
    """Environment of a process whose driver knows these two."""
    (tmp_path / "nvml.c").write_text(NVML)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libnvidia-ml.so.1", tmp_path / "nvml.c"], check=True)
    return {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}


def test_one_gpu_without_an_image_is_an_obstacle_that_says_so(machine_with_h100_and_v100):
    code = f"from sfa_ext.ops import gpus; print(gpus.obstacle('13.0', {BUILT}), gpus.obstacle('12.6', ('7.0', '9.0')))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=machine_with_h100_and_v100, capture_output=True, text=True, check=True
    )
    built = ", ".join(BUILT)
    assert done.stdout == f"they are built for compute capability {built}, and this machine has a GPU of 7.0 None\n"


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
    monkeypatch.setattr(gpus, "obstacle", lambda torch_cuda, archs: obstacle)
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
    assert gpus.obstacle(None, BUILT) == "this torch is one without CUDA"
