"""Granularity "row": whole output channels, the best first, never more than the room."""

from __future__ import annotations

import pytest
import torch

from sfa_ext.selection import Schedule, Search, Selection
from sfa_ext.selection.rows import best_rows


def none():
    return torch.empty(0, dtype=torch.int64)


def test_the_best_rows_by_mean_magnitude_come_first_until_one_does_not_fit():
    scores = [torch.tensor([[1.0, -1.0], [4.0, 4.0], [0.5, 0.0]]), torch.tensor([[-3.0, 3.0, 3.0], [2.0, 2.0, -2.0]])]
    found = [best_rows(scores, [none(), none()], room) for room in (1, 2, 4, 5, 8, 100)]
    assert [[i.tolist() for i in picked] for picked in found] == [
        [[], []],
        [[2, 3], []],
        [[2, 3], []],
        [[2, 3], [0, 1, 2]],
        [[2, 3], [0, 1, 2, 3, 4, 5]],
        [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5]],
    ]


def test_rows_that_are_taken_are_left_out_and_ties_go_to_the_lowest_place():
    scores = [torch.ones(3, 2), torch.ones(2, 2)]
    picked = best_rows(scores, [torch.tensor([0, 1]), none()], 6)
    assert [i.tolist() for i in picked] == [[2, 3, 4, 5], [0, 1]]
    with pytest.raises(RuntimeError, match=r"scores\[0\] holds NaN"):
        best_rows([torch.full((2, 2), float("nan"))], [none()], 4)


@pytest.mark.parametrize("criterion", ["gradient", "displacement"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_search_by_rows_keeps_to_the_schedule(scope, criterion):
    weights = {f"w{i}": torch.nn.Parameter(torch.randn(shape)) for i, shape in enumerate([(30, 7), (20, 5), (40, 3)])}
    search = Search(Selection(weights), Schedule(200, 4, 1), criterion, scope, "row")
    for number in range(1, 5):
        for weight in weights.values():
            weight.grad = torch.randn_like(weight)
            if criterion == "displacement":
                weight.data += torch.randn_like(weight)
        search.score()
        search.observe()
        search.select()
        slack = 7 if scope == "global" else 7 + 5 + 3
        assert 50 * number - slack < search.selection.count() <= 50 * number
    for name, entries in search.selection:
        columns = weights[name].shape[1]
        rows, counts = torch.unique(entries.index // columns, return_counts=True)
        assert len(rows) and (counts == columns).all()
    assert search.finished
