"""The learning rate over the steps of a run."""

from __future__ import annotations

import math


def factor(step: int, *, steps: int, warmup: int, schedule: str, power: float, floor: float) -> float:
    """Factor on the base learning rate for optimizer step `step` (from 0): linear warm-up, then cosine or poly.

    Raises ValueError for an unknown schedule.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - warmup)
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "poly":
        return floor + (1 - floor) * (1 - progress) ** power
    raise ValueError(f"schedule: unknown {schedule!r}, known: cosine, poly, constant")
