"""Compiles Triton kernels for a GPU that is not there, and says what they take of it."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
_NAMES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
}


@dataclass(frozen=True)
class Usage:
    """shared: bytes for one block; registers: per thread; stack: bytes per thread, where spilled registers go."""

    shared: int
    registers: int
    stack: int
    ptx: str


def pointer(dtype: torch.dtype) -> str:
    return f"*{_NAMES[dtype]}"


def compile_for(capability: int, kernel, arguments: dict, constants: dict, num_warps: int = 4, num_stages: int = 3):
    """`arguments`: name to type ("*bf16", "i64"); the rest of the kernel's are `constants`."""
    signature = {name: arguments.get(name, "constexpr") for name in kernel.arg_names}
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if arguments.get(name, "").startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ).stdout
    registers, stack = (int(re.search(rf"{field}:(\d+)", text)[1]) for field in ("REG", "STACK"))
    return Usage(compiled.metadata.shared, registers, stack, compiled.asm["ptx"])
