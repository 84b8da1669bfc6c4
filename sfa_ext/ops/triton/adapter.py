"""The adapter operators by Triton. Arguments were checked before; what no kernel covers goes to torch's operators.

Covered are float32, bfloat16 and float16 with up to WIDEST_HIDDEN hidden numbers, any number of rows and columns.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from .. import reference
from . import adapter_kernels, backward_kernels
from .tiles import BACKWARD, FORWARD, NORM, NORM_BACKWARD, WIDEST_HIDDEN, Tiles, choose

_ALIGNMENT = 16  # bytes; Triton compiles for aligned pointers, and other ones would give another order of sums


def fused_adapter(x: Tensor, w_down: Tensor, b_down: Tensor | None, w_up: Tensor, b_up: Tensor | None) -> Tensor:
    return _forward(x, w_down, b_down, w_up, b_up, keep=False)[0]


def fused_adapter_keep(x, w_down, b_down, w_up, b_up) -> tuple[Tensor, Tensor]:
    return _forward(x, w_down, b_down, w_up, b_up, keep=True)


def _forward(x, w_down, b_down, w_up, b_up, keep: bool):
    if not _covers(x, w_down):
        return reference.fused_adapter_keep(*map(_aligned, (x, w_down, b_down, w_up, b_up)))
    rows, d = _rows(x), w_down.shape[0]
    out, kept = torch.empty_like(x, memory_format=torch.contiguous_format), None
    if keep:
        kept = x.new_empty((*x.shape[:-1], d))
    weights = map(_aligned, (w_down, b_down, w_up, b_up))
    tiles = choose(rows, d, FORWARD)
    _launch(adapter_kernels.forward, tiles, rows, *weights, out, kept, len(rows), shape=(*rows.shape, d))
    return out, kept


def fused_adapter_norm(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps) -> Tensor:
    if not _covers(x, w_down):
        tensors = (residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias)
        return reference.fused_adapter_norm(*map(_aligned, tensors), eps)
    rows, d = _rows(x), w_down.shape[0]
    out = torch.empty_like(residual, memory_format=torch.contiguous_format)
    vectors = map(_aligned, (w_down, b_down, w_up, b_up, norm_weight, norm_bias))
    tiles = choose(rows, d, NORM)
    inputs, shape = (_rows(residual), rows, *vectors), (*rows.shape, d)
    _launch(adapter_kernels.forward_norm, tiles, *inputs, out, len(rows), eps, shape=shape)
    return out


def fused_adapter_norm_keep(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps, keep_adapted):
    adapted, hidden = fused_adapter_keep(x, w_down, b_down, w_up, b_up)
    out = fused_adapter_norm(residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, eps)
    return out, hidden, adapted if keep_adapted else x.new_empty(0)


def fused_adapter_backward(grad_out, x, w_down, b_down, w_up, output_mask, hidden=None):
    """Gradients of x, w_down, b_down, w_up and b_up; an empty tensor for each that `output_mask` leaves out."""
    if not _covers(x, w_down):
        tensors = map(_aligned, (grad_out, x, w_down, b_down, w_up))
        return reference.fused_adapter_backward(*tensors, output_mask, _aligned(hidden))
    want_x, want_w_down, want_b_down, want_w_up, want_b_up = output_mask
    d, rows, grad = w_down.shape[0], _rows(x), _rows(grad_out)
    w_down, b_down, w_up = map(_aligned, (w_down, b_down, w_up))
    tiles = choose(rows, d, BACKWARD)
    given = None if hidden is None else _rows(hidden)
    grad_x = torch.empty_like(rows) if want_x else None
    hidden_out = rows.new_empty((len(rows), d)) if want_w_up and given is None else None
    grad_hidden = rows.new_empty((len(rows), d)) if want_w_down else None
    b_down_sums, b_up_sums = _partial_sums(rows, tiles, (want_b_down, d), (want_b_up, rows.shape[1]))
    outputs = (grad_x, hidden_out, grad_hidden, b_down_sums, b_up_sums)
    inputs, shape = (grad, rows, w_down, b_down, w_up, given), (*rows.shape, d)
    _launch(backward_kernels.backward, tiles, *inputs, *outputs, len(rows), shape=shape)
    return (
        grad_x.view(x.shape) if want_x else x.new_empty(0),
        grad_hidden.t() @ rows if want_w_down else x.new_empty(0),
        _added(b_down_sums, x),
        grad.t() @ (hidden_out if given is None else given) if want_w_up else x.new_empty(0),
        _added(b_up_sums, x),
    )


def fused_adapter_norm_backward(
    grad_out, x, w_down, b_down, w_up, b_up, norm_weight, eps, output_mask, hidden=None, adapted=None
):
    """Gradients of x, w_down, b_down, w_up, b_up, norm_weight, norm_bias; empty where `output_mask` leaves one out.

    What the norm worked on is always computed again: x is read anyhow, `adapted` would be read besides."""
    if not _covers(x, w_down):
        tensors = map(_aligned, (grad_out, x, w_down, b_down, w_up, b_up, norm_weight))
        return reference.fused_adapter_norm_backward(*tensors, eps, output_mask, _aligned(hidden), _aligned(adapted))
    rows, grad, given = _rows(x), _rows(grad_out), None if hidden is None else _rows(hidden)
    vectors = map(_aligned, (w_down, b_down, w_up, b_up, norm_weight))
    want_y, width, d = any(output_mask[:5]), rows.shape[1], w_down.shape[0]
    tiles = choose(rows, d, NORM_BACKWARD)
    grad_y = torch.empty_like(rows) if want_y else None
    found = rows.new_empty((len(rows), d)) if want_y and given is None else None
    sums = _partial_sums(rows, tiles, *((wanted, width) for wanted in output_mask[5:]))
    inputs, outputs, shape = (grad, rows, *vectors, given), (grad_y, found, *sums), (*rows.shape, d)
    _launch(backward_kernels.norm_backward, tiles, *inputs, *outputs, len(rows), eps, shape=shape)
    grads = tuple(x.new_empty(0) for _ in range(5))
    if want_y:
        hidden = (found if given is None else given).view(*x.shape[:-1], d)
        grads = fused_adapter_backward(grad_y.view(x.shape), x, w_down, b_down, w_up, output_mask[:5], hidden)
    return (*grads, *(_added(part, norm_weight) for part in sums))


def _covers(x: Tensor, w_down: Tensor) -> bool:
    return x.dtype != torch.float64 and 1 <= w_down.shape[0] <= WIDEST_HIDDEN


def _rows(x: Tensor) -> Tensor:
    """x as [n, D], contiguous."""
    return _aligned(x.reshape(-1, x.shape[-1]))


def _aligned(tensor: Tensor | None) -> Tensor | None:
    if tensor is None or (tensor.is_contiguous() and tensor.data_ptr() % _ALIGNMENT == 0):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


def _partial_sums(rows: Tensor, tiles: Tiles, *wanted: tuple[bool, int]) -> list[Tensor | None]:
    """For each (wanted, width) a place for one sum per program."""
    programs = triton.cdiv(len(rows), tiles.rows)
    return [
        torch.empty((programs, width), dtype=torch.float32, device=rows.device) if want else None
        for want, width in wanted
    ]


def _added(sums: Tensor | None, like: Tensor) -> Tensor:
    """The programs' partial sums, added in their order, in the dtype of `like`; empty where none were wanted."""
    return like.new_empty(0) if sums is None else sums.sum(0).to(like.dtype)


def _launch(kernel, tiles: Tiles, *args, shape: tuple[int, int, int]) -> None:
    """Runs a kernel on x [n, D] with d hidden numbers; shape is n, D, d."""
    n, width, d = shape
    if n:
        kernel[(triton.cdiv(n, tiles.rows),)](*args, D=width, d=d, PRECISION=_precision(), **tiles.options)


def _precision() -> str:
    """How float32 is multiplied: as torch was told to. Other types do not ask."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
