"""Which CUDA kernels a build compiles: what SFA_CUDA, the GPU, the compiler and torch have to say about it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools.errors import SetupError

BACKEND = Path(__file__).resolve().parent.parent / "build_backend"
sys.path.insert(0, str(BACKEND))
import cuda_toolkit  # noqa: E402

KNOWN = {
    12: "sm_50 sm_70 sm_75 sm_80 sm_86 sm_89 sm_90 sm_90a sm_100 sm_120",
    13: "sm_75 sm_80 sm_86 sm_89 sm_90 sm_100 sm_120",
}


def make_nvcc(folder: Path, major: int, minor: int = 8) -> Path:
    """A script that answers what the build asks nvcc."""
    folder.mkdir(parents=True, exist_ok=True)
    nvcc = folder / "nvcc"
    nvcc.write_text(
        f"""#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release {major}.{minor}, V{major}.{minor}.93" ;;
--list-gpu-code) for arch in {KNOWN[major]}; do echo $arch; done ;;
--dryrun) echo '#$ TOP={folder.parent}' >&2 ;;
esac
"""
    )
    nvcc.chmod(0o755)
    return nvcc


def make_torch(folder: Path, cuda: str | None) -> Path:
    torch = folder / "torch"
    torch.mkdir()
    (torch / "version.py").write_text(f"__version__ = '2.14.0'\ncuda: Optional[str] = {cuda!r}\n")
    return torch


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine with CUDA 13's nvcc on PATH, a torch for CUDA 13, and no GPU; returns torch's folder."""
    for variable in ("SFA_CUDA", "CUDACXX", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PATH", f"{make_nvcc(tmp_path / 'cuda-13' / 'bin', 13).parent}{os.pathsep}/usr/bin:/bin")
    monkeypatch.setattr(cuda_toolkit, "gpu_archs", lambda: [])
    return make_torch(tmp_path, "13.0")


def archs(plan) -> str:
    return " ".join(map(str, plan.archs))


def test_an_installation_gets_every_architecture_of_the_compiler(machine):
    plan = cuda_toolkit.plan(machine, developer=False)
    assert archs(plan) == "7.5 8.0 8.6 8.9 9.0 10.0 12.0+PTX"
    assert plan.version == (13, 8)
    assert plan.archs[-1].cmake() == ["120-real", "120-virtual"]


def test_a_working_tree_without_gpu_gets_none_unless_asked(machine, monkeypatch):
    assert "no GPU was found; SFA_CUDA=on builds them" in cuda_toolkit.plan(machine, developer=True)
    monkeypatch.setenv("SFA_CUDA", "on")
    assert archs(cuda_toolkit.plan(machine, developer=True)).startswith("7.5 8.0")
    monkeypatch.setenv("SFA_CUDA", "auto")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.6 9.0+PTX")
    assert archs(cuda_toolkit.plan(machine, developer=True)) == "8.6 9.0+PTX"


@pytest.mark.parametrize("developer", [False, True], ids=["installation", "working tree"])
def test_with_a_gpu_only_its_own_architecture_is_built(developer, machine, monkeypatch):
    monkeypatch.setattr(cuda_toolkit, "gpu_archs", lambda: [86, 90])
    assert archs(cuda_toolkit.plan(machine, developer)) == "8.6 9.0"
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Ampere;8.9")
    assert archs(cuda_toolkit.plan(machine, developer)) == "8.0 8.6+PTX 8.9"


def test_a_gpu_newer_than_the_compiler_gets_ptx(machine, monkeypatch):
    monkeypatch.setattr(cuda_toolkit, "gpu_archs", lambda: [121])
    assert archs(cuda_toolkit.plan(machine, developer=False)) == "12.0+PTX"


def test_v100_needs_cuda_12(machine, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda_toolkit, "gpu_archs", lambda: [70])
    assert "compute capability 7.0 (nvcc 13 dropped sm_70 (V100): take" in cuda_toolkit.plan(machine, developer=False)
    monkeypatch.setenv("CUDA_HOME", str(make_nvcc(tmp_path / "cuda-12" / "bin", 12).parent.parent))
    (tmp_path / "other").mkdir()
    torch = make_torch(tmp_path / "other", "12.8")
    assert archs(cuda_toolkit.plan(torch, developer=False)) == "7.0"
    monkeypatch.setattr(cuda_toolkit, "gpu_archs", lambda: [])
    assert archs(cuda_toolkit.plan(torch, developer=False)).startswith("7.0 7.5 8.0")


def test_nvcc_is_sought_in_the_stated_order(machine, monkeypatch, tmp_path):
    assert cuda_toolkit.find_nvcc() == tmp_path / "cuda-13/bin/nvcc"
    home = make_nvcc(tmp_path / "home/bin", 13)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    assert cuda_toolkit.find_nvcc() == home
    named = make_nvcc(tmp_path / "named", 13)
    monkeypatch.setenv("CUDACXX", str(named))
    assert cuda_toolkit.find_nvcc() == named
    for variable in ("CUDACXX", "CUDA_HOME"):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    packaged = make_nvcc(tmp_path / "site/nvidia/cu13/bin", 13)
    monkeypatch.setattr(cuda_toolkit, "site_folders", lambda: [str(tmp_path / "site")])
    assert cuda_toolkit.find_nvcc() == packaged
    assert cuda_toolkit.toolkit_of(packaged) == tmp_path / "site/nvidia/cu13"


def without_cuda(monkeypatch, torch):
    (torch / "version.py").write_text("__version__ = '2.14.0'\ncuda: Optional[str] = None\n")


def with_other_major(monkeypatch, torch):
    (torch / "version.py").write_text("__version__ = '2.14.0'\ncuda: Optional[str] = '12.8'\n")


def without_nvcc(monkeypatch, torch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(cuda_toolkit, "site_folders", lambda: [])


def with_an_early_nvcc(monkeypatch, torch):
    (torch / "version.py").write_text("__version__ = '2.14.0'\ncuda: Optional[str] = '12.6'\n")
    monkeypatch.setenv("CUDA_HOME", str(make_nvcc(torch / "cuda-12" / "bin", 12, 0).parent.parent))


def with_unknown_arch(monkeypatch, torch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "7.0;8.0")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (without_cuda, "this torch is one without CUDA"),
        (with_other_major, "is of CUDA 13.8 and this torch of CUDA 12.8, which must have the same major version"),
        (with_an_early_nvcc, "is of CUDA 12.0 and the kernels need 12.1 or newer; name another nvcc in CUDACXX"),
        (without_nvcc, "pip install 'cuda-toolkit[nvcc,cccl,cudart]==13.0.*'"),
        (with_unknown_arch, "cannot compile for 7.0 of TORCH_CUDA_ARCH_LIST='7.0;8.0' (nvcc 13 dropped sm_70"),
    ],
)
def test_what_is_missing_is_a_note_under_auto_and_an_error_under_on(broken, reason, machine, monkeypatch):
    broken(monkeypatch, machine)
    assert reason in cuda_toolkit.plan(machine, developer=False)
    monkeypatch.setenv("SFA_CUDA", "on")
    with pytest.raises(SetupError) as refused:
        cuda_toolkit.plan(machine, developer=False)
    assert str(refused.value).startswith("SFA_CUDA=on asks for CUDA kernels, but ") and reason in str(refused.value)
    monkeypatch.setenv("SFA_CUDA", "off")
    assert cuda_toolkit.plan(machine, developer=False) == "SFA_CUDA=off"


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("SFA_CUDA", "maybe", "SFA_CUDA must be off, auto or on, got 'maybe'"),
        ("CUDACXX", "no-such-nvcc", "CUDACXX=no-such-nvcc does not name a compiler that can be run"),
        ("TORCH_CUDA_ARCH_LIST", "8.0;nine", "holds 'nine'; it must list compute capabilities such as '8.0;9.0+PTX'"),
    ],
)
def test_a_wrong_setting_is_an_error_that_names_it(variable, value, message, machine, monkeypatch):
    monkeypatch.setenv(variable, value)
    with pytest.raises(SetupError) as refused:
        cuda_toolkit.plan(machine, developer=False)
    assert message in str(refused.value)


