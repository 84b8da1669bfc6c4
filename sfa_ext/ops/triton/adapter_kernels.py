"""Triton kernels of the adapter. A program takes BLOCK_N rows; its hidden numbers leave the chip only where asked for.

BLOCK_K columns are taken at a time; where that is all of them, a tile of x is read once and stays on the chip. Sums
over rows are left as one partial sum per program, which torch adds in their order: no atomics, so the same input gives
the same bits. What lies beyond D, d or n is made zero, not only masked: infinity times an absent weight must not become
NaN in what is there.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _load(base, rows, cols, n, width: tl.constexpr, block: tl.constexpr):
    """Tile of a contiguous matrix [n, width], zero outside of it; columns are taken `block` at a time."""
    mask = (rows < n)[:, None]
    if width % block != 0:
        mask = mask & (cols < width)[None, :]
    return tl.load(base + rows.to(tl.int64)[:, None] * width + cols[None, :], mask=mask, other=0.0)


@triton.jit
def _store(base, rows, cols, n, width: tl.constexpr, block: tl.constexpr, value):
    mask = (rows < n)[:, None]
    if width % block != 0:
        mask = mask & (cols < width)[None, :]
    offsets = rows.to(tl.int64)[:, None] * width + cols[None, :]
    tl.store(base + offsets, value.to(base.dtype.element_ty), mask=mask)


@triton.jit
def _load_row(base, cols, width: tl.constexpr):
    return tl.load(base + cols, mask=cols < width, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _store_row(base, row, cols, width: tl.constexpr, value):
    tl.store(base + row.to(tl.int64) * width + cols, value, mask=cols < width)


@triton.jit
def _activate(product, b_down, d: tl.constexpr, BLOCK_H: tl.constexpr):
    """relu(product + b_down); NaN stays NaN."""
    units = tl.arange(0, BLOCK_H)
    if b_down is not None:
        product += _load_row(b_down, units, d)
    return tl.where((product <= 0) | (units >= d)[None, :], 0.0, product)


@triton.jit
def _hidden(
    x, w_down, b_down, rows, n,
    D: tl.constexpr, d: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """relu(x w_down^T + b_down) of these rows, in float32."""
    units = tl.arange(0, BLOCK_H)
    product = tl.zeros((BLOCK_N, BLOCK_H), tl.float32)
    for start in range(0, D, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        tile = _load(x, rows, cols, n, D, BLOCK_K)
        weight = _load(w_down, units, cols, d, D, BLOCK_K)
        product = tl.dot(tile, tl.trans(weight), product, input_precision=PRECISION)
    return _activate(product, b_down, d, BLOCK_H)


@triton.jit
def _on_chip(
    x, w_down, b_down, rows, n,
    D: tl.constexpr, d: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """All columns, x in them, and the hidden numbers of these rows in the dtype of x, where BLOCK_K covers D."""
    cols = tl.arange(0, BLOCK_K)
    tile = _load(x, rows, cols, n, D, BLOCK_K)
    weight = _load(w_down, tl.arange(0, BLOCK_H), cols, d, D, BLOCK_K)
    product = tl.dot(tile, tl.trans(weight), input_precision=PRECISION)
    return cols, tile, _activate(product, b_down, d, BLOCK_H).to(x.dtype.element_ty)


@triton.jit
def _result(
    tile, hidden, w_up, b_up, cols,
    D: tl.constexpr, d: tl.constexpr, PRECISION: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """tile + hidden w_up^T + b_up in these columns, in float32; zero beyond D."""
    weight = _load(w_up, cols, tl.arange(0, BLOCK_H), D, d, BLOCK_H)
    y = tl.dot(hidden, tl.trans(weight), input_precision=PRECISION) + tile.to(tl.float32)
    if b_up is not None:
        y += _load_row(b_up, cols, D)
    return tl.where((cols < D)[None, :], y, 0.0)


@triton.jit(do_not_specialize=["n"])
def forward(
    x, w_down, b_down, w_up, b_up, out, kept, n,
    D: tl.constexpr, d: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """out = x + relu(x w_down^T + b_down) w_up^T + b_up; the hidden numbers to `kept` if given."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    units = tl.arange(0, BLOCK_H)
    if BLOCK_K >= D:
        cols, tile, hidden = _on_chip(x, w_down, b_down, rows, n, D, d, PRECISION, BLOCK_K, BLOCK_H)
        y = _result(tile, hidden, w_up, b_up, cols, D, d, PRECISION, BLOCK_H)
        _store(out, rows, cols, n, D, BLOCK_K, y)
    else:
        hidden = _hidden(x, w_down, b_down, rows, n, D, d, PRECISION, BLOCK_N, BLOCK_K, BLOCK_H)
        hidden = hidden.to(x.dtype.element_ty)
        for start in range(0, D, BLOCK_K):
            cols = start + tl.arange(0, BLOCK_K)
            tile = _load(x, rows, cols, n, D, BLOCK_K)
            y = _result(tile, hidden, w_up, b_up, cols, D, d, PRECISION, BLOCK_H)
            _store(out, rows, cols, n, D, BLOCK_K, y)
    if kept is not None:
        _store(kept, rows, units, n, d, BLOCK_H, hidden)


