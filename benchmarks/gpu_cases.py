"""What `make gpu-check` times, the most telling first: the operators, and a whole SwinV2, by every backend there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from sfa_ext.ops.backends import backends

from . import adapter_cases, selection_cases

BATCHES = (16, 1, 4)
COMPILED_BATCHES = (16, 1)  # torch.compile takes seconds for each shape
Calls = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Case:
    """One row of a table. `build` makes the calls by candidate, on the device; "ours" is then timed with each backend
    that serves all of `ops`.

    passes: for each pass over memory that the work needs at least, (bytes, operations).
    """

    section: str
    label: str
    ops: tuple[str, ...]
    dtype: str
    passes: tuple[tuple[int, int], ...]
    build: Callable[[], Calls]

    def floor_ms(self, ceilings: dict[str, float]) -> tuple[float, str] | None:
        """Milliseconds below which no version can get, and what bounds it; None where that was not counted."""
        if not self.passes:
            return None
        times = [(size / ceilings["copy"], flops / ceilings[self.dtype]) for size, flops in self.passes]
        bound = "memory" if sum(t[0] for t in times) >= sum(t[1] for t in times) else "math"
        return sum(max(t) for t in times) * 1e3, bound


def serving(device: torch.device, ops: tuple[str, ...]) -> list[str]:
    """The backends that can serve all of these operators on `device`, besides torch's own operators."""
    if device.type == "cpu":
        return ["native"]
    served = backends()
    found = {served[op]["cuda"] for op in ops}
    return (["cuda"] if found == {"cuda"} else []) + ["triton"]


def cases(device: torch.device, small: bool) -> Iterator[Case]:
    """In the order in which they are worth their time."""
    base, large = adapter_cases.STAGES[:4], adapter_cases.STAGES[4:]
    if small:
        yield from _adapter(((32, 64),), (1,), (8,), ("float32",), ())
        yield from _selection(((30, 40), (7, 7)), compiled=False)
        yield _model("swinv2_pico", 96, 1)
        return
    yield from _selection(selection_cases.swinv2_base_shapes(), compiled=True)
    yield from _adapter(base, BATCHES, (64,), ("bfloat16",), COMPILED_BATCHES)
    yield _model("swinv2_base_window8_256", 512, 1)
    yield _model("swinv2_base_window8_256", 512, 16)
    yield from _adapter(large, BATCHES, (64,), ("bfloat16",), ())
    yield from _adapter(base + large, (16, 1), (128,), ("bfloat16",), ())
    yield from _adapter(base, (4,), (64,), ("float32", "float16"), ())


def _adapter(stages, batches, hidden, dtypes, compiled) -> Iterator[Case]:
    for dtype in dtypes:
        for batch in batches:
            for d in hidden:
                for width, rows in stages:
                    for phase in adapter_cases.PHASES:
                        shape = adapter_cases.Shape(batch * rows, width, d, dtype)
                        names = adapter_cases.CANDIDATES if batch in compiled else adapter_cases.CANDIDATES[:2]
                        yield Case(
                            phase,
                            f"{shape} batch {batch}",
                            _adapter_ops(phase),
                            dtype,
                            _adapter_passes(shape, phase),
                            partial(adapter_cases.calls, shape, phase, names),
                        )


def _adapter_ops(phase: str) -> tuple[str, ...]:
    norm, backward = adapter_cases.PHASES[phase]
    name = "fused_adapter_norm" if norm else "fused_adapter"
    return (name, f"{name}_backward", "fused_adapter_backward") if backward else (name,)


def _adapter_passes(shape: adapter_cases.Shape, phase: str) -> tuple[tuple[int, int], ...]:
    """Each input read once, each output written once; a backward that is given the hidden numbers."""
    norm, backward = adapter_cases.PHASES[phase]
    size = adapter_cases.DTYPES[shape.dtype].itemsize
    rows = shape.rows * shape.width * size
    weights = 2 * shape.width * shape.hidden * size
    product = 2 * shape.rows * shape.width * shape.hidden
    forward = ((3 if norm else 2) * rows + weights, 2 * product)
    return (forward, (3 * rows + 2 * weights, 4 * product)) if backward else (forward,)


def _selection(shapes: selection_cases.Shapes, compiled: bool) -> Iterator[Case]:
    def build(case: selection_cases.Case) -> Calls:
        return {name: call for name, call in case.build(shapes).items() if compiled or name != "torch.compile"}

    numbers = sum(a * b for a, b in shapes)
    entries = int(selection_cases.SHARE * numbers)
    least = {
        ("accumulate_scores_", "gradient, float32"): 12 * numbers,
        ("accumulate_scores_", "squared, bfloat16"): 10 * numbers,
        ("select_topk", "10 %, first round"): 4 * numbers + 8 * entries,
        ("select_topk", "10 %, another 10 % excluded"): 4 * numbers + 16 * entries,
        # A GPU moves whole sectors of 32 bytes: at 10 % chosen at random, 57 % of those of weights and gradients.
        ("sparse_adamw_", "10 % uniform, dense gradients"): int(0.57 * 12 * numbers) + 26 * entries,
        ("sparse_adamw_", "10 % uniform, gathered gradients"): int(0.57 * 8 * numbers) + 30 * entries,
        ("swap_values_", "10 % uniform"): int(0.57 * 8 * numbers) + 16 * entries,
    }
    for case in selection_cases.CASES:
        if (case.op, case.setting) in least:
            passes = ((least[case.op, case.setting], 0),)
            yield Case(case.op, case.setting, (case.op,), "float32", passes, partial(build, case))


def _model(name: str, side: int, batch: int) -> Case:
    """The backbone as it is, and with adapters by torch's own operators and by ours."""

    def build() -> Calls:
        from sfa_ext import SFA, adapt
        from sfa_ext import backbones as rooms

        device = torch.get_default_device()
        with torch.device("cpu"):
            bare, adapted = (rooms.build(name, size=side, dynamic=False).eval() for _ in range(2))
            adapt(adapted, SFA(budget=0.3, dim=8 if name == "swinv2_pico" else 64, rho=1.0), seed=0)
        images = torch.randn(batch, 3, side, side)

        def forward(model: torch.nn.Module) -> Callable[[], object]:
            model.to(device)

            def call() -> object:
                with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                    return model(images)

            return call

        return {"ours": forward(adapted), "reference": forward(adapted), "without adapters": forward(bare)}

    label = f"{name} {side}x{side} batch {batch}"
    return Case("whole forward", label, ("fused_adapter",), "bfloat16", (), build)
