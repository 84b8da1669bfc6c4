"""Triton kernels that score, update and exchange single entries of many weights in one launch (see tables.py).

Positions and offsets are int64. A position outside of its weight and a round without an age are left alone: nobody
waits for the GPU to be told.
"""

from __future__ import annotations

import triton
import triton.language as tl

LENGTH: tl.constexpr = tl.constexpr(0)  # columns of every table
FIRST: tl.constexpr = tl.constexpr(1)


@triton.jit
def part(table, owners, program, COLUMNS: tl.constexpr, CHUNK: tl.constexpr):
    """The row of the table that this program works on, and its elements: begin, end."""
    row = table + tl.load(owners + program) * COLUMNS
    begin = (program - tl.load(row + FIRST)) * CHUNK
    return row, begin, tl.minimum(begin + CHUNK, tl.load(row + LENGTH))


@triton.jit
def column(row, index: tl.constexpr, dtype: tl.constexpr):
    """The address in this column as a pointer to `dtype`."""
    return tl.load(row + index).to(tl.pointer_type(dtype))


@triton.jit
def accumulate(
    table, owners, SCORE: tl.constexpr, GRAD: tl.constexpr, CRITERION: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Table: length, first, scores, grads."""
    row, begin, end = part(table, owners, tl.program_id(0), 4, CHUNK)
    scores, grads = column(row, 2, SCORE), column(row, 3, GRAD)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        g = tl.load(grads + at, mask=at < end, other=0.0).to(SCORE)
        if CRITERION == "absolute":
            g = tl.abs(g)
        if CRITERION == "squared":
            g = g * g
        tl.store(scores + at, tl.load(scores + at, mask=at < end, other=0.0) + g, mask=at < end)


@triton.jit
def _power(base, exponent, BITS: tl.constexpr):
    """base ** exponent for whole exponents below 2 ** BITS."""
    result = tl.full(exponent.shape, 1.0, tl.float64)
    factor = base + tl.zeros(exponent.shape, tl.float64)
    for _ in range(BITS):
        result = tl.where(exponent % 2 == 1, result * factor, result)
        factor = factor * factor
        exponent = exponent // 2
    return result


@triton.jit
def advance(ages, settings, corrections, ROUNDS: tl.constexpr, BLOCK: tl.constexpr):
    """Adds 1 to the ages of at least 0, and writes lr / (1 - beta1^age), then 1 / sqrt(1 - beta2^age), per round.
    Settings: lr, beta1, beta2, ..."""
    rounds = tl.arange(0, BLOCK)
    age = tl.load(ages + rounds, mask=rounds < ROUNDS, other=-1)
    age = tl.where(age >= 0, age + 1, age)
    tl.store(ages + rounds, age, mask=rounds < ROUNDS)
    exponent = tl.maximum(age, 1)
    first = tl.load(settings) / (1.0 - _power(tl.load(settings + 1), exponent, 40))
    second = 1.0 / tl.sqrt(1.0 - _power(tl.load(settings + 2), exponent, 40))
    tl.store(corrections + rounds, first, mask=rounds < ROUNDS)
    tl.store(corrections + ROUNDS + rounds, second, mask=rounds < ROUNDS)


@triton.jit
def adamw(
    table, owners, ages, settings, corrections, ROUNDS,
    WEIGHT: tl.constexpr, GRAD: tl.constexpr, INDEX: tl.constexpr, WIDE: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Table: entries, first, weight, its length, grad, gathered, index, round, exp_avg, exp_avg_sq, master (0: none).
    Settings: lr, beta1, beta2, eps, 1 - lr * weight_decay."""
    row, begin, end = part(table, owners, tl.program_id(0), 11, CHUNK)
    weight, length = column(row, 2, WEIGHT), tl.load(row + 3)
    grad, gathered = column(row, 4, GRAD), tl.load(row + 5)
    index, round_of = column(row, 6, INDEX), column(row, 7, tl.int16)
    exp_avg, exp_avg_sq = column(row, 8, WIDE), column(row, 9, WIDE)
    beta1, beta2 = tl.load(settings + 1), tl.load(settings + 2)
    eps, keep = tl.load(settings + 3).to(WIDE), tl.load(settings + 4).to(WIDE)
    rest1, rest2, beta2 = (1.0 - beta1).to(WIDE), (1.0 - beta2).to(WIDE), beta2.to(WIDE)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        position = tl.load(index + at, mask=at < end, other=-1)
        number = tl.load(round_of + at, mask=at < end, other=-1).to(tl.int32)
        valid = (position >= 0) & (position < length) & (number >= 0) & (number < ROUNDS)
        valid = valid & (tl.load(ages + number, mask=valid, other=-1) >= 0)
        g = tl.load(grad + tl.where(gathered != 0, at, position), mask=valid, other=0.0).to(WIDE)
        m = tl.load(exp_avg + at, mask=valid, other=0.0)
        v = tl.load(exp_avg_sq + at, mask=valid, other=0.0)
        m += rest1 * (g - m)
        v = beta2 * v + rest2 * (g * g)
        step_size = tl.load(corrections + number, mask=valid, other=0.0).to(WIDE)
        inverse_root = tl.load(corrections + ROUNDS + number, mask=valid, other=0.0).to(WIDE)
        if WEIGHT == WIDE:
            value = tl.load(weight + position, mask=valid, other=0.0)
        else:
            master = column(row, 10, WIDE)
            value = tl.load(master + at, mask=valid, other=0.0)
        value = value * keep - step_size * (m / (tl.sqrt(v) * inverse_root + eps))
        tl.store(exp_avg + at, m, mask=valid)
        tl.store(exp_avg_sq + at, v, mask=valid)
        if WEIGHT != WIDE:
            tl.store(master + at, value, mask=valid)
        tl.store(weight + position, value.to(WEIGHT), mask=valid)


@triton.jit(do_not_specialize=["k", "length"])
def swap(weight, index, values, k, length, WORDS: tl.constexpr, BLOCK: tl.constexpr):
    """Exchanges entries of WORDS integers each."""
    word = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    entry = word // WORDS
    position = tl.load(index + entry, mask=entry < k, other=-1).to(tl.int64)
    valid = (position >= 0) & (position < length)
    place = weight + position * WORDS + word % WORDS
    kept = tl.load(place, mask=valid, other=0)
    tl.store(place, tl.load(values + word, mask=valid, other=0), mask=valid)
    tl.store(values + word, kept, mask=valid)
