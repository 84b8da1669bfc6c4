"""From a budget, a share of the backbone, to the largest size of a method that fits."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable


def check_size(name: str, size: int | None, budget: float | None) -> None:
    """Raises ValueError for a size below 1, a share outside (0, 1], or both given."""
    if size is not None and size < 1:
        raise ValueError(f"{name}: must be 1 or more, got {size}")
    if budget is not None and not 0.0 < budget <= 1.0:
        raise ValueError(f"budget: must be in (0, 1], a share of the backbone's weights, got {budget}")
    if budget is not None and size is not None:
        raise ValueError(f"budget: give {name}={size} or budget={budget}, not both")


def fit_size(name: str, count: Callable[[int], int], budget: float, whole: int, largest: int = 2**20) -> int:
    """The largest size from 1 to `largest` whose `count(size)` weights are at most `budget * whole`.

    count: weights of the method at a size; must not fall as the size grows.
    whole: the weights that `budget` is a share of.

    Raises ValueError where size 1 is too large already, with the smallest budget that would do.
    """
    room = int(budget * whole)
    size = bisect.bisect_right(range(1, largest + 1), room, key=count)
    if size == 0:
        least = count(1)
        raise ValueError(
            f"budget: {budget} allows {room} weights, {name}=1 needs {least}; the smallest budget is "
            f"{at_least(least / whole)}"
        )
    return size


def bottleneck_weights(widths: Iterable[int], dim: int) -> int:
    """Weights of one bottleneck a width D, of d = min(dim, D): sum of 2 D d."""
    return sum(2 * width * min(dim, width) for width in widths)


def at_least(share: float) -> float:
    """`share` with five digits, rounded up: a budget that is really enough."""
    return math.ceil(share * 1e5) / 1e5
