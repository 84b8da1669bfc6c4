"""Samples that cannot be read: a few are left out and counted, many are an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sfa_ext.data.errors import DataError

SHARE = 0.01  # of a data set, at most


class Unreadable:
    """The samples of a data set that turned out to be unreadable, each counted once.

    Args:
        count: samples in the data set.
        share: the largest part of them that may be unreadable.
        known: positions of those found before, for example before a run was stopped.
    """

    def __init__(self, count: int, share: float = SHARE, known: Iterable[int] = ()) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"bad_share must be a part of the data set between 0 and 1; got {share}")
        self.count, self.share, self._found = count, share, set(known)
        self._news: list[str] = []

    @property
    def positions(self) -> list[int]:
        """Positions in the data set, in order."""
        return sorted(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def take(self, batch: dict[str, Any]) -> None:
        """Takes "unreadable" out of a batch of `loading`. Raises DataError where there are too many of them now."""
        for position, message in batch.pop("unreadable", {}).items():
            if position not in self._found:
                self._found.add(position)
                self._news.append(message)
        if len(self) > self.share * self.count:
            last = self._news[-1] if self._news else "found before"
            raise DataError(
                f"{len(self)} of {self.count} samples cannot be read, more than {100 * self.share:g} % "
                f"(data.bad_share); `sfa data check` names all; the last: {last}"
            )

    def news(self) -> Iterator[str]:
        """What is wrong with each sample that was found since the last call."""
        while self._news:
            yield self._news.pop(0)
