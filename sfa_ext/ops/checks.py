"""What the arguments of an operator must be. Each check raises RuntimeError naming the argument and its value."""

from __future__ import annotations

import torch
from torch import Tensor

FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
HALF = (torch.bfloat16, torch.float16)


def name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def shape(argument: str, tensor: Tensor, symbols: str, sizes: tuple[int, ...]) -> None:
    """`symbols` is what the documentation calls the shape, such as "[d, D]"."""
    torch._check(
        tuple(tensor.shape) == sizes,
        lambda: f"{argument} must be {symbols} = {list(sizes)}, got {list(tensor.shape)}",
    )


def like(argument: str, tensor: Tensor, other: str, model: Tensor, *more: torch.dtype) -> None:
    """Raises unless `tensor` is on the device of `model` and has its dtype or one of `more`."""
    torch._check(
        tensor.dtype in (model.dtype, *more),
        lambda: (
            f"{argument} must be {' or '.join(map(name, dict.fromkeys((model.dtype, *more))))} "
            f"(the dtype of {other} is {name(model.dtype)}), got {name(tensor.dtype)}"
        ),
    )
    torch._check(
        tensor.device == model.device,
        lambda: f"{argument} must be on {model.device} as {other} is, got {tensor.device}",
    )


def floating(argument: str, tensor: Tensor) -> None:
    torch._check(
        tensor.dtype in FLOATING,
        lambda: (
            f"{argument} must be {', '.join(map(name, FLOATING[:-1]))} or {name(FLOATING[-1])}, "
            f"got {name(tensor.dtype)}"
        ),
    )


def adapter(x: Tensor, w_down: Tensor, b_down: Tensor | None, w_up: Tensor, b_up: Tensor | None) -> None:
    """The arguments of `fused_adapter`."""
    floating("x", x)
    torch._check(x.dim() >= 1, lambda: f"x must be [..., D], got a tensor without dimensions: {list(x.shape)}")
    torch._check(w_down.dim() == 2, lambda: f"w_down must be [d, D], got {list(w_down.shape)}")
    width, hidden = x.shape[-1], w_down.shape[0]
    torch._check(width >= 1, lambda: f"x must be [..., D] with D at least 1, got {list(x.shape)}")
    shape("w_down", w_down, "[d, D]", (hidden, width))
    shape("w_up", w_up, "[D, d]", (width, hidden))
    for argument, tensor in (("w_down", w_down), ("w_up", w_up)):
        like(argument, tensor, "x", x)
    for argument, bias, symbols, size in (("b_down", b_down, "[d]", hidden), ("b_up", b_up, "[D]", width)):
        if bias is not None:
            shape(argument, bias, symbols, (size,))
            like(argument, bias, "x", x)


def adapter_backward(
    grad_out: Tensor,
    x: Tensor,
    w_down: Tensor,
    b_down: Tensor | None,
    w_up: Tensor,
    output_mask: list[bool],
    hidden: Tensor | None = None,
) -> None:
    """The arguments of `fused_adapter_backward`."""
    adapter(x, w_down, b_down, w_up, None)
    shape("grad_out", grad_out, "the shape of x", tuple(x.shape))
    like("grad_out", grad_out, "x", x)
    torch._check(len(output_mask) == 5, lambda: f"output_mask must have 5 entries, got {len(output_mask)}")
    _kept("hidden", hidden, "[..., d]", x, w_down.shape[0])


def adapter_norm(
    residual: Tensor,
    x: Tensor,
    w_down: Tensor,
    b_down: Tensor | None,
    w_up: Tensor,
    b_up: Tensor | None,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    keep_adapted: bool = False,
) -> None:
    """The arguments of `fused_adapter_norm`, and of `fused_adapter_norm_keep`."""
    adapter(x, w_down, b_down, w_up, b_up)
    shape("residual", residual, "the shape of x", tuple(x.shape))
    like("residual", residual, "x", x, *_wider(x))
    _norm_weight(norm_weight, x, eps)
    shape("norm_bias", norm_bias, "[D]", (x.shape[-1],))
    like("norm_bias", norm_bias, "norm_weight", norm_weight)


def adapter_norm_backward(
    grad_out: Tensor,
    x: Tensor,
    w_down: Tensor,
    b_down: Tensor | None,
    w_up: Tensor,
    b_up: Tensor | None,
    norm_weight: Tensor,
    eps: float,
    output_mask: list[bool],
    hidden: Tensor | None = None,
    adapted: Tensor | None = None,
) -> None:
    """The arguments of `fused_adapter_norm_backward`."""
    adapter(x, w_down, b_down, w_up, b_up)
    shape("grad_out", grad_out, "the shape of x", tuple(x.shape))
    like("grad_out", grad_out, "x", x, *_wider(x))
    _norm_weight(norm_weight, x, eps)
    torch._check(len(output_mask) == 7, lambda: f"output_mask must have 7 entries, got {len(output_mask)}")
    _kept("hidden", hidden, "[..., d]", x, w_down.shape[0])
    _kept("adapted", adapted, "[..., D]", x, x.shape[-1])


def _kept(argument: str, tensor: Tensor | None, symbols: str, x: Tensor, columns: int) -> None:
    if tensor is not None:
        shape(argument, tensor, symbols, (*x.shape[:-1], columns))
        like(argument, tensor, "x", x)


def _norm_weight(norm_weight: Tensor, x: Tensor, eps: float) -> None:
    shape("norm_weight", norm_weight, "[D]", (x.shape[-1],))
    like("norm_weight", norm_weight, "x", x, *_wider(x))
    torch._check(eps >= 0, lambda: f"eps must not be negative, got {eps}")


def _wider(x: Tensor) -> tuple[torch.dtype, ...]:
    """What the residual and the norm may have in place of the dtype of x."""
    return (torch.float32,) if x.dtype in HALF else ()
