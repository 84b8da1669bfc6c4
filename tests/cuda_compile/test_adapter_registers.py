"""The adapter's kernels on every architecture: they compile, spill nothing, and as many blocks share a multiprocessor
as its shared memory holds."""

from __future__ import annotations

from pathlib import Path

import compile as compiler
import pytest

SOURCE = Path(__file__).parent / "adapter_kernels.cu"
# 128 for each of the 256 threads of a block are half of what a multiprocessor has. Chunks of 128 hidden numbers leave
# shared memory for one block alone, except on sm_90 and sm_100 (tests/cuda_emulator/adapter_plan.cpp). A block of 1024
# threads may have 64.
KERNELS = {"adapter_kernel", "adapter_norm_kernel", "sum_parts_kernel"}
pytestmark = pytest.mark.timeout(1800)  # two minutes, unless others have the processor


def registers(kernel: compiler.Kernel) -> int:
    if "sum_parts_kernel" in kernel.name:
        return 64
    return 255 if "ELi128E" in kernel.name and kernel.arch not in ("sm_90", "sm_100") else 128


def test_on_every_architecture_of_nvcc() -> None:
    kernels = compiler.with_nvcc(SOURCE)
    compiler.expect_lean(kernels, registers)
    assert {name for name in KERNELS if any(name in kernel.name for kernel in kernels)} == KERNELS


def test_on_v100() -> None:
    compiler.expect_lean(compiler.with_nvrtc(SOURCE), registers)
