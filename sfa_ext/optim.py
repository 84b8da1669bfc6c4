"""AdamW whose selected weights keep state for, and change in, their selected entries alone."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from sfa_ext import ops, ranks  # noqa: F401  (ops registers torch.ops.sfa)
from sfa_ext.selection.shards import local, part_of, shared_as

_HALF = (torch.float16, torch.bfloat16)


class SparseAdamW(torch.optim.Optimizer):
    """AdamW over whole tensors (`params`) and over selected entries of `search`'s weights, in place.

    Weight decay is decoupled and touches selected entries only, so an unselected weight stays bit-identical. Bias
    correction of an entry counts from the step at which it was selected. Moments are float32; bf16 and fp16 weights
    have a float32 master value per selected entry.

    The gradient of a selected weight is gathered as soon as autograd made it, into a *slot*: a leaf tensor of the
    selected entries' number that owns no values, only a gradient. Slots stand in `param_groups`, so gradient
    clipping and loss scaling see exactly what will be applied. While the search runs the candidates stand there too,
    with their dense gradient, until `step` has scored and released it. A step that meets inf or NaN is neither
    scored nor applied; `skipped` counts such steps.

    Where several ranks train together, the loop averages the gradients of `params` and of the slots
    (`ranks.mean_gradients`) before `step`; those of the candidates are averaged here, where the criterion needs it.

    Parameters
    ----------
    params: tensors or groups trained whole, as for torch.optim.AdamW; may be empty.
    search: a `sfa_ext.selection.Search`.
    lr, betas, eps, weight_decay: as in torch.optim.AdamW.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        search: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        params = list(params)
        self.whole = torch.optim.AdamW(params, fused=True, **defaults) if params else None
        self._everything: torch.optim.AdamW | None = None  # criterion "displacement": all candidates, one round long
        self.search = search
        self.skipped = 0
        first = next(iter(search.weights.values()))
        self.ages = torch.full((search.schedule.rounds,), -1, dtype=torch.int64, device=first.device)
        if search.finished:  # from the start: the mask was found elsewhere
            self.ages.zero_()
        self._moments: dict[str, dict[str, Tensor]] = {n: self._new_moments(n) for n in search.weights}
        selected = {**defaults, "params": self._new_slots(), "role": "selected"}
        candidates = {**defaults, "params": list(search.weights.values()), "role": "search"}
        super().__init__([*(self.whole.param_groups if self.whole else []), selected, candidates], defaults)
        self._selected, self._candidates = self.param_groups[-2:]
        self._hooks = [w.register_post_accumulate_grad_hook(self._gatherer(n)) for n, w in search.weights.items()]
        self._follow_search()

    def close(self) -> None:
        """Removes the gradient hooks; the optimizer cannot be used any more."""
        for hook in self._hooks:
            hook.remove()

    def slots(self) -> list[Tensor]:
        """Leaf tensors that carry the gradients of the selected entries, for gradient clipping."""
        return list(self._selected["params"])

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step: updates whole tensors and selected entries, scores the rest, and ends a round where one is due."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        searching = not self.search.finished
        if self.search.needs_mean_gradients:
            ranks.mean_(w.grad for w in self.search.weights.values() if w.grad is not None)
        if self._finite():
            self._apply()
        else:
            self.skipped += 1
        self._release()
        if searching and self.search.finished:
            _give_back_memory()
        return loss

    def _apply(self) -> None:
        search = self.search
        search.score()
        if search.schedule.interval == 0 and search.due():
            self._end_round()
        if self.whole is not None:
            self.whole.step()
        if search.trains_all:
            self._train_all()
        self._step_selected()
        search.observe()
        if search.schedule.interval and search.due():
            self._end_round()

    def _step_selected(self) -> None:
        names = [n for n, slot in zip(self.search.weights, self.slots(), strict=True) if slot.grad is not None]
        if not names:
            return
        weights, entries = self.search.weights, self.search.selection.entries
        slots = dict(zip(weights, self.slots(), strict=True))
        moments = [self._moments[n] for n in names]
        half = [m["master"] for m in moments if "master" in m]
        group = self._selected
        torch.ops.sfa.sparse_adamw_(
            [local(weights[n]) for n in names],
            [slots[n].grad for n in names],
            [entries[n].index for n in names],
            [entries[n].round for n in names],
            [m["exp_avg"] for m in moments],
            [m["exp_avg_sq"] for m in moments],
            half,
            self.ages,
            group["lr"],
            *group["betas"],
            group["eps"],
            group["weight_decay"],
        )

    def _train_all(self) -> None:
        """Criterion "displacement": a dense step on the candidates which leaves selected entries to their own."""
        if self._everything is None:
            self._everything = self._new_everything()
        self._everything.param_groups[0]["lr"] = self._selected["lr"]
        kept = self.search.selection.values()
        self._everything.step()
        self.search.selection.write(kept)

    def _new_everything(self) -> torch.optim.AdamW:
        group = {k: v for k, v in self._selected.items() if k not in ("params", "role")}
        return torch.optim.AdamW(list(self.search.weights.values()), fused=True, **group)

    def _end_round(self) -> None:
        number, own = self.search.round, not (self.search.needs_mean_gradients or self.search.selection.shared)
        orders = self.search.select()
        for name, order in orders.items():
            self._moments[name] = self._grown(name, order)
        self.ages[number] = 0
        self._everything = None
        self._selected["params"][:] = self._new_slots()
        self._gather_all(own)
        self._follow_search()

    def _grown(self, name: str, order: Tensor) -> dict[str, Tensor]:
        """The moments of `name` after entries were added: zero for the new ones, in the order of the positions."""
        old, grown = self._moments[name], {}
        weight, entries = self.search.weights[name], self.search.selection.entries[name]
        for part, tensor in old.items():
            new = tensor.new_zeros(order.numel() - tensor.numel())
            grown[part] = torch.cat([tensor, new])[order]
        if "master" in grown:
            fresh = entries.round == self.search.round - 1
            grown["master"] = torch.where(fresh, entries.of(weight).float(), grown["master"])
        return grown

    def _follow_search(self) -> None:
        """After the last round no dense gradient is kept, and none is made for a weight without selected entries."""
        if self.search.finished:
            counts = self.search.selection.counts()  # of all ranks, which must agree on what has a gradient
            self._candidates["params"].clear()
            for name, weight in self.search.weights.items():
                weight.requires_grad_(counts[name] > 0)
                weight.grad = None

    def _gatherer(self, name: str) -> Callable[[Tensor], None]:
        position = list(self.search.weights).index(name)

        def gather(weight: Tensor) -> None:
            slot = self._selected["params"][position]
            if self.search.selection.counts()[name]:  # on any rank: all ranks then take the same steps
                values = self.search.selection.entries[name].of(weight.grad)
                # While the search runs weight.grad itself accumulates over micro-batches, later the slot does.
                again = self.search.finished and slot.grad is not None
                slot.grad = slot.grad + values if again else values
            if self.search.finished:
                weight.grad = None

        return gather

    def _gather_all(self, own: bool) -> None:
        """own: the candidates' gradients are those of this rank's part of the batch."""
        for slot, (name, entries) in zip(self.slots(), self.search.selection, strict=True):
            gradient = self.search.weights[name].grad
            if gradient is not None and self.search.selection.counts()[name]:
                slot.grad = entries.of(gradient)
        if own and self.search.schedule.interval == 0:  # they are applied in this very step
            ranks.mean_gradients(self.slots())

    def _finite(self) -> bool:
        gradients = [local(p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        gradients = [g for g in gradients if g.numel()]
        finite = not gradients or bool(torch.stack(torch._foreach_norm(gradients, float("inf"))).isfinite().all())
        # What is averaged is the same everywhere; candidates, and parts of what is shared, may overflow on one rank.
        alone = self._candidates["params"] or self.search.selection.shared
        return ranks.all_true(finite) if alone else finite

    def _release(self) -> None:
        for group in (self._selected, self._candidates):
            for parameter in group["params"]:
                parameter.grad = None

    def _new_slots(self) -> list[Tensor]:
        entries = self.search.selection.entries
        return [
            torch.zeros((), dtype=w.dtype, device=w.device).expand(len(entries[n])).requires_grad_()
            for n, w in self.search.weights.items()
        ]

    @torch.no_grad()
    def _new_moments(self, name: str) -> dict[str, Tensor]:
        weight, entries = self.search.weights[name], self.search.selection.entries[name]
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        parts = {
            part: torch.zeros(len(entries), dtype=dtype, device=weight.device) for part in ("exp_avg", "exp_avg_sq")
        }
        return parts | ({"master": entries.of(weight).float()} if weight.dtype in _HALF else {})

    def selected_state(self) -> dict[str, Tensor]:
        """State of this rank's selected entries as a flat dict of tensors, for `load_selected_state`."""
        state = {f"{n}/{part}": t for n, moments in self._moments.items() for part, t in moments.items()}
        if self._everything is not None:
            for name, weight in self.search.weights.items():
                kept = self._everything.state[weight].items()
                state |= {f"everything/{name}/{part}": torch.as_tensor(t) for part, t in kept}
        return state | {"ages": self.ages, "skipped": torch.tensor(self.skipped)}

    def load_selected_state(self, state: Mapping[str, Tensor]) -> None:
        """Takes what `selected_state` returned, of all ranks joined or of this one, after the search took its state."""
        self.ages.copy_(state["ages"])
        self.skipped = int(state["skipped"])
        for part in ("exp_avg", "exp_avg_sq", "master"):
            found = {name: state[f"{name}/{part}"] for name, moments in self._moments.items() if part in moments}
            for name, values in self.search.selection.part(found).items():
                self._moments[name][part] = values.to(self.ages.device, copy=True)
        self._selected["params"][:] = self._new_slots()
        self._load_everything(state)
        self._follow_search()

    def _load_everything(self, state: Mapping[str, Tensor]) -> None:
        for name, weight in self.search.weights.items():
            prefix = f"everything/{name}/"
            parts = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            if parts:
                self._everything = self._everything or self._new_everything()
                whole = {k: v if k == "step" else shared_as(weight, part_of(v, weight)) for k, v in parts.items()}
                self._everything.state[weight] = whole


def _give_back_memory() -> None:
    """Returns freed memory to the system, which glibc keeps by itself: scores and dense gradients do not come again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
