"""How much two selections share, against what chance would give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Overlap:
    """Two selections over the same weights. Expectations are of independent choices."""

    first: int  # selected by the first
    second: int
    both: int
    expected: float  # both, if each chose at random with the numbers it has in every matrix
    expected_uniform: float  # both, if each chose at random from all weights together

    @property
    def jaccard(self) -> float:
        """both / either, 0 to 1."""
        return self.both / max(self.first + self.second - self.both, 1)

    @property
    def chance(self) -> float:
        """The Jaccard index to expect from independent choices with the same number in every matrix."""
        return self.expected / max(self.first + self.second - self.expected, 1)

    @property
    def chance_uniform(self) -> float:
        """The Jaccard index to expect from independent choices over all weights."""
        return self.expected_uniform / max(self.first + self.second - self.expected_uniform, 1)


def overlap(first: Mapping[str, Tensor], second: Mapping[str, Tensor], sizes: Mapping[str, int]) -> Overlap:
    """Compares sorted flat positions per weight; `sizes` holds the entries of every weight, its keys are compared.

    Raises ValueError where a selection lacks one of the weights or holds another.
    """
    for label, selection in (("first", first), ("second", second)):
        if other := sorted(set(selection) ^ set(sizes)):
            raise ValueError(f"{label}: the selections are over different weights, {other[0]!r} is in one of them only")
    counts = [(len(first[n]), len(second[n]), size) for n, size in sizes.items()]
    a, b, whole = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0, 0)
    both = sum(int(torch.isin(second[n], first[n], assume_unique=True).sum()) for n in sizes)
    expected = sum(i * j / size for i, j, size in counts)
    return Overlap(a, b, both, expected, a * b / max(whole, 1))
