"""Sizes of tiles, chosen from shapes alone: measuring candidates would make results depend on the machine's mood."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

WIDEST_HIDDEN = 256  # above it the hidden numbers of 16 rows do not fit on the chip beside the weights
SHARED_BYTES = 96 * 1024  # what a block can have on every GPU from compute capability 8.0 on
ACCUMULATORS = 8 * 1024  # float32 numbers that a program keeps in registers, so that two or more share a processor
FEW_PROGRAMS = 128  # with fewer, part of the GPU idles: smaller tiles are better


@dataclass(frozen=True)
class Tiles:
    """BLOCK_N rows, BLOCK_K columns at a time, BLOCK_H hidden numbers; and how Triton schedules them."""

    rows: int
    columns: int
    hidden: int
    num_warps: int
    num_stages: int

    @property
    def options(self) -> dict[str, int]:
        blocks = {"BLOCK_N": self.rows, "BLOCK_K": self.columns, "BLOCK_H": self.hidden}
        return {**blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}


@dataclass(frozen=True)
class Use:
    """What a kernel asks of its tiles: up to which width D it gains from all columns of its rows on the chip, and how
    many tiles, [rows, hidden] or [rows, D] with all columns, it keeps in registers at once."""

    whole_width: int
    accumulators: int


FORWARD, NORM, BACKWARD, NORM_BACKWARD = Use(256, 1), Use(512, 1), Use(0, 2), Use(512, 2)


def choose(x: Tensor, d: int, use: Use) -> Tiles:
    """Tiles for x [n, D] and d hidden numbers."""
    n, width = x.shape
    accumulators = use.accumulators
    size, hidden = x.element_size(), _power_of_two(d)
    for whole in (True, False):
        for rows in (128, 64, 32, 16):
            if rows > 16 and n < FEW_PROGRAMS * rows:
                continue
            columns = _power_of_two(width) if whole else min(_power_of_two(width), 128 // size)
            numbers = rows * (columns if whole else hidden) * accumulators
            stage = (rows + hidden) * columns * size * (1 if whole else accumulators)
            rest = 0 if whole else rows * hidden * size
            stages = next((s for s in (3, 2, 1) if s * stage + rest <= SHARED_BYTES and not (whole and s > 1)), 0)
            if stages and numbers <= ACCUMULATORS and (width <= use.whole_width or not whole):
                return Tiles(rows, columns, hidden, 8 if numbers > 4096 else 4, stages)
    return Tiles(16, 16, hidden, 4, 1)


def _power_of_two(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())
