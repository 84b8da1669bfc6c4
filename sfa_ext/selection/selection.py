"""The weights that were selected: where they are, in which round they came, and what they were before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sfa_ext import ranks
from sfa_ext.selection.shards import gathered, local, shared, span, within


def position_dtype(size: int) -> torch.dtype:
    """The narrowest dtype for flat positions among `size` numbers: it halves what is read for them at every step."""
    return torch.int32 if size <= 2**31 else torch.int64


@dataclass
class Entries:
    """Selected entries of one weight: sorted flat positions, the round of each (from 0), and theta_0 there.

    Of a weight that ranks share, these are the entries on this rank; positions count from the start of its part.
    """

    index: Tensor  # [k] of `position_dtype`
    round: Tensor  # int16 [k]
    original: Tensor  # the weight's dtype [k]

    @staticmethod
    def none(weight: Tensor) -> Entries:
        make = lambda dtype: torch.empty(0, dtype=dtype, device=weight.device)  # noqa: E731
        return Entries(make(position_dtype(weight.numel())), make(torch.int16), make(weight.dtype))

    def __len__(self) -> int:
        return self.index.numel()

    def of(self, tensor: Tensor) -> Tensor:
        """What a tensor like the weight, shared as it is, holds at the entries [k]; a copy."""
        return local(tensor).flatten().index_select(0, self.index)


class Selection:
    """Selected entries of several weights by name. Grows by whole rounds; an entry is never taken twice.

    Ranks may share the weights (`fully_shard`): each then holds the entries of its part, and all of them make every
    call that changes the selection or gives its state.
    """

    def __init__(self, weights: Mapping[str, Tensor]):
        self.weights = dict(weights)
        self._forget()

    def _forget(self) -> None:
        self.shared = shared(self.weights.values())  # whether ranks have parts of the weights
        self._hold({name: Entries.none(local(weight)) for name, weight in self.weights.items()})

    def _hold(self, entries: dict[str, Entries]) -> None:
        self.entries = entries
        self._counts = {name: len(e) for name, e in entries.items()}
        if self.shared:
            counts = ranks.sum_(torch.tensor(list(self._counts.values())))
            self._counts = dict(zip(entries, counts.tolist(), strict=True))

    def follow(self, weights: Mapping[str, Tensor]) -> None:
        """Takes the same weights after they were spread over ranks. Raises ValueError where any is selected already."""
        if self.count():
            raise ValueError(f"selection: {self.count()} weights are selected already; shard the model before that")
        self.weights = {name: weights[name] for name in self.weights}
        self._forget()

    def __iter__(self) -> Iterator[tuple[str, Entries]]:
        return iter(self.entries.items())

    def count(self) -> int:
        """How many weights are selected, over all tensors and ranks."""
        return sum(self._counts.values())

    def counts(self) -> dict[str, int]:
        """Selected entries by weight name, over all ranks."""
        return dict(self._counts)

    def fix(self, positions: Mapping[str, Tensor]) -> None:
        """Takes flat positions found elsewhere (int64, sorted) in place of what is selected, values theta_0.

        Raises ValueError, before anything changes, for a weight that is not here or positions that do not fit it.
        """
        if unknown := sorted(set(positions) - set(self.weights)):
            raise ValueError(f"selection: {unknown[0]!r} is none of the weights that may be selected here")
        for name, index in positions.items():
            _check_positions(name, index, self.weights[name].numel())
        self.restore()
        self._forget()
        self.add({n: self._here(n, index.to(self.weights[n].device, torch.int64)) for n, index in positions.items()}, 0)

    def add(self, picked: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
        """Takes the flat positions `picked` (int64, sorted; of this rank's parts) into round `number` (from 0).

        Returns for each weight the order that sorts [old entries, new entries] by position, so that state kept
        alongside the entries can follow. Raises ValueError for a position that was taken before.
        """
        orders, entries = {}, dict(self.entries)
        for name, index in picked.items():
            old = entries[name]
            merged, order = torch.sort(torch.cat([old.index, index.to(old.index.dtype)]), stable=True)
            if (merged[1:] == merged[:-1]).any():
                raise ValueError(f"picked: {name} holds positions that are selected already")
            weight = local(self.weights[name]).flatten()
            entries[name] = Entries(
                merged,
                torch.cat([old.round, torch.full_like(index, number, dtype=torch.int16)])[order],
                torch.cat([old.original, weight[index]])[order],
            )
            orders[name] = order
        self._hold(entries)
        return orders

    def values(self) -> dict[str, Tensor]:
        """Present values at the selected positions of this rank, by weight name; copies."""
        return {name: e.of(self.weights[name]) for name, e in self}

    @torch.no_grad()
    def write(self, values: Mapping[str, Tensor]) -> None:
        """Puts `values` (as `values()` returns them) at the selected positions."""
        for name, entries in self:
            local(self.weights[name]).view(-1)[entries.index] = values[name]

    def restore(self) -> None:
        """Puts theta_0 back, bit by bit."""
        self.write({name: e.original for name, e in self})

    def whole(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Positions in the whole weights and values there, by weight name: on the first rank, on others nothing."""
        return gathered(self._positions(), self.shared), gathered(self.values(), self.shared)

    def _positions(self) -> dict[str, Tensor]:
        return {name: e.index.long() + span(self.weights[name])[0] for name, e in self}

    def state(self) -> dict[str, Tensor]:
        """Positions in the whole weights, rounds, original and present values of this rank's entries.

        A flat dict of tensors, for `load_state`, which takes them of all ranks, joined in their order, or of this one.
        """
        state = {f"{name}/{part}": getattr(e, part) for name, e in self for part in ("round", "original")}
        parts = {"index": self._positions(), "value": self.values()}
        return state | {f"{name}/{part}": t for part, tensors in parts.items() for name, t in tensors.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `state` returned, on any number of ranks, and writes its values into the weights.

        Original values may be left out, they are then what the weights hold without this selection. Raises ValueError,
        before anything changes, where names, positions or original values do not fit the weights.
        """
        entries, values, present = {}, {}, self.values()
        self.restore()
        try:
            for name in self.weights:
                entries[name], values[name] = self._entries(name, state)
        except ValueError:
            self.write(present)
            raise
        self._hold(entries)
        self.write(values)

    def _entries(self, name: str, state: Mapping[str, Tensor]) -> tuple[Entries, Tensor]:
        """This rank's entries of a state, and their values; the weights hold theta_0."""
        weight = self.weights[name]
        index, *rest = (state.get(f"{name}/{part}") for part in ("index", "round", "value", "original"))
        if any(part is None for part in (index, *rest[:2])):
            raise ValueError(f"selection: no entries for weight {name!r}; it was made for another backbone")
        fits = all(part is None or part.shape == index.shape for part in rest)
        _check_positions(name, index, weight.numel(), fits)
        here = within(index, weight)
        rounds, value, original = (None if part is None else part[here].to(weight.device) for part in rest)
        index = self._here(name, index).to(weight.device, position_dtype(local(weight).numel()))
        entries = Entries(index, rounds, local(weight).flatten().index_select(0, index))
        if original is not None and not torch.equal(entries.original, original):
            raise ValueError(f"selection: {name!r} holds other values than those selected; another backbone?")
        return entries, value

    def part(self, whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of numbers [k] for all entries of each weight, in the order of positions, those of this rank's entries.

        Of this rank's entries alone, the numbers are returned as they are.
        """
        lengths = [len(self.entries[name]) for name in whole]
        firsts = ranks.sums_before(lengths) if self.shared and lengths else [0] * len(lengths)
        spans = zip(whole.items(), firsts, lengths, strict=True)
        return {n: t if len(t) == length else t[first : first + length] for (n, t), first, length in spans}

    def _here(self, name: str, index: Tensor) -> Tensor:
        """Of sorted positions in the whole weight those on this rank, counted from the start of its part."""
        weight = self.weights[name]
        return index[within(index, weight)] - span(weight)[0]


def _check_positions(name: str, index: Tensor, size: int, fits: bool = True) -> None:
    if not fits or index.numel() and (index[0] < 0 or index[-1] >= size or (index[1:] <= index[:-1]).any()):
        raise ValueError(f"selection: positions of {name!r} are not sorted inside its {size} entries")
