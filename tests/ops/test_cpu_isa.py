"""Which kernels run, and that those of every instruction set pass the tests of their operators."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sfa_ext  # noqa: F401  registers torch.ops.sfa

HERE = Path(__file__).parent
ISAS = ("baseline", "avx2", "avx512", "avx512bf16", "amx", "torch")
MALLOC_CHECK = Path("/lib/x86_64-linux-gnu/libc_malloc_debug.so.0")


def run(isa: str, *command: str, **extra: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SFA_CPU_ISA": isa, **extra}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False, timeout=240
    )


@pytest.mark.parametrize("isa", ISAS)
def test_operators_pass_their_tests_on(isa):
    """Also with glibc watching the heap, where it can: a byte written behind a tensor ends the run."""
    here = torch.ops.sfa.cpu_isa().split(",")[0]
    if isa != "torch" and ISAS.index(isa) > ISAS.index(here):
        pytest.skip(f"this processor has {here}, not {isa}")
    watch = {"LD_PRELOAD": str(MALLOC_CHECK), "GLIBC_TUNABLES": "glibc.malloc.check=3"} if MALLOC_CHECK.exists() else {}
    tests = [
        str(HERE / f"test_{op}.py")
        for op in ("fused_adapter", "fused_adapter_norm", "window_attention", "sparse_adamw")
    ]
    # Torch's own products may differ in the last bits between alignments and numbers of threads.
    bits = "" if isa == "torch" else " or strided or threads"
    chosen = f"(accurate or spread or asked or kept or fresh{bits}) and not cuda"
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:benchmark", "-k", chosen]
    done = run(isa, "-m", "pytest", *options, *tests, OMP_NUM_THREADS="2", **watch)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


STEP = """
import torch, sfa_ext
torch.manual_seed(0)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    weight, grad = (torch.randn(1003).to(dtype) for _ in range(2))
    index = torch.rand(1003).lt(0.6).nonzero().flatten()
    m, v = torch.randn(len(index)), torch.rand(len(index))
    masters = [] if dtype == torch.float32 else [weight[index].float()]
    rounds, ages = torch.randint(2, (len(index),), dtype=torch.int16), torch.tensor([3, 0])
    settings = (0.01, 0.9, 0.99, 1e-8, 0.1)
    for _ in range(3):
        torch.ops.sfa.sparse_adamw_([weight], [grad], [index], [rounds], [m], [v], masters, ages, *settings)
    for tensor in (weight, m, v, *masters):
        print(tensor.view(torch.uint8).tolist())
"""


def test_a_step_of_the_optimizer_has_the_same_bits_on_every_instruction_set():
    sets = ISAS[: ISAS.index(torch.ops.sfa.cpu_isa().split(",")[0]) + 1]
    results = {run(isa, "-c", STEP).stdout for isa in sets}
    assert len(results) == 1 and len(results.pop().splitlines()) == 11


def test_unknown_instruction_set_is_refused_by_name():
    code = "import torch, sfa_ext\ntry: torch.ops.sfa.cpu_isa()\nexcept RuntimeError as error: print(error)"
    done = run("AVX2", "-c", code)
    message = "SFA_CPU_ISA must be one of baseline, avx2, avx512, avx512bf16, amx, torch, got AVX2"
    # Before torch 2.13 the text of an error raised in the library does not reach Python.
    if tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13):
        assert message in done.stdout, done.stderr
    else:
        assert done.stdout.strip()
