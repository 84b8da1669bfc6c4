"""The emulator itself: its own kernel is right in every order, and faults are noticed."""

from __future__ import annotations

import harness
import pytest

pytestmark = pytest.mark.timeout(900)  # seconds each, unless others have the processor

KERNEL = "self_test.cuh"
FAULTS = {
    "no barrier": (
        KERNEL,
        "__syncthreads();  // this stage is there, and the other one is read",
        "",
    ),
    "copies not waited for": (KERNEL, "cp_async_wait<0>();", "cp_async_wait<1>();"),
    "a row too many": (KERNEL, "row + r < rows", "row + r <= rows"),
    "a row too few": (KERNEL, "row + r < rows", "row + r + 1 < rows"),
    "a store beyond the edge": (KERNEL, "if (r < m && to < n)", "if (r <= m && to < n)"),
    "fragments swapped": (KERNEL, "{right[0], right[1]}", "{right[1], right[0]}"),
    "half of a row sum": (KERNEL, "total += __shfl_xor_sync(~0u, total, 2);", ""),
}


@pytest.mark.parametrize("sanitize", [False, True], ids=["plain", "sanitized"])
def test_product_is_right_in_every_order(sanitize: bool) -> None:
    harness.expect_pass(harness.build("self_test", sanitize=sanitize))


@pytest.mark.parametrize("fault", FAULTS)
def test_an_injected_fault_is_noticed(fault: str) -> None:
    harness.expect_fault(harness.build("self_test", replace=(FAULTS[fault],)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lanes_disagree", "disagree"),
        ("barrier_in_a_branch", "wait for each other"),
        ("write_behind_shared", "behind the dynamic shared memory"),
        ("exit_under_a_shuffle", "exit"),
        ("unaligned_copy", "misaligned"),
        ("copy_not_waited_for", "did not wait"),
    ],
)
def test_the_emulator_reports(name: str, message: str) -> None:
    done = harness.run(harness.build("self_test"), name)
    assert done.returncode == 3 and message in done.stderr


@pytest.mark.parametrize("name", ["m16n8k16.f16", "m16n8k16.bf16", "m16n8k8.tf32", "m16n8k8.f16", "m8n8k4.f16"])
def test_matrix_instructions_hold_their_numbers_where_the_ptx_manual_says(name: str) -> None:
    harness.expect_pass(harness.build("fragments"), name)


def test_a_number_in_another_lane_is_noticed() -> None:
    fault = ("matrix.h", "(i & 4) + (lane & 2) + (i & 1)", "(i & 4) + (lane & 1) * 2 + (i & 1)")
    harness.expect_fault(harness.build("fragments", replace=(fault,)), "m8n8k4.f16")
