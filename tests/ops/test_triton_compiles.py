"""Every Triton kernel compiles for the GPUs of three generations, and fits on them, at the shapes of SwinV2."""

from __future__ import annotations

import importlib.util

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("Triton is not installed", allow_module_level=True)

import triton.language as tl
from triton_compile import compile_for, pointer

from sfa_ext.ops.triton import adapter_kernels, backward_kernels, selection_kernels, tiles, topk_kernels

CAPABILITIES = (80, 90, 100)
SMALLEST_SHARED = 99 * 1024  # of a block on GPUs of capability 8.6, 8.9 and 12.0
HALF, FLOAT = torch.bfloat16, torch.float32


def pointers(names: str, dtype: torch.dtype) -> dict[str, str]:
    return dict.fromkeys(names.split(), pointer(dtype))


WEIGHTS = "x w_down b_down w_up b_up"
ADAPTER = {
    # kernel, what tiles.choose is asked for, pointers of x's dtype, float32 pointers, scalars, absent arguments
    "forward": (adapter_kernels.forward, tiles.FORWARD, f"{WEIGHTS} out", "", {"n": "i64"}, ("kept",)),
    "forward_norm": (
        adapter_kernels.forward_norm,
        tiles.NORM,
        WEIGHTS,
        "residual norm_weight norm_bias out",
        {"n": "i64", "eps": "fp32"},
        (),
    ),
    "backward": (
        backward_kernels.backward,
        tiles.BACKWARD,
        "grad x w_down b_down w_up grad_x hidden_out grad_hidden_out",
        "b_down_sums b_up_sums",
        {"n": "i64"},
        ("given",),
    ),
    "norm_backward": (
        backward_kernels.norm_backward,
        tiles.NORM_BACKWARD,
        f"{WEIGHTS} grad_y hidden_out",
        "grad norm_weight weight_sums bias_sums",
        {"n": "i64", "eps": "fp32"},
        ("given",),
    ),
}
SHAPES = {  # rows, D, d, dtype, capabilities
    "small-stage": (16384, 128, 64, HALF, CAPABILITIES),
    "wide-stage": (4096, 1024, 128, HALF, (90,)),
    "large-model": (65536, 384, 256, HALF, (80,)),
    "float32": (16384, 192, 128, FLOAT, (80,)),
}


@pytest.mark.parametrize("name", ADAPTER)
@pytest.mark.parametrize(
    ("rows", "width", "hidden", "dtype", "capability"),
    [
        pytest.param(*shape, capability, id=f"{name}-{capability}")
        for name, (*shape, capabilities) in SHAPES.items()
        for capability in capabilities
    ],
)
def test_adapter_kernels(name, rows, width, hidden, dtype, capability):
    kernel, use, half, single, scalars, absent = ADAPTER[name]
    chosen = tiles.choose(torch.empty((rows, width), dtype=dtype, device="meta"), hidden, use)
    arguments = {**pointers(half, dtype), **pointers(single, FLOAT), **scalars}
    constants = {
        **dict.fromkeys(absent),
        **{"D": width, "d": hidden, "PRECISION": "ieee"},
        **{"BLOCK_N": chosen.rows, "BLOCK_K": chosen.columns, "BLOCK_H": chosen.hidden},
    }
    usage = compile_for(capability, kernel, arguments, constants, chosen.num_warps, chosen.num_stages)
    print(f"{name} {rows}x{width}x{hidden} sm_{capability}: {chosen} {usage.shared} {usage.registers} {usage.stack}")
    assert usage.shared <= SMALLEST_SHARED
    assert usage.registers * 32 * chosen.num_warps <= 65536
    assert usage.stack <= 256, "registers spill to memory"
    if dtype == HALF:
        assert {80: "mma.sync", 90: "wgmma", 100: "tcgen05"}[capability] in usage.ptx or "mma.sync" in usage.ptx


INT64, INT32 = torch.int64, torch.int32
TABLE = pointers("table owners", INT64)
KEYS = {"KEY": tl.int32, "SIGNLESS": 0x7FFFFFFF, "EXCLUDING": True}
PARTS = {"CHUNK": 16384, "BLOCK": 2048}
TOPK = {**TABLE, **pointers("mask", INT32), **pointers("state", INT64)}
SELECTION = {
    "accumulate": (
        selection_kernels.accumulate,
        TABLE,
        {"SCORE": tl.float32, "GRAD": tl.bfloat16, "CRITERION": "squared", "CHUNK": 8192, "BLOCK": 1024},
    ),
    "advance": (
        selection_kernels.advance,
        {**pointers("ages", INT64), **pointers("settings corrections", torch.float64)},
        {"ROUNDS": 10, "BLOCK": 16},
    ),
    "adamw": (
        selection_kernels.adamw,
        {**TABLE, **pointers("ages", INT64), **pointers("settings corrections", torch.float64), "ROUNDS": "i32"},
        {
            "WEIGHT": tl.bfloat16,
            "GRAD": tl.bfloat16,
            "INDEX": tl.int32,
            "WIDE": tl.float32,
            "CHUNK": 8192,
            "BLOCK": 1024,
        },
    ),
    "adamw-float64": (
        selection_kernels.adamw,
        {**TABLE, **pointers("ages", INT64), **pointers("settings corrections", torch.float64), "ROUNDS": "i32"},
        {"WEIGHT": tl.float64, "GRAD": tl.float64, "INDEX": tl.int64, "WIDE": tl.float64, "CHUNK": 8192, "BLOCK": 1024},
    ),
    "swap": (
        selection_kernels.swap,
        {**pointers("weight values", torch.int16), **pointers("index", INT64), "k": "i64", "length": "i64"},
        {"WORDS": 1, "BLOCK": 1024},
    ),
    "swap-int32": (
        selection_kernels.swap,
        {**pointers("weight values", torch.int16), **pointers("index", INT32), "k": "i64", "length": "i64"},
        {"WORDS": 1, "BLOCK": 1024},
    ),
    "mark_excluded": (
        topk_kernels.mark_excluded,
        {**TABLE, **pointers("mask faults", INT32)},
        {"CHUNK": 1024},
    ),
    "count_digits": (
        topk_kernels.count_digits,
        {**TOPK, **pointers("counts faults", INT32), "chunks": "i32"},
        {**KEYS, **PARTS, "INFINITY": 0x7F800000, "TOP": True, "SHIFT": 23, "BITS": 8},
    ),
    "pick": (topk_kernels.pick, pointers("counts state", INT64), {"SHIFT": 23, "BITS": 8}),
    "count_taken": (topk_kernels.count_taken, {**TOPK, **pointers("above equal", INT64)}, {**KEYS, **PARTS}),
    "write": (
        topk_kernels.write,
        {**TOPK, **pointers("results ties offsets counts", INT64)},
        {**KEYS, **PARTS},
    ),
}


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("name", SELECTION)
def test_selection_kernels(name, capability):
    usage = compile_for(capability, *SELECTION[name])
    print(f"{name} sm_{capability}: {usage.shared} {usage.registers} {usage.stack}")
    assert usage.shared <= SMALLEST_SHARED and usage.registers * 128 <= 65536 and usage.stack <= 256
