"""Triton's interpreter, made to compute bfloat16 as GPUs do: by itself it multiplies the bits of such numbers as
integers, and cuts off where a GPU rounds to the nearest."""

from __future__ import annotations

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def repair() -> None:
    builder, convert = interpreter.InterpreterBuilder, interpreter._convert_float
    dot, cast = builder.create_dot, builder.cast_impl

    def convert_as_gpus_do(data, source, target, rounding):
        if (source, target) == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(np.ascontiguousarray(data)).to(torch.bfloat16)
            return rounded.view(torch.uint16).numpy().reshape(data.shape)
        if (source, target) == (tl.bfloat16, tl.float32):
            return (data.astype(np.uint32) << 16).view(np.float32)
        return convert(data, source, target, rounding)

    def wide(self, operand):
        return cast(self, operand, tl.float32) if operand.dtype.scalar == tl.bfloat16 else operand

    interpreter._convert_float = convert_as_gpus_do
    builder.create_dot = lambda self, a, b, d, *rest: dot(self, wide(self, a), wide(self, b), d, *rest)
