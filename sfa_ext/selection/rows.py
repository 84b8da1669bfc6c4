"""Ranking whole output channels: granularity "row"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sfa_ext.selection.sharded import leading_counts, top


def best_rows(scores: Sequence[Tensor], taken: Sequence[Tensor], room: int, shared: bool = False) -> list[Tensor]:
    """Flat positions, per tensor and sorted, of the best rows that have at most `room` weights together.

    A row's worth is the mean magnitude of its scores, so that long and short rows compare. Rows are taken in order of
    worth, ties to the lowest tensor and then the lowest row, up to the first that no longer fits.

    scores: matrices [rows, columns]; where ranks have them `shared`, each holds consecutive rows.
    taken: sorted flat positions of whole rows that are left out, one a matrix.

    Raises RuntimeError for a score that is no number.
    """
    worths = [score.abs().mean(1) for score in scores]
    gone = [index[:: s.shape[1]] // s.shape[1] for s, index in zip(scores, taken, strict=True)]
    counts, _ = leading_counts(worths, gone, room, [score.shape[1] for score in scores], shared)
    return [
        (top(*ranked)[:, None] * s.shape[1] + torch.arange(s.shape[1], device=s.device)).flatten()
        for s, *ranked in zip(scores, worths, gone, counts, strict=True)
    ]
