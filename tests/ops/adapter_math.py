"""The adapter in float64, and the arguments that its tests share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import sfa_ext  # noqa: F401  registers torch.ops.sfa

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BOUND = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 1e-2}
# rows, D, d: single numbers, odd sizes, whole tiles and what is left of them, several blocks and parts of rows
SIZES = (
    (1, 1, 1),
    (5, 7, 3),
    (1, 64, 32),
    (13, 33, 17),
    (47, 100, 1),
    (100, 128, 64),
    (301, 200, 100),
    (61, 150, 130),
    (4100, 48, 24),
)
# Where a test is about something else than sizes: one with parts of everything, and one that the CUDA kernels serve,
# which for half types want multiples of 8 and leave others to torch.
ODD_AND_SERVED = ((37, 50, 20), (37, 56, 24))


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def size_name(size: tuple[int, int, int]) -> str:
    return "x".join(map(str, size))


def adapter(x: Tensor, w_down: Tensor, b_down: Tensor | None, w_up: Tensor, b_up: Tensor | None) -> Tensor:
    return x + F.linear(F.relu(F.linear(x, w_down, b_down)), w_up, b_up)


def adapter_norm(residual: Tensor, x: Tensor, *rest: Tensor | None | float) -> Tensor:
    *weights, norm_weight, norm_bias, eps = rest
    y = adapter(x, *weights).to(norm_weight.dtype)
    return residual + F.layer_norm(y, y.shape[-1:], norm_weight, norm_bias, eps)


def draw(size, dtype, device="cpu", bias=True):
    """x, w_down, b_down, w_up, b_up."""
    rows, width, hidden = size
    shapes = ((rows, width), (hidden, width), (hidden,) if bias else None, (width, hidden), (width,) if bias else None)
    scales = (1, width**-0.5, 1, hidden**-0.5, 1)
    return [
        None if shape is None else (torch.randn(shape) * scale).to(device, dtype)
        for shape, scale in zip(shapes, scales, strict=True)
    ]


def draw_norm(size, dtype, device="cpu", bias=True, wide=None):
    """residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps; residual and norm in dtype `wide`."""
    rows, width, _ = size
    residual, norm_weight, norm_bias = (torch.randn(s).to(device, wide or dtype) for s in ((rows, width), width, width))
    return [residual, *draw(size, dtype, device, bias), norm_weight, norm_bias, 1e-5]


def with_grad(args):
    return [a.detach().clone().requires_grad_() if isinstance(a, Tensor) else a for a in args]


def in_double(args):
    return [a.double() if isinstance(a, Tensor) else a for a in args]


def result_and_gradients(function, args, grad_out):
    """The result, then the gradient of every tensor among args."""
    args = with_grad(args)
    out = function(*args)
    leaves = [a for a in args if isinstance(a, Tensor)]
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out.to(out.dtype))]


def error(got: Tensor, exact: Tensor) -> float:
    """Norm of the difference, relative to the exact norm or to that of rounding where the exact result is zero."""
    assert got.shape == exact.shape
    if exact.numel() == 0:
        return 0.0
    return float((got.double() - exact).norm() / exact.norm().clamp(min=1e-6))


def assert_accurate(ours, theirs, exact, dtype):
    """Each tensor within the bound of its dtype, and for half types no worse than 1.5 times eager's own error."""
    half = dtype in (torch.bfloat16, torch.float16)
    for got, eager, true in zip(ours, theirs, exact, strict=True):
        assert got.dtype == eager.dtype and got.device == eager.device
        assert error(got, true) <= BOUND[dtype]
        if half:
            assert error(got, true) <= max(1.5 * error(eager, true), torch.finfo(got.dtype).eps / 2)
