"""The adapter's CUDA kernels under the emulator: right on every generation and for every plan, and faults are noticed.

A case is rows, D, d, bytes of shared memory that a block may have, processors; the last two decide the plan.
"""

from __future__ import annotations

import harness
import pytest

pytestmark = pytest.mark.timeout(900)  # seconds each, unless others have the processor

ALL_STAY = ("140", "128", "40", "101376", "1")  # one block for two tiles, the second not whole
X_STAYS = ("70", "200", "40", "70000", "2")
NOTHING_STAYS = ("40", "520", "136", "80000", "2")  # the hidden numbers in two chunks
SMALL_BLOCKS = ("40", "96", "256", "101376", "4")
TURING = ("70", "136", "40", "65536", "2")
FLOAT = ("40", "100", "68", "101376", "2")
CASES = {
    "half, all stays": ("adapter_half", 800, ALL_STAY),
    "half, x stays": ("adapter_half", 800, X_STAYS),
    "half, nothing stays": ("adapter_half", 800, NOTHING_STAYS),
    "half, small blocks": ("adapter_half", 800, SMALL_BLOCKS),
    "half, sm_75": ("adapter_half", 750, TURING),
    "half, sm_70": ("adapter_half", 700, TURING),
    "bfloat16": ("adapter_bfloat16", 800, X_STAYS),
    "tf32": ("adapter_tf32", 800, FLOAT),
    "float": ("adapter_float", 800, FLOAT),
    "norm, half, all stays": ("adapter_norm_half", 800, ALL_STAY),
    "norm, half, x stays": ("adapter_norm_half", 800, X_STAYS),
    "norm, bfloat16": ("adapter_norm_bfloat16", 800, ("40", "520", "72", "166912", "2")),
    "norm, tf32": ("adapter_norm_tf32", 800, FLOAT),
    "norm, float": ("adapter_norm_float", 800, FLOAT),
}

TILE, PANEL, NORM = "cuda/adapter_tile.cuh", "cuda/panel.cuh", "cuda/adapter_norm_kernel.cuh"
FAULTS = {  # fault: program, generation, case, (file, old text, new text)
    "copies and readers not in step": (
        *("adapter_half", 800, NOTHING_STAYS),
        (TILE, "__syncthreads();  // copies of all threads are there, and all have read what the next", "// "),
    ),
    "a stage read too early": ("adapter_half", 800, ALL_STAY, (TILE, "cp_async_wait<1>();", "cp_async_wait<2>();")),
    "hidden numbers read too early": (
        *("adapter_half", 800, ALL_STAY),
        (TILE, "if (layout_.weights_resident) __syncthreads();  // the hidden", "//"),
    ),
    "a tile overwritten too early": (
        *("adapter_half", 800, ALL_STAY),
        ("cuda/adapter_kernel.cuh", "__syncthreads();  // all have sent their part", "//"),
    ),
    "lanes not in step": ("adapter_half", 800, X_STAYS, (TILE, "__syncwarp();  // neighbouring", "//")),
    "a ring too short": ("adapter_half", 800, NOTHING_STAYS, (TILE, "? stage % 3 :", "? stage % 2 :")),
    "a column too many is read": ("adapter_half", 800, X_STAYS, (PANEL, "column < width;", "column <= width;")),
    "a row too many is written": (
        *("adapter_half", 800, X_STAYS),
        (
            TILE,
            "if (first_row() + r < args_.rows && column < args_.width)",
            "if (first_row() + r <= args_.rows && column < args_.width)",
        ),
    ),
    "a column too many is written": (
        *("adapter_half", 800, X_STAYS),
        (
            TILE,
            "if (first_row() + r < args_.rows && column < args_.width)",
            "if (first_row() + r < args_.rows && column <= args_.width)",
        ),
    ),
    "fragments swapped": ("adapter_half", 800, X_STAYS, (PANEL, "{b[0], b[1]});", "{b[1], b[0]});")),
    "fragments swapped, sm_75": ("adapter_half", 750, TURING, (PANEL, "{a[2], a[3]}, b[1]", "{a[2], a[3]}, b[0]")),
    "quads swapped, sm_70": (
        "adapter_half",
        700,
        TURING,
        (PANEL, "n / 2 * 16 + lane / 8 % 2 * 8", "n / 2 * 16 + lane / 4 % 2 * 8"),
    ),
    "no relu": ("adapter_half", 800, X_STAYS, (TILE, "return v < 0 ? 0 : v;", "return v;")),
    "what is not there counts": (
        *("adapter_half", 800, X_STAYS),
        (TILE, "if (column >= args_.hidden) first = second = 0;", ""),
    ),
    "no mask": ("adapter_half", 800, X_STAYS, (TILE, "(hidden <= 0 ? 0u : 1u)", "(hidden <= 0 ? 1u : 1u)")),
    "panels overlap": (
        *("adapter_half", 800, X_STAYS),
        (
            "cuda/adapter_plan.h",
            "out.hidden_at = x_resident ? out.panels",
            "out.hidden_at = x_resident ? (out.panels - 1)",
        ),
    ),
    "norm: y read too early": ("adapter_norm_half", 800, X_STAYS, (NORM, "__syncthreads();  // y is whole", "//")),
    "norm: a tile overwritten too early": (
        *("adapter_norm_half", 800, ALL_STAY),
        (NORM, "__syncthreads();  // all have read the panels", "//"),
    ),
    "norm: groups not in step": (
        "adapter_norm_half",
        800,
        X_STAYS,
        (NORM, "__syncthreads();  // y has been read", "//"),
    ),
    "norm: a row too many": (
        *("adapter_norm_half", 800, X_STAYS),
        (NORM, "static_cast<int>(left) : layout", "static_cast<int>(left) + 1 : layout"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_kernels_agree_with_double_in_every_order(case: str) -> None:
    program, arch, arguments = CASES[case]
    harness.expect_pass(harness.build(program, arch=arch), *arguments)


def test_plans_fit_every_gpu() -> None:
    harness.expect_pass(harness.build("adapter_plan"))


@pytest.mark.parametrize("program", ["adapter_half", "adapter_norm_half"])
def test_kernels_touch_nothing_else(program: str) -> None:
    harness.expect_pass(harness.build(program, sanitize=True), *X_STAYS)


@pytest.mark.parametrize("fault", FAULTS)
def test_an_injected_fault_is_noticed(fault: str) -> None:
    program, arch, arguments, replacement = FAULTS[fault]
    harness.expect_fault(harness.build(program, arch=arch, replace=(replacement,)), *arguments)


def test_a_row_too_many_that_is_read_is_noticed() -> None:
    """What stands there reaches no result: only the sanitizer sees it."""
    fault = (PANEL, "row + r < limit &&", "row + r <= limit &&")
    harness.expect_fault(harness.build("adapter_half", sanitize=True, replace=(fault,)), *ALL_STAY)
