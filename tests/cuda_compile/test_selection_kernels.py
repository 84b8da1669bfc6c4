"""The selection kernels on every architecture: they compile, spill nothing and leave room for all threads."""

from __future__ import annotations

from pathlib import Path

import compile as compiler

SOURCE = Path(__file__).parent / "selection_kernels.cu"
# Up to 42 leave room for the 1536 threads that a multiprocessor of sm_86 holds. AdamW has the loads of four entries
# under way at once, which takes registers; kernels of one block may have 64.
REGISTERS = {
    "accumulate_kernel": 48,
    "adamw_kernel": 96,
    "age_kernel": 64,
    "bounds_kernel": 32,
    "digit_kernel": 64,
    "histogram_kernel": 42,
    "place_kernel": 64,
    "start_kernel": 32,
    "swap_kernel": 32,
    "tally_kernel": 42,
    "write_kernel": 42,
}


def registers(kernel: compiler.Kernel) -> int:
    (limit,) = {limit for name, limit in REGISTERS.items() if name in kernel.name}
    # A multiprocessor of sm_75 holds half as many threads with as many registers.
    return max(limit, 64) if kernel.arch == "sm_75" else limit


def test_on_every_architecture_of_nvcc() -> None:
    kernels = compiler.with_nvcc(SOURCE)
    compiler.expect_lean(kernels, registers)
    assert {name for name in REGISTERS if any(name in kernel.name for kernel in kernels)} == set(REGISTERS)


def test_on_v100() -> None:
    compiler.expect_lean(compiler.with_nvrtc(SOURCE), registers)
