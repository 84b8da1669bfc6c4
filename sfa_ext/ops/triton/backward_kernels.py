"""Triton kernels of the adapter's backward: the hidden numbers are computed again, never read from a forward.

They leave in memory what the products over rows need (hidden numbers and their gradient), which torch's matrix products
take from there, and partial sums for the gradients of vectors. See adapter_kernels.py for the rules of tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .adapter_kernels import _activate, _hidden, _load, _load_row, _result, _row_moments, _store, _store_row


@triton.jit(do_not_specialize=["n"])
def backward(
    grad, x, w_down, b_down, w_up, given, grad_x, hidden_out, grad_hidden_out, b_down_sums, b_up_sums, n,
    D: tl.constexpr, d: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """grad_x = grad + grad_hidden w_down, where grad_hidden = (grad w_up) [hidden > 0]; the hidden numbers come from
    `given` if that is there. Outputs that are None are left out."""
    program = tl.program_id(0)
    rows = program.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    units = tl.arange(0, BLOCK_H)
    product = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
    back = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
    for start in range(0, D, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        if given is None:
            tile = _load(x, rows, cols, n, D, BLOCK_K)
            weight = _load(w_down, units, cols, d, D, BLOCK_K)
            product = tl.dot(tile, tl.trans(weight), product, input_precision=PRECISION)
        g = _load(grad, rows, cols, n, D, BLOCK_K)
        back = tl.dot(g, _load(w_up, cols, units, D, d, BLOCK_H), back, input_precision=PRECISION)
        if b_up_sums is not None:
            _store_row(b_up_sums, program, cols, D, tl.sum(g.to(tl.float32), 0))
    if given is not None:
        hidden = _load(given, rows, units, n, d, BLOCK_H).to(tl.float32)
    else:
        hidden = _activate(product, b_down, d, BLOCK_H)
        if hidden_out is not None:
            _store(hidden_out, rows, units, n, d, BLOCK_H, hidden)
    outside = (rows >= n)[:, None] | (units >= d)[None, :]
    # What eager asks is its rounded hidden number: one too small for its type is zero there, and passes nothing.
    hidden = hidden.to(x.dtype.element_ty).to(tl.float32)
    grad_hidden = tl.where((hidden <= 0) | outside, 0.0, back).to(x.dtype.element_ty)
    if b_down_sums is not None:
        _store_row(b_down_sums, program, units, d, tl.sum(grad_hidden.to(tl.float32), 0))
    if grad_hidden_out is not None:
        _store(grad_hidden_out, rows, units, n, d, BLOCK_H, grad_hidden)
    if grad_x is not None:
        for start in range(0, D, BLOCK_K):
            cols = start + tl.arange(0, BLOCK_K)
            g = _load(grad, rows, cols, n, D, BLOCK_K).to(tl.float32)
            weight = _load(w_down, units, cols, d, D, BLOCK_K)
            _store(grad_x, rows, cols, n, D, BLOCK_K, g + tl.dot(grad_hidden, weight, input_precision=PRECISION))


@triton.jit
def _normed_and_weighted(
    grad, x, hidden, w_up, b_up, norm_weight, rows, cols, n, mean, scale,
    D: tl.constexpr, d: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """The normed result of the adapter, grad_out, and grad_out times the norm's weight, in these columns."""
    tile = _load(x, rows, cols, n, D, BLOCK_K)
    y = _result(tile, hidden, w_up, b_up, cols, D, d, PRECISION, BLOCK_H)
    inside = (rows < n)[:, None] & (cols < D)[None, :]
    normed = tl.where(inside, (y - mean[:, None]) * scale[:, None], 0.0)
    g = _load(grad, rows, cols, n, D, BLOCK_K).to(tl.float32)
    return normed, g, tl.where(inside, g * _load_row(norm_weight, cols, D), 0.0)


@triton.jit(do_not_specialize=["n", "eps"])
def norm_backward(
    grad, x, w_down, b_down, w_up, b_up, norm_weight, given, grad_y, hidden_out, weight_sums, bias_sums, n, eps,
    D: tl.constexpr, d: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """The gradient of the adapter's result through LayerNorm, and the hidden numbers; what is None is left out."""
    program = tl.program_id(0)
    rows = program.to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    units = tl.arange(0, BLOCK_H)
    if given is not None:
        hidden = _load(given, rows, units, n, d, BLOCK_H)
    else:
        hidden = _hidden(x, w_down, b_down, rows, n, D, d, PRECISION, BLOCK_N, BLOCK_K, BLOCK_H)
        hidden = hidden.to(x.dtype.element_ty)
        if hidden_out is not None:
            _store(hidden_out, rows, units, n, d, BLOCK_H, hidden)
    mean, variance = _row_moments(x, hidden, w_up, b_up, rows, n, D, d, PRECISION, BLOCK_N, BLOCK_K, BLOCK_H)
    scale = 1.0 / tl.sqrt(variance + eps)
    mean_grad = tl.zeros((BLOCK_N,), tl.float32)
    mean_product = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, D, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        normed, g, weighted = _normed_and_weighted(
            grad, x, hidden, w_up, b_up, norm_weight, rows, cols, n, mean, scale,
            D, d, PRECISION, BLOCK_K, BLOCK_H,
        )  # fmt: skip
        mean_grad += tl.sum(weighted, 1) / D
        mean_product += tl.sum(weighted * normed, 1) / D
        if weight_sums is not None:
            _store_row(weight_sums, program, cols, D, tl.sum(g * normed, 0))
        if bias_sums is not None:
            _store_row(bias_sums, program, cols, D, tl.sum(g, 0))
    if grad_y is not None:
        for start in range(0, D, BLOCK_K):
            cols = start + tl.arange(0, BLOCK_K)
            normed, _, weighted = _normed_and_weighted(
                grad, x, hidden, w_up, b_up, norm_weight, rows, cols, n, mean, scale,
                D, d, PRECISION, BLOCK_K, BLOCK_H,
            )  # fmt: skip
            change = weighted - mean_grad[:, None] - normed * mean_product[:, None]
            _store(grad_y, rows, cols, n, D, BLOCK_K, change * scale[:, None])
