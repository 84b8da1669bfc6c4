"""When the rounds of the search take place and how many weights each one takes (Algorithm 1, lines 4 to 13)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """`total` weights (K) in `rounds` rounds (n), one every `interval` optimizer steps (s).

    interval = 0 means one round before training, on the gradient of the first step (Table 5, step 0).
    Raises ValueError for numbers that make no schedule.
    """

    total: int
    rounds: int
    interval: int

    def __post_init__(self) -> None:
        if self.total < 0:
            raise ValueError(f"total: the number of weights to select must not be negative, got {self.total}")
        if self.interval < 0:
            raise ValueError(f"interval: steps between two rounds must not be negative, got {self.interval}")
        if not 1 <= self.rounds < 2**15:
            raise ValueError(f"rounds: must be from 1 to 32767, got {self.rounds}")
        if self.interval == 0 and self.rounds != 1:
            raise ValueError(f"rounds: interval 0 means a single round before training, got rounds={self.rounds}")

    def size(self, number: int) -> int:
        """Weights that round `number` (from 1) takes: floor(r K / n) - floor((r-1) K / n). They sum to K exactly."""
        return self.until(number) - self.until(number - 1)

    def until(self, number: int) -> int:
        """Weights that rounds 1 to `number` take together."""
        return number * self.total // self.rounds

    def round_at(self, step: int) -> int:
        """The round (from 1) that follows optimizer step `step` (from 1), or 0 where none does."""
        if self.interval == 0:
            return 0
        number, rest = divmod(step, self.interval)
        return number if rest == 0 and number <= self.rounds else 0
