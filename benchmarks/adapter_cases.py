"""The adapter operators at the shapes of SwinV2's stages, and what one would write in their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import sfa_ext  # noqa: F401  registers torch.ops.sfa

# D, and rows per image of 512 x 512 pixels, of the four stages of SwinV2-Base and SwinV2-Large
STAGES = ((128, 16384), (256, 4096), (512, 1024), (1024, 256), (192, 16384), (384, 4096), (768, 1024), (1536, 256))
HIDDEN = (64, 128, 256)
FEW = ((128, 16384), (512, 1024), (1536, 256))
FEW_HIDDEN = (64, 256)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CANDIDATES = ("ours", "eager", "compile")


def eager(x: Tensor, w_down: Tensor, b_down: Tensor, w_up: Tensor, b_up: Tensor) -> Tensor:
    return x + F.linear(F.relu(F.linear(x, w_down, b_down)), w_up, b_up)


def eager_norm(residual: Tensor, x: Tensor, *args: Tensor) -> Tensor:
    *weights, norm_weight, norm_bias = args
    return residual + F.layer_norm(eager(x, *weights), x.shape[-1:], norm_weight, norm_bias, 1e-5)


def ours(x: Tensor, *weights: Tensor) -> Tensor:
    return torch.ops.sfa.fused_adapter(x, *weights)


def ours_norm(residual: Tensor, x: Tensor, *args: Tensor) -> Tensor:
    return torch.ops.sfa.fused_adapter_norm(residual, x, *args, 1e-5)


# phase: whether it has the norm, whether it has a backward
PHASES = {
    "forward": (False, False),
    "norm": (True, False),
    "forward+backward": (False, True),
    "norm forward+backward": (True, True),
}


@dataclass(frozen=True)
class Shape:
    rows: int
    width: int
    hidden: int
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} N={self.rows} D={self.width} d={self.hidden}"


def shapes(every: bool, batches: tuple[int, ...] = (1,), dtypes: tuple[str, ...] = tuple(DTYPES)) -> list[Shape]:
    """All stages, or a few that stand for them, for each dtype."""
    return [
        Shape(batch * rows, width, hidden, dtype)
        for dtype in dtypes
        for batch in batches
        for width, rows in (STAGES if every else FEW)
        for hidden in (HIDDEN if every else FEW_HIDDEN)
    ]


def calls(shape: Shape, phase: str, names: tuple[str, ...] = CANDIDATES) -> dict[str, Callable[[], object]]:
    """The candidates by name, all on the same tensors. torch.compile specialises on the shape."""
    norm, backward = PHASES[phase]
    rows, width, hidden, dtype = shape.rows, shape.width, shape.hidden, DTYPES[shape.dtype]
    sizes = [(rows, width), (hidden, width), (hidden,), (width, hidden), (width,)]
    scales = [1, width**-0.5, 1, hidden**-0.5, 1]
    if norm:
        sizes, scales = [(rows, width), *sizes, (width,), (width,)], [1, *scales, 1, 1]
    args = [(torch.randn(size) * scale).to(dtype) for size, scale in zip(sizes, scales, strict=True)]
    grad_out = torch.randn(rows, width).to(dtype)
    plain = eager_norm if norm else eager
    functions = {"ours": ours_norm if norm else ours, "eager": plain}
    if "compile" in names:
        torch._dynamo.reset()
        functions["compile"] = torch.compile(plain, dynamic=False)
    return {name: _call(functions[name], args, grad_out if backward else None) for name in names}


def _call(function: Callable[..., Tensor], args: list[Tensor], grad_out: Tensor | None) -> Callable[[], object]:
    if grad_out is None:
        return torch.no_grad()(lambda: function(*args))
    leaves = [a.detach().clone().requires_grad_() for a in args]
    return lambda: torch.autograd.grad(function(*leaves), leaves, grad_out)
