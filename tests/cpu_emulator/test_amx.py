"""The adapter's kernels for AMX on a processor without it: as C++, its tiles too, with AddressSanitizer; and as the
compiler makes them, where each instruction of AMX traps."""

from __future__ import annotations

from pathlib import Path

import programs
import pytest

from sfa_ext.env import environment

PROGRAM = Path(__file__).resolve().parent / "adapter.cpp"
AVX2 = ("-mavx2", "-mfma", "-mf16c", "-Wno-maybe-uninitialized")
EMULATED = (*AVX2, "-DSFA_VECTOR_BYTES=64", "-Wno-psabi", "-D__AMX_BF16__")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512bf16")
TRAPPED = ("-O3", *AVX512, "-mamx-tile", "-mamx-bf16")

FAULTS = {
    "a wrong register": ("cpu/adapter_amx.h", "_tile_dpbf16ps(2, 5, 6)", "_tile_dpbf16ps(2, 4, 6)"),
    "a product of parts is left out": ("cpu/adapter_amx.h", "add_product();  // 1, 1", ""),
    "a product of last parts is left out": ("cpu/adapter_amx.h", "add_product();  // 0, 2", ""),
    "a product of short floats is left out": ("cpu/adapter_amx.h", "add_product();  // 1, 0 of short floats", ""),
    "infinite numbers become NaN": ("cpu/adapter_amx.h", "if (!finite(rows)) mend(rows);", ""),
    "mended sums lose their start": ("cpu/adapter_amx.h", "high = start == nullptr ?", "high = true ?"),
    "parts hold what others hold": ("cpu/adapter_pack.h", "first = rest_of(first)", "first = first"),
    "infinity is the sum of its parts": ("cpu/adapter_amx.h", "leading - leading == 0 ?", "leading == leading ?"),
    "the last tile is lost": ("cpu/adapter_product.h", "unit.finish(emit_tile);", ""),
    "a tile takes the place of another": ("cpu/adapter_amx.h", "tiles[count % 2]", "tiles[0]"),
    "no shapes of tiles": ("cpu/adapter_amx.h", "_tile_loadconfig(&kTileShapes);", ""),
    "what lies beyond d stays": ("cpu/adapter_rows.h", "d < reach && r < rows", "r < 0"),
    "steps are not filled up": ("cpu/adapter_pack.h", "word < words<T>(k) / kParts", "word < k / kPer"),
    "rows beyond x are read": ("cpu/adapter_product.h", "!kByAmx<T> || rows % kTileRows<T> == 0", "true"),
}


def build(*replace: programs.Replacement) -> Path:
    _need("avx2")
    return programs.build(PROGRAM, ("cpu",), EMULATED, sanitize=True, replace=replace)


def build_trapped(*replace: programs.Replacement) -> Path:
    _need("avx512bf16")
    return programs.build(PROGRAM, ("cpu",), TRAPPED, replace=replace)


def _need(isa: str) -> None:
    if isa not in environment()["cpu"]["isas_available"]:
        pytest.skip(f"this processor has no {isa}")


def test_the_adapter_is_exact_and_touches_nothing_else():
    programs.expect_pass(build())


@pytest.mark.parametrize("fault", FAULTS)
def test_an_injected_fault_is_noticed(fault):
    programs.expect_fault(build(FAULTS[fault]))


def test_what_the_compiler_makes_of_it_is_exact():
    programs.expect_pass(build_trapped())


def test_an_injected_fault_is_noticed_there_too():
    programs.expect_fault(build_trapped(FAULTS["a wrong register"]))
