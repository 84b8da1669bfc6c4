"""What a task's figures mean: for tables, plots and progress bars, and for choosing among runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One of the figures that a task's metric computes."""

    name: str  # as in what compute() returns
    title: str  # for people
    unit: str = "%"  # "%": the figure is a fraction and is shown as a percentage; else the unit of what it is
    higher: bool = True  # whether more is better

    @property
    def heading(self) -> str:
        """Title and unit, for a column or an axis."""
        return f"{self.title}, {self.unit}"

    def shown(self, value: float) -> float:
        """The value in the unit of `heading`."""
        return 100 * value if self.unit == "%" else value

    @property
    def digits(self) -> int:
        """Decimals worth showing of what `shown` gives."""
        return 1 if self.unit == "%" else 3

    def text(self, value: float) -> str:
        """The value with its unit."""
        return f"{self.shown(value):.{self.digits}f} {self.unit}"

    def best(self, values: dict) -> object:
        """The key of the best value."""
        return (max if self.higher else min)(values, key=values.get)
