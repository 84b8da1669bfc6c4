"""Builds the emulator's test programs; cuda_emulator.h says how to write one."""

from __future__ import annotations

from pathlib import Path

import programs
from programs import Replacement, expect_fault, expect_pass, run

__all__ = ["build", "expect_fault", "expect_pass", "run"]


def build(program: str, *, arch: int = 800, sanitize: bool = False, replace: tuple[Replacement, ...] = ()) -> Path:
    """Compiles `program`.cpp of this folder with the kernels of csrc/cuda and returns the executable.

    arch: the generation the kernels believe to run on, as __CUDA_ARCH__ says it. The rest is as for `programs.build`.
    """
    main = Path(__file__).resolve().parent / f"{program}.cpp"
    flags = [f"-DSFA_EMULATED_ARCH={arch}"]
    return programs.build(main, ("cuda", "common"), flags, sanitize=sanitize, replace=replace)
