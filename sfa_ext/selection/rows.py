"""Ranking whole output channels: granularity "row"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def best_rows(scores: Sequence[Tensor], taken: Sequence[Tensor], room: int) -> list[Tensor]:
    """Flat positions, per tensor and sorted, of the best rows that have at most `room` weights together.

    A row's worth is the mean magnitude of its scores, so that long and short rows compare. Rows are taken in order of
    worth, ties to the lowest tensor and then the lowest row, up to the first that no longer fits.

    scores: matrices [rows, columns]. taken: sorted flat positions of whole rows that are left out, one a matrix.

    Raises ValueError for a score that is no number.
    """
    worth = torch.cat([s.abs().mean(1) for s in scores])
    if worth.isnan().any():
        raise ValueError("scores: hold NaN; no ranking is possible")
    for values, index, score in zip(worth.split([len(s) for s in scores]), taken, scores, strict=True):
        values[index // score.shape[1]] = -1.0
    worth, order = torch.sort(worth, descending=True, stable=True)
    lengths = torch.cat([torch.full((len(s),), s.shape[1], device=s.device) for s in scores])[order]
    fits = (worth >= 0) & (lengths.cumsum(0) <= room)
    chosen = torch.zeros_like(order, dtype=torch.bool)
    chosen[order[fits]] = True
    return [
        (rows.nonzero() * s.shape[1] + torch.arange(s.shape[1], device=s.device)).flatten()
        for rows, s in zip(chosen.split([len(s) for s in scores]), scores, strict=True)
    ]
