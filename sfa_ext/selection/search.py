"""The search for the internal adapter: scores over a round, then a global ranking (Algorithm 1; Eq. 4 and 5)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from sfa_ext import ops, ranks  # noqa: F401  (ops registers torch.ops.sfa)
from sfa_ext.selection.rows import best_rows
from sfa_ext.selection.schedule import Schedule
from sfa_ext.selection.selection import Selection
from sfa_ext.selection.sharded import select_topk
from sfa_ext.selection.shards import copy_, local, part_of, shared_as

# gradient: |sum of g| (Algorithm 1, line 8); absolute: sum of |g|; squared: sum of g^2;
# displacement: |theta_0 - theta_t| after everything trained through the round (Eq. 4, literally);
# random: numbers drawn at random, the control that tells what any choice by gradients is worth.
CRITERIA = ("gradient", "absolute", "squared", "displacement", "random")
SCOPES = ("global", "layer")
# element: single weights. row: whole output channels, as many as fit, so a few weights less than the schedule's total.
GRANULARITIES = ("element", "row")


class Search:
    """Watches the gradients of candidate weights, step by step, and selects the best at the end of each round.

    The caller reports every applied optimizer step with `observe`; when `due` says so it calls `select` and gives
    the result to its optimizer. After the last round `finished` is true and the scores are freed.

    Where several ranks train together, each on its part of every batch, all of them select the same weights. Sums of
    signed gradients are linear: each rank adds up its own gradients, and `select` averages the scores, once a round;
    they then are those of the whole batches, up to rounding. |g| and g^2 are not linear, and a displacement follows the
    optimizer: these criteria need the whole batch's gradient in every step (`needs_mean_gradients`). Weights that ranks
    share (`fully_shard`) come with averaged gradients; each rank then scores its own part of them.

    Parameters
    ----------
    selection: takes what is found; its weights are the candidates, and their order is that in which ties are broken.
    schedule: how many weights in how many rounds.
    criterion, scope, granularity: one of CRITERIA, of SCOPES, of GRANULARITIES. Scope "layer" takes the same share of
        every weight tensor.
    seed: seed of the criterion "random", the same weights on any device; None draws one from torch's generator.

    Raises ValueError for an unknown criterion, scope or granularity, or a schedule of more weights than there are.
    """

    def __init__(
        self,
        selection: Selection,
        schedule: Schedule,
        criterion: str = "gradient",
        scope: str = "global",
        granularity: str = "element",
        seed: int | None = None,
    ):
        if criterion not in CRITERIA:
            raise ValueError(f"criterion: unknown {criterion!r}, known: {', '.join(CRITERIA)}")
        if scope not in SCOPES:
            raise ValueError(f"scope: unknown {scope!r}, known: {', '.join(SCOPES)}")
        if granularity not in GRANULARITIES:
            raise ValueError(f"granularity: unknown {granularity!r}, known: {', '.join(GRANULARITIES)}")
        available = sum(w.numel() for w in selection.weights.values())
        if schedule.total > available:
            raise ValueError(f"budget: {schedule.total} weights to select, but only {available} are eligible")
        self.selection = selection
        self.weights = selection.weights
        self.schedule = schedule
        self.criterion = criterion
        self.scope = scope
        self.granularity = granularity
        if seed is None and criterion == "random":
            seed = int(torch.randint(2**63 - 1, (), device="cpu"))
        self.seed = (seed or 0) // 2  # half of what a generator takes: there is room for one seed a round
        self.step = 0
        self.round = 0
        self.scores: dict[str, Tensor] = {}
        if schedule.total == 0:
            self.round = schedule.rounds
        elif self.accumulates:
            self.scores = {n: torch.zeros_like(local(w), dtype=_score_dtype(w)) for n, w in self.weights.items()}
        self.start = {n: local(w).clone() for n, w in self.weights.items()} if self.trains_all else {}

    @staticmethod
    def over(selection: Selection) -> Search:
        """A search that is finished: the mask is what `selection` holds already."""
        search = Search(selection, Schedule(0, 1, 0))
        search.schedule = Schedule(selection.count(), 1, 0)
        return search

    @property
    def finished(self) -> bool:
        """True once the last round took place: the mask is fixed from then on."""
        return self.round == self.schedule.rounds

    @property
    def accumulates(self) -> bool:
        """True for the criteria that add up gradients."""
        return self.criterion not in ("displacement", "random")

    @property
    def needs_mean_gradients(self) -> bool:
        """True where `score` must be shown gradients that are averaged over ranks, and they are not yet."""
        linear = self.criterion in ("gradient", "random")
        return not (self.finished or linear or self.selection.shared)

    @property
    def has_own_scores(self) -> bool:
        """True while scores are of this rank's part of the batches alone."""
        return not (self.finished or self.selection.shared) and self.criterion == "gradient" and ranks.size() > 1

    @property
    def trains_all(self) -> bool:
        """True while every candidate must be trained, not only scored (criterion "displacement")."""
        return self.criterion == "displacement" and not self.finished

    def due(self) -> bool:
        """True where a round must take place now, after the step just observed (or before the first one)."""
        if self.finished:
            return False
        if self.schedule.interval == 0:
            return True
        return self.schedule.round_at(self.step) == self.round + 1

    def score(self) -> None:
        """Adds the present gradients of the candidates to their scores."""
        if not self.accumulates or self.finished:
            return
        seen = [n for n, w in self.weights.items() if w.grad is not None]
        torch.ops.sfa.accumulate_scores_(
            [self.scores[n] for n in seen], [local(self.weights[n].grad) for n in seen], self.criterion
        )

    def reset(self) -> None:
        """Puts theta_0 back into every candidate, bit by bit."""
        if self.trains_all:
            for name, weight in self.weights.items():
                local(weight).copy_(self.start[name])
        self.selection.restore()

    def observe(self) -> None:
        """Counts one applied optimizer step, after its gradients were scored."""
        self.step += 1

    @torch.no_grad()
    def select(self) -> dict[str, Tensor]:
        """Ends a round: picks its share of weights, and returns for each weight the order of `Selection.add`."""
        if self.criterion == "displacement":
            moved = {n: local(w) - self.start[n] for n, w in self.weights.items()}
            picked = self._rank({n: m.to(_score_dtype(m)) for n, m in moved.items()})
        elif self.criterion == "random":
            picked = self._rank(self._random_scores())
        else:
            if self.has_own_scores:
                ranks.mean_(self.scores.values())
            picked = self._rank(self.scores)
        orders = self._take(picked)
        self.round += 1
        for score in self.scores.values():
            score.zero_()
        if self.finished:
            self.scores, self.start = {}, {}
        return orders

    def _random_scores(self) -> dict[str, Tensor]:
        """Scores that depend on the seed and the round alone."""
        generator = torch.Generator().manual_seed(self.seed + self.round)
        draw = lambda w: torch.rand(w.shape, generator=generator)  # noqa: E731
        return {n: part_of(draw(w), w).to(w.device, copy=True) for n, w in self.weights.items()}

    def _rank(self, scores: dict[str, Tensor]) -> dict[str, Tensor]:
        excluded = [e.index.long() for _, e in self.selection]  # as select_topk takes them
        values = list(scores.values())
        if self.granularity == "row":
            return dict(zip(scores, self._rank_rows(values, excluded), strict=True))
        count = self.schedule.size(self.round + 1)
        shared, sizes = self.selection.shared, [w.numel() for w in self.weights.values()]
        if self.scope == "global":
            return dict(zip(scores, select_topk(values, excluded, count, shared), strict=True))
        # Each tensor's final number is fixed from the start; a round takes its part of what is still missing.
        final, taken = _proportional(sizes, self.schedule.total), self.selection.counts().values()
        shares = _proportional([n - before for n, before in zip(final, taken, strict=True)], count)
        return {
            name: select_topk([value], [index], share, shared)[0]
            for name, value, index, share in zip(scores, values, excluded, shares, strict=True)
        }

    def _rank_rows(self, scores: list[Tensor], taken: list[Tensor]) -> list[Tensor]:
        whole, shared = self.schedule.until(self.round + 1), self.selection.shared
        if self.scope == "global":
            return best_rows(scores, taken, whole - self.selection.count(), shared)
        rooms = _proportional([w.numel() for w in self.weights.values()], whole)
        return [
            best_rows([score], [index], room - before, shared)[0]
            for score, index, room, before in zip(scores, taken, rooms, self.selection.counts().values(), strict=True)
        ]

    def _take(self, picked: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.criterion != "displacement":
            return self.selection.add(picked, self.round)
        # Selected entries keep what they learned through the round, all others go back to theta_0.
        trained = {n: local(w).clone() for n, w in self.weights.items()}
        for name, weight in self.weights.items():
            local(weight).copy_(self.start[name])
        orders = self.selection.add(picked, self.round)
        self.selection.write({n: e.of(trained[n]) for n, e in self.selection})
        return orders

    def state(self) -> dict[str, Tensor]:
        """What a later `load_state` needs beyond the selection to go on exactly, as a flat dict of tensors."""
        counters = torch.tensor([self.step, self.round], dtype=torch.int64)
        parts = {"scores": self.scores, "start": self.start}
        state = {f"{key}/{n}": shared_as(self.weights[n], t) for key, part in parts.items() for n, t in part.items()}
        if self.trains_all:
            state |= {f"weights/{k}": w.detach() for k, w in self.weights.items()}
        return state | {"counters": counters}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `state` returned, after the selection took its own; candidates and settings must be the same."""
        part = lambda key: {k.removeprefix(key): v for k, v in state.items() if k.startswith(key)}  # noqa: E731
        self.step, self.round = state["counters"].tolist()
        self.scores, self.start = self._by_weight(part("scores/")), self._by_weight(part("start/"))
        for name, values in part("weights/").items():
            copy_(self.weights[name], values)

    def _by_weight(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors in the order of the weights, which files do not keep and the ranking relies on."""
        return {n: part_of(tensors[n], w).to(w.device, copy=True) for n, w in self.weights.items() if n in tensors}


def _score_dtype(weight: Tensor) -> torch.dtype:
    return torch.float64 if weight.dtype == torch.float64 else torch.float32


def _proportional(sizes: list[int], total: int) -> list[int]:
    """Splits `total` in proportion to `sizes`, exactly (cumulative floors); no part exceeds its size."""
    whole, seen, shares = max(sum(sizes), 1), 0, []
    for size in sizes:
        shares.append((seen + size) * total // whole - seen * total // whole)
        seen += size
    return shares
