"""What serves each operator, and how SFA_BACKEND chooses."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import schemas
import torch

import sfa_ext
from sfa_ext.ops import _library

backends = importlib.import_module("sfa_ext.ops.backends")  # the package's name for it is the function


def run(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def test_every_operator_is_named_with_what_serves_it():
    serving = sfa_ext.ops.backends()
    assert schemas.operators() == set(serving)
    for op, served in serving.items():
        assert served["cpu"] == f"native {torch.ops.sfa.cpu_isa()}"
        by_torch = op in backends.BY_TORCH
        assert served["cuda"] in (("reference",) if by_torch else ("cuda", "triton", "reference"))
        assert served["xpu"] in (("reference",) if by_torch else ("triton", "reference"))
        assert served["other"] == "reference"


def test_every_operator_has_a_cuda_kernel_too():
    csrc = Path(__file__).parents[2] / "csrc"
    registered = [re.findall(r'm\.impl\("(\w+)"', (csrc / name).read_text()) for name in ("ops.cpp", "cuda/module.cpp")]
    assert set(registered[0]) - {"cpu_isa", *backends.BY_TORCH} == set(registered[1]) == set(backends.OPERATORS)


@pytest.mark.skipif(not _library.CUDA_LIBRARY.is_file(), reason="this build holds no CUDA kernels")
def test_the_cuda_library_loads_without_a_gpu_and_serves_every_operator():
    code = """
import torch
from sfa_ext.ops.backends import OPERATORS
from sfa_ext.cli import main
for op in OPERATORS:
    assert "\\nCUDA: registered at csrc/cuda/module.cpp" in torch._C._dispatch_dump(f"sfa::{op}"), op
raise SystemExit(main(["env"]))
"""
    done = run(code, SFA_BACKEND="cuda")
    assert done.returncode == 0, done.stderr
    for op in backends.OPERATORS:
        assert re.search(rf"^{op} +native [\w, ]+ +cuda ", done.stdout, re.M), done.stdout


def test_an_unknown_backend_is_refused_in_one_line():
    done = run("from sfa_ext.cli import main; raise SystemExit(main(['env']))", SFA_BACKEND="Triton")
    message = "SFA_BACKEND must be one of cuda, triton, reference, got 'Triton'; unset it to let sfa_ext choose"
    assert (done.returncode, done.stderr) == (2, f"sfa: error: {message}\n")


def test_torch_serves_gpus_where_it_is_asked_to(monkeypatch):
    monkeypatch.setenv("SFA_BACKEND", "reference")
    # Compiled CUDA kernels of this process were loaded before: a new one would not load them.
    assert {served["xpu"] for served in sfa_ext.ops.backends().values()} == {"reference"}
    done = run("import sfa_ext; print(*{s['cuda'] for s in sfa_ext.ops.backends().values()})", SFA_BACKEND="reference")
    assert done.stdout.split() == ["reference"], done.stderr


@pytest.mark.parametrize("variables", [{}, {"SFA_BACKEND": "triton"}], ids=["chosen", "forced"])
def test_triton_is_not_imported_before_it_is_needed(variables):
    code = "import sys, sfa_ext.env; sfa_ext.env.environment(); print('triton' in sys.modules, 'torch' in sys.modules)"
    assert run(code, **variables).stdout.split() == ["False", "True"]


def test_a_backend_that_is_not_there_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("SFA_BACKEND", "cuda")
    with pytest.raises(ValueError, match="SFA_BACKEND=cuda cannot serve select_topk on xpu.*unset SFA_BACKEND"):
        backends._without_compiled("select_topk", torch.device("xpu"))
    assert sfa_ext.ops.backends()["select_topk"]["xpu"] == "none"


def test_without_triton_torch_serves_gpus_and_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    backends._obstacle.cache_clear()
    try:
        assert sfa_ext.ops.backends()["fused_adapter"]["xpu"] == "reference"
        monkeypatch.setenv("SFA_BACKEND", "triton")
        with pytest.raises(ValueError, match=r"SFA_BACKEND=triton cannot serve swap_values_ on xpu: .*install triton"):
            backends._without_compiled("swap_values_", torch.device("xpu"))
    finally:
        backends._obstacle.cache_clear()


def test_older_gpus_are_served_by_torch(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5) if index == 3 else (9, 0))
    assert "7.5, Triton needs 8.0" in backends._obstacle("cuda", 3)
    assert backends._obstacle("cuda", 4) is None
    backends._obstacle.cache_clear()


def test_a_forced_backend_ends_with_its_block():
    with pytest.raises(ValueError, match="got 'none'"), backends.using("none"):
        pass
    with backends.using("reference"):
        assert backends.choice() == "reference"
    assert backends.choice() == (os.environ.get("SFA_BACKEND") or None)
    x, w = torch.randn(4, 6), torch.randn(3, 6)
    assert torch.ops.sfa.fused_adapter(x, w, None, w.t(), None).shape == (4, 6)
