"""Sorted positions in few bits: Golomb-Rice codes of the gaps between them, in two planes that numpy reads at once.

A gap g (entries skipped since the position before) is split at bit r into g >> r and g mod 2^r. The stream holds first
the quotients in unary, each as that many zero bits and a one; after padding to a whole byte the remainders, r bits
each, the highest bit first; then padding to a byte again. Padding is zero. For independent positions of share p the
code is within a few per cent of the entropy h(p) / p (Golomb 1966; Gallager and van Voorhis 1975). Where more than
half of all entries are taken, those left out are coded instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Beyond this share the entries left out are fewer.
_HALF = 0.5


@dataclass(frozen=True)
class Coding:
    """How the positions of one tensor are written. `count` of `size` entries are selected."""

    size: int
    count: int
    rice: int  # r: bits of a remainder
    bytes: int  # length of the stream

    @property
    def coded(self) -> int:
        """How many positions the stream holds: those selected, or those left out where these are fewer."""
        return self.count if self.count <= _HALF * self.size else self.size - self.count


def encode(index: np.ndarray, size: int) -> tuple[Coding, np.ndarray]:
    """The coding and the stream (uint8) of `index`, int64, strictly increasing in [0, size).

    Raises ValueError for positions that are not.
    """
    index = np.asarray(index, np.int64)
    if len(index) and (index[0] < 0 or index[-1] >= size or (np.diff(index) <= 0).any()):
        raise ValueError(f"positions: must be strictly increasing in [0, {size})")
    coded = index if len(index) <= _HALF * size else _others(index, size)
    gaps = np.diff(coded, prepend=-1) - 1
    rice = _best_rice(gaps)
    ends = np.cumsum((gaps >> rice) + 1) - 1
    unary = np.zeros(ends[-1] + 1 if len(ends) else 0, np.uint8)
    unary[ends] = 1
    remainders = ((gaps[:, None] >> np.arange(rice - 1, -1, -1)) & 1).astype(np.uint8)
    stream = np.concatenate([np.packbits(unary), np.packbits(remainders)])
    return Coding(size, len(index), rice, len(stream)), stream


def decode(coding: Coding, stream: np.ndarray) -> np.ndarray:
    """The positions that `encode` was given, int64.

    Raises ValueError where the stream is not exactly what `encode` writes for such positions. Allocates nothing larger
    than the stream's 8 bits a byte, its positions and, where positions left out are coded, `size` bytes.
    """
    count, rice = coding.coded, coding.rice
    if not 0 <= coding.count <= coding.size or not 0 <= rice < (coding.size.bit_length() if count else 1):
        raise ValueError("positions: counts out of range")
    low_bytes = -(-count * rice // 8)
    if len(stream) != coding.bytes or count > 8 * len(stream) or low_bytes > len(stream):
        raise ValueError("positions: the stream is too short")
    unary = np.unpackbits(stream[: len(stream) - low_bytes])
    ends = np.flatnonzero(unary)
    used = int(ends[-1]) + 1 if len(ends) else 0
    if len(ends) != count or len(unary) - used >= 8:
        raise ValueError("positions: the stream holds another number of positions")
    # In Python's integers: a forged stream may stand for sums beyond 64 bits. No best r makes remainders that long.
    if ((used - count) << rice) + count > coding.size or count << rice > 2 * coding.size:
        raise ValueError("positions: out of range")
    gaps = np.diff(ends, prepend=-1) - 1
    if rice:
        gaps = (gaps << rice) | _remainders(stream[len(stream) - low_bytes :], count, rice)
    found = np.cumsum(gaps + 1) - 1
    if count and found[-1] >= coding.size:
        raise ValueError("positions: out of range")
    return found if count == coding.count else _others(found, coding.size)


def _remainders(packed: np.ndarray, count: int, rice: int) -> np.ndarray:
    bits = np.unpackbits(packed)
    if bits[count * rice :].any():
        raise ValueError("positions: bits after the last position")
    values = np.zeros(count, np.int64)
    for column in bits[: count * rice].reshape(count, rice).T:
        values <<= 1
        values |= column
    return values


def _others(index: np.ndarray, size: int) -> np.ndarray:
    left = np.ones(size, bool)
    left[index] = False
    return np.flatnonzero(left)


def _best_rice(gaps: np.ndarray) -> int:
    """The r of the shortest stream: from the mean gap, where the code of independent positions has its best, and one
    step to either side."""
    if not len(gaps):
        return 0
    guess = int(np.log2(max(1.0, 0.69 * (gaps.mean() + 1))))
    return min((max(0, guess + step) for step in (-1, 0, 1)), key=lambda r: int((gaps >> r).sum()) + r * len(gaps))


def entropy_bits(size: int, count: int) -> float:
    """log2 of the number of ways to choose `count` of `size` positions: what any code of them needs on average."""
    lgamma = math.lgamma
    return (lgamma(size + 1) - lgamma(count + 1) - lgamma(size - count + 1)) / math.log(2)
