"""What two selections share, and what chance would give."""

from __future__ import annotations

import pytest
import torch

from sfa_ext.selection import overlap


def index(*positions):
    return torch.tensor(positions, dtype=torch.int64)


def test_counts_and_jaccard_by_hand():
    found = overlap({"a": index(0, 3, 7), "b": index()}, {"a": index(3, 7, 8, 9), "b": index(1)}, {"a": 10, "b": 5})
    assert (found.first, found.second, found.both) == (3, 5, 2)
    assert found.jaccard == 2 / 6
    assert found.expected == 3 * 4 / 10 and found.expected_uniform == 3 * 5 / 15


def test_independent_selections_share_what_chance_gives():
    sizes, generator = {"a": 20_000, "b": 5_000}, torch.Generator().manual_seed(0)
    draw = lambda n, k: torch.randperm(n, generator=generator)[:k].sort().values  # noqa: E731
    one, two = ({"a": draw(20_000, 4_000), "b": draw(5_000, 100)} for _ in range(2))
    found = overlap(one, two, sizes)
    assert abs(found.jaccard / found.chance - 1) < 0.1 and found.chance > found.chance_uniform


def test_the_same_selection_overlaps_whole_and_none_with_nothing():
    some = {"a": index(1, 2)}
    assert overlap(some, some, {"a": 4}).jaccard == 1.0
    assert overlap({"a": index()}, {"a": index()}, {"a": 4}).jaccard == 0.0
    with pytest.raises(ValueError, match="second: .*over different weights, 'a'"):
        overlap(some, {"b": index()}, {"a": 4})
