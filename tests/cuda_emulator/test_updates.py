"""The kernels that change tensors in place, in the emulator: bit by bit against plain loops, with injected faults."""

from __future__ import annotations

import harness
import pytest

FAULTS = {
    "a list too late": ("cuda/table.cuh", "first[middle] <= block", "first[middle] < block"),
    "a score too few": ("cuda/scores.cuh", "int i = done + threadIdx.x", "int i = done + 1 + threadIdx.x"),
    "unaligned packs": ("cuda/scores.cuh", "% alignof(Pack<S>) == 0", "% sizeof(S) == 0"),
    "a gathered gradient scattered": ("cuda/sparse_adamw.cuh", "grads[e.gathered ? i : position[j]]", "grads[i]"),
    "a step too young": ("cuda/sparse_adamw.cuh", "const int64_t age = ++ages[r];", "const int64_t age = ages[r]++;"),
}


@pytest.mark.parametrize("sanitize", [False, True], ids=["plain", "sanitized"])
def test_computes_what_plain_loops_compute(sanitize: bool) -> None:
    harness.expect_pass(harness.build("updates", sanitize=sanitize))


@pytest.mark.parametrize("fault", FAULTS)
def test_an_injected_fault_is_noticed(fault: str) -> None:
    sanitize = fault == "unaligned packs"
    harness.expect_fault(harness.build("updates", sanitize=sanitize, replace=(FAULTS[fault],)))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("position", "indices are strictly increasing within the weight"),
        ("round", "rounds are among those of ages"),
        ("age", "the rounds of entries have selected"),
        ("swap", "index is strictly increasing within the weight"),
        ("swap twice", "index is strictly increasing within the weight"),
    ],
)
def test_numbers_that_would_corrupt_memory_stop_the_kernel(what: str, message: str) -> None:
    done = harness.run(harness.build("updates"), "misuse", what)
    assert done.returncode != 0 and message in done.stderr
    assert harness.run(harness.build("updates"), "misuse", "nothing").returncode == 0
