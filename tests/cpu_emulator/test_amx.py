"""The adapter's kernels for AMX on a processor without it: its tiles in C++, vectors of 64 bytes by AVX2."""

from __future__ import annotations

from pathlib import Path

import programs
import pytest

from sfa_ext.env import environment

HERE = Path(__file__).resolve().parent
WIDE = ("-mavx2", "-mfma", "-mf16c", "-DSFA_VECTOR_BYTES=64", "-Wno-psabi", "-Wno-maybe-uninitialized")
TILES = ("-D__AMX_BF16__", "-include", str(HERE / "emulated_amx.h"))

FAULTS = {
    "a wrong register": ("cpu/adapter_amx.h", "_tile_dpbf16ps(2, 5, 6)", "_tile_dpbf16ps(2, 4, 6)"),
    "a product of parts is left out": ("cpu/adapter_amx.h", "add_product();  // 1, 1", ""),
    "a product of last parts is left out": ("cpu/adapter_amx.h", "add_product();  // 0, 2", ""),
    "infinite numbers become NaN": ("cpu/adapter_amx.h", "if (!finite(rows)) mend(rows);", ""),
    "mended sums lose their start": ("cpu/adapter_amx.h", "low = first, high = second", "low{}, high{}"),
    "parts hold what others hold": ("cpu/adapter_pack.h", "first = rest_of(first)", "first = first"),
    "infinity is the sum of its parts": ("cpu/adapter_amx.h", "leading - leading == 0 ?", "leading == leading ?"),
    "no shapes of tiles": ("cpu/adapter_amx.h", "_tile_loadconfig(&shapes);", ""),
    "what lies beyond d stays": ("cpu/adapter_rows.h", "d < reach && r < rows", "r < 0"),
    "steps are not filled up": ("cpu/adapter_pack.h", "word < words<T>(k) / kParts", "word < k / kPer"),
    "rows beyond x are read": ("cpu/adapter_product.h", "!kByAmx<T> || rows % kTileRows<T> == 0", "true"),
}


def build(replace: tuple[programs.Replacement, ...] = ()) -> Path:
    if "avx2" not in environment()["cpu"]["isas_available"]:
        pytest.skip("this processor has no AVX2 to emulate wider vectors with")
    return programs.build(HERE / "adapter.cpp", ("cpu",), (*WIDE, *TILES), sanitize=True, replace=replace)


def test_the_adapter_is_exact_and_touches_nothing_else():
    programs.expect_pass(build())


@pytest.mark.parametrize("fault", FAULTS)
def test_an_injected_fault_is_noticed(fault):
    programs.expect_fault(build((FAULTS[fault],)))
