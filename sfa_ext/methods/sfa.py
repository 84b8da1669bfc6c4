"""Selective Feature Adapter (Algorithm 1): external adapters beside, and selected weights inside, one backbone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sfa_ext.backbones import DEFAULT_TARGETS, Site, accounted_size, close_sites, eligible_weights, find_sites
from sfa_ext.methods.adapter import PLACEMENTS, AdapterTail, BottleneckAdapter
from sfa_ext.methods.base import Adaptation, Method, ParameterReport, setting
from sfa_ext.methods.budget import at_least, bottleneck_weights
from sfa_ext.methods.phases import TwoPhaseAdamW
from sfa_ext.optim import SparseAdamW
from sfa_ext.selection import CRITERIA, GRANULARITIES, SCOPES, Overlap, Schedule, Search, Selection, overlap

# The paper's two sizes on the two backbones it trains, by the sum of the blocks' widths; elsewhere d follows from rho.
_PAPER = {
    "sfa-s": {12032: {"budget": 0.048, "dim": 64}, 18048: {"budget": 0.045, "dim": 64}},
    "sfa-b": {12032: {"budget": 0.195, "dim": 128}, 18048: {"budget": 0.190, "dim": 256}},
}
_ELSEWHERE = {"sfa-s": {"budget": 0.048}, "sfa-b": {"budget": 0.195}}
_HALVES = {"sfa-external": {"rho": 1.0}, "sfa-internal": {"rho": 0.0}}
PRESETS = (*_ELSEWHERE, *_HALVES)
ORDERS = ("external_first", "internal_first")


@dataclass(frozen=True)
class SFA(Method):
    """Settings of SFA. Shares are of the backbone with a 1000-class head, weights only, as in the paper."""

    budget: float = setting(0.048, "beta: trainable weights as a share of the backbone")
    rho: float = setting(0.5, "part of the budget for external adapters; 0 is internal only, 1 external only")
    dim: int | None = setting(None, "d: bottleneck width (at most D); None takes the largest that fits rho * budget")
    rounds: int | None = setting(None, "n: selection rounds; None makes them training steps / interval")
    interval: int = setting(2000, "s: optimizer steps per round; 0 selects once, before training")
    criterion: str = setting("gradient", f"what is ranked: {', '.join(CRITERIA)}")
    scope: str = setting("global", f"over what it is ranked: {', '.join(SCOPES)}")
    granularity: str = setting("element", f"what is selected: {', '.join(GRANULARITIES)} (a whole output channel)")
    order: str = setting("external_first", "internal_first trains F_i to its end, then F_e with F_i frozen")
    phase: float = setting(0.5, "part of the training that order internal_first gives to the internal adapter")
    internal_lr_scale: float = setting(1.0, "learning rate of selected weights, as a multiple of the adapters'")
    placement: str = setting("branch", f"where the external adapter sits: {', '.join(PLACEMENTS)}")
    targets: tuple[str, ...] = setting(DEFAULT_TARGETS, "patterns of the weights that may be selected")

    def __post_init__(self) -> None:
        if not 0.0 < self.budget <= 1.0:
            raise ValueError(f"budget: must be in (0, 1], a share of the backbone's weights, got {self.budget}")
        if not 0.0 <= self.rho <= 1.0:
            raise ValueError(f"rho: must be in [0, 1], got {self.rho}")
        if self.dim is not None and self.dim < 0:
            raise ValueError(f"dim: must be 0 (no external adapter) or more, got {self.dim}")
        if not 0.0 < self.phase < 1.0:
            raise ValueError(f"phase: must be between 0 and 1, a part of the training, got {self.phase}")
        if not 0.0 < self.internal_lr_scale < float("inf"):
            raise ValueError(f"internal_lr_scale: must be more than 0, got {self.internal_lr_scale}")
        for name, known in (
            ("criterion", CRITERIA),
            ("scope", SCOPES),
            ("granularity", GRANULARITIES),
            ("order", ORDERS),
            ("placement", PLACEMENTS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}: unknown {getattr(self, name)!r}, known: {', '.join(known)}")
        if self.rounds is not None or self.interval <= 0:
            Schedule(0, 1 if self.rounds is None else self.rounds, self.interval)
        object.__setattr__(self, "targets", tuple(self.targets))

    def split(self, backbone: nn.Module, sites: Sequence[Site]) -> tuple[int, int]:
        """(d, K): the bottleneck width and the number of selected weights that meet the budget.

        Raises ValueError where they cannot be met, with the smallest budget that can.
        """
        size = accounted_size(backbone)["with_head"]
        widths = [site.width for site in sites]
        whole = int(self.budget * size)
        if self.dim is not None:
            external = bottleneck_weights(widths, self.dim)
            if external > whole:
                raise ValueError(
                    f"budget: {self.budget} allows {whole} weights, adapters of dim={self.dim} alone need {external}; "
                    f"the smallest budget is {at_least(external / size)}"
                )
            return self.dim, whole - external
        dim = largest_dim(widths, int(self.rho * self.budget * size))
        if self.rho > 0 and dim == 0:
            smallest = at_least(bottleneck_weights(widths, 1) / size / self.rho)
            raise ValueError(
                f"budget: {self.budget} with rho={self.rho} leaves no room for an adapter of dim=1; "
                f"the smallest budget is {smallest}, or take rho=0"
            )
        return dim, int((1.0 - self.rho) * self.budget * size)

    def build(self, backbone: nn.Module, seed: int | None = None) -> Adaptation:
        return SFAAdaptation(backbone, self, seed)


def largest_dim(widths: Sequence[int], weights: int) -> int:
    """The largest d whose adapters have at most `weights` weights; from 32 on a multiple of 8, as kernels like it."""
    dim = 0
    while dim < max(widths) and bottleneck_weights(widths, dim + 1) <= weights:
        dim += 1
    return dim if dim < 32 else dim // 8 * 8


def preset(name: str, backbone: nn.Module) -> SFA:
    """Settings of a preset for this backbone.

    SFA-S and SFA-B have the paper's d and share on SwinV2-Base and -Large, else rho = 0.5; "sfa-external" and
    "sfa-internal" spend the budget on one adapter alone (Table 6).
    """
    if name in _HALVES:
        return SFA(**_HALVES[name])
    total = sum(site.width for site in find_sites(backbone) if site.kind == "attention")
    close_sites(backbone)
    return SFA(**_PAPER[name].get(total, _ELSEWHERE[name]))


class SFAAdaptation(Adaptation):
    """A backbone with external adapters at both sites of every block, and a search for its internal adapter."""

    def __init__(self, backbone: nn.Module, settings: SFA, seed: int | None = None):
        sites = find_sites(backbone)
        try:
            self.dim, self.total = settings.split(backbone, sites)
            weights = eligible_weights(backbone, settings.targets)
            eligible = sum(w.numel() for w in weights.values())
            if self.total > eligible:
                raise ValueError(f"budget: {self.total} weights to select, but targets hold only {eligible}")
            if settings.order == "internal_first" and not (self.dim and self.total):
                raise ValueError("order: internal_first needs both adapters; take rho between 0 and 1")
        except ValueError:
            close_sites(backbone)
            raise
        super().__init__(backbone, settings)
        self.sites = sites
        self.selection = Selection(weights)
        self.search: Search | None = None
        self._sparse: SparseAdamW | None = None
        self._fixed = False  # whether the mask was found elsewhere
        self._seed = seed
        backbone.requires_grad_(False)
        if self.dim:
            self._install(seed)

    def _install(self, seed: int | None) -> None:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        for site in self.sites:
            like = next(site.block.parameters())
            adapter = BottleneckAdapter(site.width, min(self.dim, site.width), dtype=torch.float32)
            adapter.reset_parameters(generator)
            site.install(AdapterTail(adapter.to(like.device, like.dtype), self.settings.placement))

    def adapters(self) -> dict[str, BottleneckAdapter]:
        """The external adapters by the name of their site."""
        if not self.dim:
            return {}
        return {s.name: getattr(s.block, s.slot).adapter for s in self.sites}

    def named_parameters(self) -> Iterable[tuple[str, nn.Parameter]]:
        for site, adapter in self.adapters().items():
            for name, parameter in adapter.named_parameters():
                yield f"{site}.{name}", parameter

    def parameters(self) -> list[Tensor]:
        return super().parameters() + (self._sparse.slots() if self._sparse else [])

    def report(self) -> ParameterReport:
        named = [p for _, p in self.named_parameters()]
        external = sum(p.numel() for p in named if p.dim() > 1)
        vectors = sum(p.numel() for p in named if p.dim() == 1)
        return ParameterReport(external, self._internal(), vectors, **self.size)

    def _internal(self) -> int:
        """What is selected, or will be: rows may take a few weights less than the budget allows."""
        searching = self.search is not None and not self.search.finished
        return self.total if searching or not self.selection.count() else self.selection.count()

    def use_selection(self, positions: Mapping[str, Tensor]) -> None:
        """Takes a selection found elsewhere as the fixed mask (Table 7): no search, values trained afresh from theta_0.

        positions: sorted flat positions (int64) by weight name, as `selection` has them. Comes before `optimizer`.

        Raises ValueError, before anything changes, where the optimizer is there already, positions do not fit these
        weights, or they are more than the budget leaves for the internal adapter.
        """
        if self._sparse is not None:
            raise ValueError("selection: the optimizer has begun a search already; give the selection before it")
        count = sum(len(index) for index in positions.values())
        external = sum(p.numel() for _, p in self.named_parameters() if p.dim() > 1)
        if external + count > int(self.settings.budget * self.size["with_head"]):
            smallest = at_least((external + count) / self.size["with_head"])
            raise ValueError(
                f"selection: has {count} weights, the budget of {self.settings.budget} leaves room for {self.total} "
                f"beside the external adapter; the smallest budget is {smallest}"
            )
        self.selection.fix(positions)
        self.total, self._fixed = count, True

    def overlaps(self) -> list[Overlap]:
        """What this selection shares with each one folded into the backbone before, in the order of their folding."""
        mine = {name: entries.index for name, entries in self.selection}
        sizes = {name: weight.numel() for name, weight in self.selection.weights.items()}
        before = [a.selection for a in getattr(self.backbone, "_sfa_merged", ()) if isinstance(a, SFAAdaptation)]
        return [overlap({n: e.index for n, e in selection}, mine, sizes) for selection in before]

    def _schedule(self, steps: int | None) -> Schedule:
        rounds, interval = self.settings.rounds, self.settings.interval
        if interval == 0:
            rounds = 1
        elif rounds is None:
            if steps is None:
                raise ValueError("steps: give the number of training steps, or set SFA(rounds=...)")
            rounds = max(1, steps // interval)
        if steps is not None and self.total and rounds * interval > steps:
            raise ValueError(
                f"interval: {rounds} rounds of {interval} steps do not fit into {steps} training steps; "
                f"set interval to {max(1, steps // rounds)} or less"
            )
        return Schedule(self.total, rounds, interval)

    def _optimizer(self, groups: list[dict[str, Any]], defaults: dict[str, Any], steps: int | None):
        if not self.total:
            return super()._optimizer(groups, defaults, steps)
        if self._sparse is not None:
            raise ValueError("optimizer: this adaptation has one already; a search cannot serve two")
        settings, two_phases = self.settings, self.settings.order == "internal_first"
        defaults = defaults | {"lr": defaults["lr"] * settings.internal_lr_scale}  # groups have rates of their own
        if two_phases:
            if steps is None:
                raise ValueError("steps: order internal_first needs the number of training steps")
            steps = max(1, int(settings.phase * steps))
        for weight in self.selection.weights.values():
            weight.requires_grad_(True)
        if self._fixed:
            self.search = Search.over(self.selection)
        else:
            scheduled = self._schedule(steps)
            kind = (settings.criterion, settings.scope, settings.granularity)
            self.search = Search(self.selection, scheduled, *kind, self._seed)
        if two_phases:
            external = [p for _, p in self.named_parameters()]
            self._sparse = TwoPhaseAdamW(groups, self.search, external=external, switch=steps, **defaults)
        else:
            self._sparse = SparseAdamW(groups, self.search, **defaults)
        return self._sparse

    def status(self) -> dict[str, float]:
        if not self.total:
            return {}
        return {"selected": self.selection.count(), "selected_share": self.selection.count() / self.size["with_head"]}

    def state(self) -> dict[str, Tensor]:
        return super().state() | {f"selection/{name}": t for name, t in self.selection.state().items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self._check_parameters(state)
        self.selection.load_state(_part(state, "selection/"))
        self._copy_parameters(state)

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        if self._sparse is None:
            return {}
        searched = {f"search/{name}": t for name, t in self.search.state().items()}
        return searched | {f"selected/{name}": t for name, t in self._sparse.selected_state().items()}

    def own_state(self) -> dict[str, str]:
        own = {}
        if self.search is not None and self.search.has_own_scores:
            own |= {f"search/scores/{name}": "mean" for name in self.search.scores}
        if self.selection.shared:
            entries = {f"selection/{n}": ("index", "round", "original", "value") for n, _ in self.selection}
            moments = {f"selected/{n}": ("exp_avg", "exp_avg_sq", "master") for n, _ in self.selection}
            own |= {f"{name}/{part}": "joined" for name, parts in (entries | moments).items() for part in parts}
        return own

    def load_optimizer_state(self, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]) -> None:
        if self._sparse is not None:
            self.search.load_state(_part(state, "search/"))
            self._sparse.load_selected_state(_part(state, "selected/"))

    def fold_selection(self) -> nn.Module:
        """Leaves the selected values in the backbone and takes the external adapters out; returns the backbone.

        What task A selected becomes a part of the backbone that task B is adapted from (continual selection);
        `overlaps` then says how much of it B selects again. `unmerge` and `detach` undo it.
        """
        return self._merge(self._fold_selected)

    def _fold(self) -> None:
        if self.dim:
            raise ValueError(
                f"merge: external adapters (dim={self.dim}) compute beside the backbone's weights and cannot be folded "
                "into them; keep the adaptation, take SFA(rho=0), or fold_selection() to leave them out"
            )
        self._fold_selected()

    def _fold_selected(self) -> None:
        if self.search is not None and not self.search.finished:
            done, rounds = self.search.round, self.search.schedule.rounds
            raise ValueError(f"merge: the search is at round {done} of {rounds}; train on until it is finished")
        if self._sparse is not None:
            self._sparse.close()
        self._tails = {site.name: getattr(site.block, site.slot) for site in self.sites}
        close_sites(self.backbone)

    def _unfold(self) -> None:
        """The selected values are where they were; the external adapters come back."""
        find_sites(self.backbone)
        for site in self.sites:
            site.install(self._tails[site.name])

    def _remove(self) -> None:
        if self._sparse is not None:
            self._sparse.close()
        if self.search is not None:
            self.search.reset()
        self.selection.restore()
        close_sites(self.backbone)

    def chosen(self) -> dict[str, int]:
        return {"dim": self.dim, "selected_weights": self.total}

    def optimizer_bytes(self) -> tuple[int, int]:
        moments, _ = super().optimizer_bytes()
        # Until the last round: a score for every candidate, or theta_0 and two moments where all of them are trained.
        words = {"displacement": 3, "random": 0}.get(self.settings.criterion, 1)
        eligible = sum(w.numel() for w in self.selection.weights.values()) if self.total else 0
        return moments, moments + 4 * words * eligible


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
