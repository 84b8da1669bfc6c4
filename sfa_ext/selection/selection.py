"""The weights that were selected: where they are, in which round they came, and what they were before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Entries:
    """Selected entries of one weight: sorted flat positions, the round of each (from 0), and theta_0 there."""

    index: Tensor  # int64 [k]
    round: Tensor  # int16 [k]
    original: Tensor  # the weight's dtype [k]

    @staticmethod
    def none(weight: Tensor) -> Entries:
        make = lambda dtype: torch.empty(0, dtype=dtype, device=weight.device)  # noqa: E731
        return Entries(make(torch.int64), make(torch.int16), make(weight.dtype))

    def __len__(self) -> int:
        return self.index.numel()


class Selection:
    """Selected entries of several weights by name. Grows by whole rounds; an entry is never taken twice."""

    def __init__(self, weights: Mapping[str, Tensor]):
        self.weights = dict(weights)
        self.entries = {name: Entries.none(weight.detach()) for name, weight in self.weights.items()}

    def __iter__(self) -> Iterator[tuple[str, Entries]]:
        return iter(self.entries.items())

    def count(self) -> int:
        """How many weights are selected, over all tensors."""
        return sum(len(e) for e in self.entries.values())

    def counts(self) -> dict[str, int]:
        """Selected entries by weight name."""
        return {name: len(e) for name, e in self.entries.items()}

    def fix(self, positions: Mapping[str, Tensor]) -> None:
        """Takes flat positions found elsewhere (int64, sorted) in place of what is selected, values theta_0.

        Raises ValueError, before anything changes, for a weight that is not here or positions that do not fit it.
        """
        if unknown := sorted(set(positions) - set(self.weights)):
            raise ValueError(f"selection: {unknown[0]!r} is none of the weights that may be selected here")
        for name, index in positions.items():
            _check_positions(name, index, self.weights[name].numel())
        self.restore()
        self.entries = {name: Entries.none(weight.detach()) for name, weight in self.weights.items()}
        self.add({n: index.to(self.weights[n].device, torch.int64) for n, index in positions.items()}, 0)

    def add(self, picked: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Takes the flat positions `picked` (int64, sorted) into round `number` (from 0).

        Returns for each weight the order that sorts [old entries, new entries] by position, so that state kept
        alongside the entries can follow. Raises ValueError for a position that was taken before.
        """
        orders = {}
        for name, index in picked.items():
            old = self.entries[name]
            merged, order = torch.sort(torch.cat([old.index, index]), stable=True)
            if (merged[1:] == merged[:-1]).any():
                raise ValueError(f"picked: {name} holds positions that are selected already")
            weight = self.weights[name].detach().flatten()
            self.entries[name] = Entries(
                merged,
                torch.cat([old.round, torch.full_like(index, number, dtype=torch.int16)])[order],
                torch.cat([old.original, weight[index]])[order],
            )
            orders[name] = order
        return orders

    def values(self) -> dict[str, Tensor]:
        """Present values at the selected positions, by weight name; copies."""
        return {name: self.weights[name].detach().flatten()[e.index] for name, e in self}

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Puts `values` (as `values()` returns them) at the selected positions."""
        for name, entries in self:
            self.weights[name].view(-1)[entries.index] = values[name]

    def restore(self) -> None:
        """Puts theta_0 back, bit by bit."""
        self.write({name: e.original for name, e in self})

    def state(self) -> dict[str, Tensor]:
        """Positions, rounds, original and present values as a flat dict of tensors, for `load_state`."""
        parts = {f"{name}/{part}": getattr(e, part) for name, e in self for part in ("index", "round", "original")}
        return parts | {f"{name}/value": v for name, v in self.values().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `state` returned and writes its values into the weights.

        Raises ValueError, before anything changes, where names, positions or original values do not fit the weights.
        """
        entries, values = {}, {}
        for name, weight in self.weights.items():
            parts = [state.get(f"{name}/{part}") for part in ("index", "round", "original", "value")]
            if any(part is None for part in parts):
                raise ValueError(f"selection: no entries for weight {name!r}; it was made for another backbone")
            index, rounds, original, values[name] = (part.to(weight.device) for part in parts)
            fits = index.shape == rounds.shape == original.shape == values[name].shape
            _check_positions(name, index, weight.numel(), fits)
            entries[name] = Entries(index, rounds, original)
        present = self.values()
        self.restore()
        for name, e in entries.items():
            if not torch.equal(self.weights[name].detach().flatten()[e.index], e.original):
                self.write(present)
                raise ValueError(f"selection: {name!r} holds other values than those selected; another backbone?")
        self.entries = entries
        self.write(values)


def _check_positions(name: str, index: Tensor, size: int, fits: bool = True) -> None:
    if not fits or index.numel() and (index[0] < 0 or index[-1] >= size or (index[1:] <= index[:-1]).any()):
        raise ValueError(f"selection: positions of {name!r} are not sorted inside its {size} entries")
