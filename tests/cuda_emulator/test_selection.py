"""The kernels of select_topk in the emulator: against a stable sort, under sanitizers, and with injected faults."""

from __future__ import annotations

import harness
import pytest

KERNELS, SCAN = "cuda/selection_kernels.cuh", "cuda/scan.cuh"
FAULTS = {
    "bins cleared late": (KERNELS, "__syncthreads();  // no bin may be cleared again", ""),
    "bins read early": (KERNELS, "__syncthreads();  // all have counted", ""),
    "marks cleared late": (KERNELS, "__syncthreads();  // no mark may be cleared again", ""),
    "marks read early": (KERNELS, "__syncthreads();  // all marks are there", ""),
    "sums read early": (SCAN, "__syncthreads();  // the sums of all warps are there", ""),
    "a tie too many": (KERNELS, "is_tie && tie < limit", "is_tie && tie <= limit"),
    "a digit too far": (KERNELS, "wanted <= larger + counts[j]", "wanted < larger + counts[j]"),
    "a bound too few": (KERNELS, "c <= position / kChunk; ++c", "c < position / kChunk; ++c"),
    "a score too many": (KERNELS, "i + n <= chunk.size", "i + n <= chunk.size + 1"),
    "a warp's sum missing": (SCAN, "warp == 0 ? 0 : warp - 1", "warp"),
}


def test_selects_what_a_stable_sort_selects() -> None:
    harness.expect_pass(harness.build("selection"))


def test_touches_no_memory_but_its_own() -> None:
    harness.expect_pass(harness.build("selection", sanitize=True), "reduced")


@pytest.mark.parametrize("fault", FAULTS)
def test_an_injected_fault_is_noticed(fault: str) -> None:
    harness.expect_fault(harness.build("selection", replace=(FAULTS[fault],)), "reduced")
