"""Ranking scores that many ranks hold parts of, without sending a score.

The bits of a score without its sign, read as an integer, order like its magnitude. Histograms of the digits of these
keys, summed over the ranks, narrow down from the top where the ranking ends; a sum of ties by tensor and one number a
rank then settle how many each rank takes of each tensor. A histogram is 16 KB, and float32 needs three. Which positions
those are, every rank finds alone, with the operator that serves one process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfa_ext import ops, ranks  # noqa: F401  (ops registers torch.ops.sfa)

DIGIT = 11  # bits of a key that one histogram resolves
CHUNK = 1 << 18  # scores that are looked at together: what that takes beside them, about 10 MB, does not grow
_KEYS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of a score


def select_topk(scores: Sequence[Tensor], excluded: Sequence[Tensor], k: int, shared: bool = True) -> list[Tensor]:
    """The positions on this rank of the k largest |scores| over all tensors and ranks together.

    scores: this rank's part of each tensor (any may be empty), contiguous and of one floating dtype. Ranks hold
        consecutive parts of a tensor, in the order of their numbers; all call with the same number of tensors.
    excluded: sorted flat positions (int64) within each part that are left out.
    k: the same on all ranks.
    shared: whether ranks share the tensors; otherwise this is the operator, on tensors that are whole here.

    Returns sorted flat positions within each part: together, bit by bit, what `torch.ops.sfa.select_topk` finds in the
    whole tensors, ties going to the lowest tensor and then the lowest position. Raises RuntimeError on all ranks alike
    where a score is NaN or fewer than k are eligible.
    """
    if not shared or ranks.size() == 1:
        return torch.ops.sfa.select_topk(list(scores), list(excluded), k)
    if k < 0:
        raise RuntimeError(f"k must not be negative, got {k}")
    counts, found = leading_counts(scores, excluded, k, [1] * len(scores), shared)
    if found < k:
        raise RuntimeError(f"k must be at most {found}, the number of scores that are not excluded, got {k}")
    return [top(*part) for part in zip(scores, excluded, counts, strict=True)]


def message_bytes(tensors: int, ranks: int, bits: int = 31) -> list[int]:
    """The most that a rank gives to each of the sums over ranks that `select_topk` makes; bits: of a key."""
    histograms = [8 << DIGIT] * -(-bits // DIGIT)
    return [histograms[0] + 8 * tensors, *histograms[1:], 8 * tensors, 8 * ranks]


def top(score: Tensor, excluded: Tensor, count: int) -> Tensor:
    """Sorted flat positions of the `count` largest |score| of one tensor, `excluded` left out, ties to the lowest."""
    return torch.ops.sfa.select_topk([score], [excluded], count)[0]


def leading_counts(
    scores: Sequence[Tensor],
    excluded: Sequence[Tensor],
    room: int,
    prices: Sequence[int],
    shared: bool,
) -> tuple[list[int], int]:
    """How many of this rank's scores of each tensor lead the ranking of all, and what those of all ranks cost together.

    Each score of tensor i costs prices[i]. They are taken in order of magnitude, ties to the lowest tensor, then to the
    lowest rank, up to the first that no longer fits into `room`. Other arguments and errors as in `select_topk`.
    """
    if not scores:
        return [], 0
    parts = [_Part(s.detach().flatten(), e, p) for s, e, p in zip(scores, excluded, prices, strict=True)]
    threshold, cost = _threshold(parts, room, shared)
    above, equal = zip(*(part.above_and_at(threshold) for part in parts), strict=True)
    ties = _ties(torch.tensor(equal), prices, room - cost, shared)
    taken_at = sum(n * price for n, price in zip(ties.of_all, prices, strict=True))
    return [a + t for a, t in zip(above, ties.of_rank, strict=True)], cost + taken_at


@dataclass(frozen=True)
class _Part:
    """What this rank holds of one tensor."""

    scores: Tensor  # [n]
    excluded: Tensor
    price: int

    def keys(self) -> Iterator[tuple[Tensor, int]]:
        """Keys in chunks, each with a sign: -1 for those of excluded scores, which were counted before."""
        bits = self.scores.view(_KEYS[self.scores.element_size()])
        largest = torch.iinfo(bits.dtype).max
        for chunk in bits.split(CHUNK) if len(bits) else ():
            yield chunk & largest, 1
        for positions in self.excluded.split(CHUNK) if len(self.excluded) else ():
            yield bits[positions] & largest, -1

    def histogram(self, low: int, width: int, shift: int) -> Tensor:
        """int64 [2**DIGIT]: eligible keys in [low, low + width) by what they exceed low by, without `shift` bits."""
        bins = torch.zeros(1 << DIGIT, dtype=torch.int64, device=self.scores.device)
        for keys, sign in self.keys():
            within = keys[(keys >= low) & (keys <= low + (width - 1))]
            bins.add_(torch.bincount((within - low) >> shift, minlength=1 << DIGIT), alpha=sign)
        return bins

    def above_and_at(self, key: int) -> tuple[int, int]:
        """How many eligible keys lie above `key`, and how many equal it."""
        counts = torch.zeros(2, dtype=torch.int64, device=self.scores.device)
        for keys, sign in self.keys():
            counts += sign * torch.stack([(keys > key).sum(), (keys == key).sum()])
        return tuple(counts.tolist())

    def holds_nan(self) -> Tensor:
        """bool []; of a whole chunk at once, which may hold excluded scores: NaN is an error anywhere."""
        found = [chunk.isnan().any() for chunk in self.scores.split(CHUNK)] if len(self.scores) else []
        return torch.stack(found).any() if found else torch.zeros((), dtype=torch.bool, device=self.scores.device)


def _threshold(parts: Sequence[_Part], room: int, shared: bool) -> tuple[int, int]:
    """The key above which everything fits into `room`, and not all that equals it; and what is above costs.

    Where everything there is fits, the threshold is below every key. Raises RuntimeError for NaN.
    """
    bits = 8 * parts[0].scores.element_size() - 1
    threshold, cost, shift = 0, 0, bits
    while shift:
        first, width, shift = shift == bits, 1 << shift, max(shift - DIGIT, 0)
        bins = sum(part.price * part.histogram(threshold, width, shift) for part in parts)
        if first:
            nan = torch.stack([part.holds_nan() for part in parts])
            bins, nan = _sum(torch.cat([bins, nan.long()]), shared).split([len(bins), len(parts)])
            _refuse_nan(nan)
        else:
            bins = _sum(bins, shared)
        from_the_top = bins.flip(0).cumsum(0)
        fitting = int((from_the_top <= room - cost).sum())
        cost += int(from_the_top[fitting - 1]) if fitting else 0
        if fitting == len(bins):
            return -1, cost
        threshold += (len(bins) - 1 - fitting) << shift
    return threshold, cost


def _refuse_nan(found: Tensor) -> None:
    if found.any():
        raise RuntimeError(
            f"scores[{int(found.ne(0).long().argmax())}] holds NaN, on this rank or on another: it cannot be ranked. "
            "Leave out steps whose gradients are not finite"
        )


@dataclass(frozen=True)
class _Ties:
    of_rank: list[int]  # by tensor: taken on this rank
    of_all: list[int]  # and on all ranks together


def _ties(equal: Tensor, prices: Sequence[int], room: int, shared: bool) -> _Ties:
    """Which of the scores at the threshold, `equal` by tensor on this rank, are taken: tensor by tensor, and in the
    last one rank by rank."""
    wholes = _sum(equal.clone(), shared).tolist()
    of_rank, of_all = [0] * len(wholes), [0] * len(wholes)
    for i, (whole, price) in enumerate(zip(wholes, prices, strict=True)):
        of_all[i] = min(whole, room // price)
        of_rank[i] = int(equal[i])
        room -= of_all[i] * price
        if of_all[i] < whole:  # the one tensor whose ties are taken in part; later ones come after them
            before = ranks.sums_before([of_rank[i]])[0] if shared else 0
            of_rank[i] = min(max(of_all[i] - before, 0), of_rank[i])
            break
    return _Ties(of_rank, of_all)


def _sum(numbers: Tensor, shared: bool) -> Tensor:
    return ranks.sum_(numbers) if shared else numbers
