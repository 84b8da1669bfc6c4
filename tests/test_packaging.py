"""The package as others get it: what the wheel and the sdist hold, and how the build answers a wrong wish."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)


def builds_cuda() -> bool:
    """Whether this machine can build the CUDA kernels, as the build itself sees it."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'build_backend')!r}); import cuda_toolkit as c; "
    code += "print(isinstance(c.plan(c.find_torch(), developer=False), c.CudaBuild))"
    return run(sys.executable, "-c", code, SFA_CUDA="auto").stdout.strip() == "True"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With CUDA kernels for one architecture where there is an nvcc: it can build without a GPU."""
    folder = tmp_path_factory.mktemp("wheel")
    result = run(
        *(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ROOT),
        cwd=folder,
        SFA_CUDA="auto",
        TORCH_CUDA_ARCH_LIST="8.0",
    )
    assert result.returncode == 0, result.stderr
    (path,) = folder.glob("*.whl")
    return path


def test_wheel_holds_what_the_package_needs_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    kinds = (
        "*.py",
        "recipes/*.yaml",
        "recipes/*/*.yaml",
        "studies/*.yaml",
        "checkpoints/*",
        "serve/*.html",
        "py.typed",
    )
    package = ROOT / "sfa_ext"
    expected = {path.relative_to(ROOT).as_posix() for kind in kinds for path in package.rglob(kind)}
    expected |= {"sfa_ext/_lib/libsfa_cpu.so", "sfa_ext/_C" + sysconfig.get_config_var("EXT_SUFFIX")}
    expected |= {"sfa_ext/_lib/libsfa_cuda.so"} if builds_cuda() else set()
    found = {name for name in names if ".dist-info/" not in name}
    assert found == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_names_this_python_and_this_platform(wheel: Path) -> None:
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.removesuffix(".whl").split("-")[2:] == [python, python, platform]


def test_libraries_hold_no_path_of_the_machine_that_built_them(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        libraries = {name: archive.read(name) for name in archive.namelist() if name.endswith(".so")}
    assert len(libraries) == 2 + builds_cuda()
    assert not [name for name, content in libraries.items() if bytes(ROOT) in content or b"site-packages" in content]


def test_installed_wheel_serves_the_ops_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    target, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    result = run(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", target, wheel, cwd=empty)
    assert result.returncode == 0, result.stderr
    code = """
import torch, sfa_ext
x, down, up = torch.randn(5, 7), torch.randn(3, 7), torch.randn(7, 3)
out = torch.ops.sfa.fused_adapter(x, down, None, up, None)
torch.testing.assert_close(out, x + torch.relu(x @ down.T) @ up.T)
print(sfa_ext.__file__)
"""
    result = run(sys.executable, "-c", code, cwd=empty, PYTHONPATH=str(target))
    assert result.returncode == 0, result.stderr
    assert Path(result.stdout.strip()).is_relative_to(target)
    if builds_cuda():
        assert_cuda_kernels_load(target, empty)


def assert_cuda_kernels_load(target: Path, empty: Path) -> None:
    """Without a GPU too: the library is opened, and torch knows its kernels."""
    code = """
import torch, sfa_ext
from sfa_ext import _C
kernels = [op for op in sfa_ext.ops.backends() if torch._C._dispatch_has_kernel_for_dispatch_key("sfa::" + op, "CUDA")]
print(*_C.build_facts()["cuda_archs"], len(kernels))
"""
    result = run(sys.executable, "-c", code, cwd=empty, PYTHONPATH=str(target))
    archs, kernels = result.stdout.split()
    assert archs == "8.0"
    assert int(kernels) >= 4


def test_sdist_holds_what_a_build_needs(tmp_path: Path) -> None:
    code = "import sys; sys.path.insert(0, 'build_backend'); import sfa_build_backend as b; b.build_sdist(sys.argv[1])"
    result = run(sys.executable, "-c", code, tmp_path)
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = {path.relative_to(ROOT).as_posix() for path in (ROOT / "csrc").rglob("*.*")}
    needed |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "sfa_ext").rglob("*.yaml")}
    needed |= {"CMakeLists.txt", "setup.py", "pyproject.toml", "LICENSE", "build_backend/sfa_build_backend.py"}
    assert needed <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"SFA_CUDA": "maybe"}, "error: SFA_CUDA must be off, auto or on, got 'maybe'"),
        ({"CUDACXX": "no-such-nvcc", "TORCH_CUDA_ARCH_LIST": "8.0"}, "error: CUDACXX=no-such-nvcc does not name a"),
        ({"CXX": "no-such-compiler"}, "error: no C++ compiler found (looked for no-such-compiler)"),
    ],
    ids=["unknown wish", "no CUDA compiler", "no compiler"],
)
def test_build_refuses_in_one_line(env: dict[str, str], message: str, tmp_path: Path) -> None:
    result = run(sys.executable, "setup.py", "-q", "build_ext", "-b", tmp_path, "-t", tmp_path, **env)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("version", "header", "found"),
    [("2.10.0", True, True), ("3.1.0a0+git", True, True), ("2.9.1", True, False), ("2.11.0", False, False)],
    ids=["oldest", "newer", "too old", "no headers"],
)
def test_build_takes_the_torch_of_the_environment(version: str, header: bool, found: bool, tmp_path: Path) -> None:
    """In an environment of its own, whose site-packages are hidden from the import path as in an isolated build."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "env")
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    (site / "torch").mkdir()
    (site / "torch" / "version.py").write_text(f"__version__ = '{version}'\n")
    if header:
        stable = site / "torch/include/torch/csrc/stable"
        stable.mkdir(parents=True)
        (stable / "library.h").touch()
    code = """
import sys
sys.path = [*sys.argv[1:], *(path for path in sys.path if "site-packages" not in path)]
import torch_location
print(torch_location.find_torch())
"""
    result = run(tmp_path / "env/bin/python", "-c", code, ROOT / "build_backend", cwd=tmp_path)
    assert result.stdout.strip() == str(site / "torch" if found else None), result.stderr
