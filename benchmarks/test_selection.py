"""The selection operators against what one would write in their place, over the weights of a SwinV2-Base.

pytest benchmarks/test_selection.py --benchmark-only
"""

from __future__ import annotations

from functools import lru_cache

import pytest

from .selection_cases import CASES, Candidates, Case
from .timing import peak_bytes


@lru_cache(maxsize=1)
def candidates_of(case: Case) -> Candidates:
    return case.build()


@pytest.mark.parametrize(
    ("case", "name"),
    [pytest.param(case, name, id=f"{case.label}-{name}") for case in CASES for name in case.names],
)
def test_selection(benchmark, case: Case, name: str) -> None:
    benchmark.group = case.label
    call = candidates_of(case)[name]
    call()
    benchmark.extra_info["peak_bytes"] = peak_bytes(call)
    benchmark.pedantic(call, rounds=3 if "topk" in name else 10)