@triton.jit
def _moments(y, cols, D: tl.constexpr):
    """Mean and sum of squared differences from it, of each row in these columns; y is zero beyond D."""
    count = tl.sum(tl.where(cols < D, 1.0, 0.0))
    mean = tl.sum(y, 1) / count
    difference = tl.where((cols < D)[None, :], y - mean[:, None], 0.0)
    return count, mean, tl.sum(difference * difference, 1)


@triton.jit
def _row_moments(
    x, hidden, w_up, b_up, rows, n,
    D: tl.constexpr, d: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Mean and variance of each row of the adapter's result, block by block (Chan, Golub and LeVeque, 1979)."""
    total = 0.0
    mean = tl.zeros((BLOCK_N,), tl.float32)
    squares = tl.zeros((BLOCK_N,), tl.float32)
    for start in range(0, D, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        tile = _load(x, rows, cols, n, D, BLOCK_K)
        y = _result(tile, hidden, w_up, b_up, cols, D, d, PRECISION, BLOCK_H)
        count, block_mean, block_squares = _moments(y, cols, D)
        delta = block_mean - mean
        share = count / (total + count)
        mean += delta * share
        squares += block_squares + delta * delta * (total * share)
        total += count
    return mean, squares / D


@triton.jit
def _add_norm(residual, weight, bias, rows, cols, n, centred, scale, D: tl.constexpr, BLOCK_K: tl.constexpr):
    normed = centred * scale[:, None] * _load_row(weight, cols, D) + _load_row(bias, cols, D)
    return _load(residual, rows, cols, n, D, BLOCK_K).to(tl.float32) + normed


@triton.jit(do_not_specialize=["n", "eps"])
def forward_norm(
    residual, x, w_down, b_down, w_up, b_up, norm_weight, norm_bias, out, n, eps,
    D: tl.constexpr, d: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """out = residual + LayerNorm(adapter(x)). Where a row is too long to stay on the chip, its columns are computed
    twice: once for mean and variance, once for the result."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    if BLOCK_K >= D:
        cols, tile, hidden = _on_chip(x, w_down, b_down, rows, n, D, d, PRECISION, BLOCK_K, BLOCK_H)
        y = _result(tile, hidden, w_up, b_up, cols, D, d, PRECISION, BLOCK_H)
        _, mean, squares = _moments(y, cols, D)
        scale = 1.0 / tl.sqrt(squares / D + eps)
        y = _add_norm(residual, norm_weight, norm_bias, rows, cols, n, y - mean[:, None], scale, D, BLOCK_K)
        _store(out, rows, cols, n, D, BLOCK_K, y)
    else:
        hidden = _hidden(x, w_down, b_down, rows, n, D, d, PRECISION, BLOCK_N, BLOCK_K, BLOCK_H)
        hidden = hidden.to(x.dtype.element_ty)
        mean, variance = _row_moments(x, hidden, w_up, b_up, rows, n, D, d, PRECISION, BLOCK_N, BLOCK_K, BLOCK_H)
        scale = 1.0 / tl.sqrt(variance + eps)
        for start in range(0, D, BLOCK_K):
            cols = start + tl.arange(0, BLOCK_K)
            tile = _load(x, rows, cols, n, D, BLOCK_K)
            y = _result(tile, hidden, w_up, b_up, cols, D, d, PRECISION, BLOCK_H)
            y = _add_norm(residual, norm_weight, norm_bias, rows, cols, n, y - mean[:, None], scale, D, BLOCK_K)
            _store(out, rows, cols, n, D, BLOCK_K, y)