def test_nvcc_is_a_build_requirement_only_where_it_is_wanted_and_missing(machine, monkeypatch):
    monkeypatch.setattr(cuda_toolkit, "find_torch", lambda: machine)
    monkeypatch.setenv("SFA_CUDA", "on")
    assert cuda_toolkit.toolkit_requirement() is None
    without_nvcc(monkeypatch, machine)
    package = "cuda-toolkit[nvcc,cccl,cudart]==13.0.*"
    assert cuda_toolkit.toolkit_requirement() == package
    monkeypatch.setenv("SFA_CUDA", "auto")
    assert cuda_toolkit.toolkit_requirement() is None
    monkeypatch.setattr(cuda_toolkit, "gpu_archs", lambda: [90])
    assert cuda_toolkit.toolkit_requirement() == package
    monkeypatch.setenv("SFA_CUDA", "off")
    assert cuda_toolkit.toolkit_requirement() is None
    monkeypatch.setenv("SFA_CUDA", "on")
    without_cuda(monkeypatch, machine)
    assert cuda_toolkit.toolkit_requirement() is None


DRIVER = """
int cuInit(unsigned flags) { return 0; }
int cuDeviceGetCount(int* count) { *count = 3; return 0; }
int cuDeviceGet(int* device, int number) { *device = number; return 0; }
int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = attribute == 75 ? (device == 1 ? 9 : 8) : (device == 1 ? 0 : 6);
  return 0;
}
"""


def test_the_driver_is_asked_for_the_gpus(tmp_path):
    source = tmp_path / "driver.c"
    source.write_text(DRIVER)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "libcuda.so.1", source], check=True)
    result = subprocess.run(
        [sys.executable, "-c", "import cuda_toolkit; print(cuda_toolkit.gpu_archs())"],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": str(BACKEND)},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip() == "[86, 90]", result.stderr
