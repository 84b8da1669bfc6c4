"""The adapter operators against eager and torch.compile at the shapes of SwinV2's stages.

pytest benchmarks/test_adapter.py --benchmark-only [--all-shapes]
"""

from __future__ import annotations

import pytest

from .adapter_cases import CANDIDATES, PHASES, Shape, calls
from .timing import peak_bytes


@pytest.mark.parametrize("name", CANDIDATES)
@pytest.mark.parametrize("phase", PHASES)
def test_adapter(benchmark, adapter_shape: Shape, phase: str, name: str) -> None:
    benchmark.group = f"{phase}: {adapter_shape}"
    call = calls(adapter_shape, phase, (name,))[name]
    call()
    benchmark.extra_info["peak_bytes"] = peak_bytes(call)
    benchmark.pedantic(call, rounds=5, warmup_rounds=1)
