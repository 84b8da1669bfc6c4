"""Order F_e(F_i(T)): the internal adapter is found and trained first, then frozen while the external one is trained."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from sfa_ext.optim import SparseAdamW
from sfa_ext.selection import Search


class TwoPhaseAdamW(SparseAdamW):
    """SparseAdamW that trains `external` only after `switch` applied steps, and selected weights only until then.

    What else stands in `params` (a head) is trained throughout. The phase follows from the search's step, so a resumed
    run is in the right one.
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        search: Search,
        *,
        external: Sequence[nn.Parameter],
        switch: int,
        **defaults: Any,
    ):
        super().__init__(params, search, **defaults)
        self.external, self.switch = external, switch
        self._enter_phase()

    @property
    def phase(self) -> int:
        """1 while the internal adapter is trained, 2 while the external one is."""
        return 2 if self.search.step >= self.switch else 1

    def step(self, closure: Any = None) -> float | None:
        before = self.phase
        loss = super().step(closure)
        if self.phase != before:
            self._enter_phase()
        return loss

    def load_selected_state(self, state: Mapping[str, Tensor]) -> None:
        super().load_selected_state(state)
        self._enter_phase()

    def _enter_phase(self) -> None:
        for parameter in self.external:
            parameter.requires_grad_(self.phase == 2)
            parameter.grad = None
        if self.phase == 2:
            for weight in self.search.weights.values():
                weight.requires_grad_(False)
                weight.grad = None
