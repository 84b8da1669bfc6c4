"""Times SwinV2-Base as timm has it, accelerated, and with SFA-B's adapters, and writes the table.

    python -m benchmarks.accelerate_table [--sizes 256 512] [--batch 1 4] [--dtype float32] [--threads 1] [--turns 9]
        [--resume]

The table goes to benchmarks/results/<processor>-<instruction set>-accelerate.md. It is written after every line;
`--resume` goes on from there and measures only lines that are missing. With one thread the clock counts that thread's
processor time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

import sfa_ext
from sfa_ext import backbones
from sfa_ext.methods.adapter import AdapterTail

from .timing import cpu_name, fill, in_turns, milliseconds, result_path, setting, table

NAME = "swinv2_base_window8_256"
STOCK, FAST, STOCK_SFA, SFA = "timm", "accelerated", "timm, SFA-B", "accelerated, SFA-B"
SIDE = 1024
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TEXT = """# SwinV2-Base with and without acceleration on {cpu}

{setting} Forward passes without gradients; milliseconds of {clock}: the median of {turns} turns and, in brackets, the
lowest; the candidates take turns. Ratios are medians over turns; "{sfa}" over "timm" is what adapters cost in all,
over "accelerated" what they cost alone. "Least" is what they would cost alone if their products ran at the highest rate
this processor reached, in GFLOP/s, on matrices of {side} x {side} (torch's or ours), and all the rest took no time.
Distance: of the accelerated maps from timm's, relative, the largest of four.
Written by `{command}`.

{table}
"""


def candidates(size: int, dtype: torch.dtype) -> dict[str, nn.Module]:
    """The four models by name, with the same weights; norms drawn at random, which timm starts at zero."""
    torch.manual_seed(0)
    stock = backbones.build(NAME, size=size, dynamic=False).eval().requires_grad_(False)
    for name, parameter in stock.named_parameters():
        if "norm" in name:
            nn.init.normal_(parameter, 0.5, 0.2)
    stock = stock.to(dtype)
    adapted = copy.deepcopy(stock)
    adaptation = sfa_ext.adapt(adapted, "sfa-b", seed=0)
    for name, parameter in adaptation.named_parameters():
        if name.endswith("up.weight"):
            nn.init.normal_(parameter, 0.0, 0.01)
    fast, both = copy.deepcopy(stock), copy.deepcopy(adapted)
    return {STOCK: stock, FAST: backbones.accelerate(fast), STOCK_SFA: adapted, SFA: backbones.accelerate(both)}


def adapter_work(adapted: nn.Module, images: torch.Tensor) -> int:
    """Floating-point operations of the adapters' products in a forward pass."""
    total = 0

    def count(tail: nn.Module, inputs: tuple) -> None:
        nonlocal total
        total += 4 * inputs[1].numel() * tail.adapter.down.weight.shape[0]

    handles = [m.register_forward_pre_hook(count) for m in adapted.modules() if isinstance(m, AdapterTail)]
    adapted(images)
    for handle in handles:
        handle.remove()
    return total


def products(dtype: torch.dtype) -> dict[str, tuple[int, Callable[[], object]]]:
    """What the highest rate of products is measured on, with its floating-point operations."""
    x, w, other = (torch.randn(SIDE, SIDE).to(dtype) for _ in range(3))
    return {
        "torch's product": (2 * SIDE**3, lambda: x @ w),
        "our products": (4 * SIDE**3, lambda: torch.ops.sfa.fused_adapter(x, w, None, other, None)),
    }


def ratio(seconds: dict[str, list[float]], ours: str, other: str) -> str:
    return f"{statistics.median(a / b for a, b in zip(seconds[ours], seconds[other], strict=True)):.3f}"


@torch.no_grad()
def row(size: int, batch: int, dtype: str, turns: int, clock: Callable[[], float]) -> list[str]:
    """One line of the table."""
    models = candidates(size, DTYPES[dtype])
    images = torch.randn(batch, 3, size, size).to(DTYPES[dtype])
    maps = {name: models[name](images) for name in (STOCK, FAST)}
    apart = max(
        float((a.double() - b.double()).norm() / b.double().norm())
        for a, b in zip(maps[FAST], maps[STOCK], strict=True)
    )
    known = products(DTYPES[dtype])
    calls = {n: lambda m=m: m(images) for n, m in models.items()} | {n: call for n, (_, call) in known.items()}
    seconds = in_turns(calls, turns, clock)
    times = [milliseconds(seconds[name]) for name in models]
    ratios = [ratio(seconds, FAST, STOCK), ratio(seconds, SFA, STOCK), ratio(seconds, SFA, FAST)]
    rate = max(work / min(seconds[name]) for name, (work, _) in known.items())
    least = 1 + adapter_work(models[STOCK_SFA], images) / rate / statistics.median(seconds[FAST])
    return [f"{size}", f"{batch}", dtype, *times, *ratios, f"{least:.3f} ({rate / 1e9:.0f})", f"{apart:.1e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512], help="sides of the images in pixels")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4], help="images at once")
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=list(DTYPES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=9, help="how often each candidate is timed")
    parser.add_argument("--resume", action="store_true", help="keep the lines that the table of this command has")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    flags = {"sizes": args.sizes, "batch": args.batch, "dtype": args.dtype}
    given = " ".join(f"--{name} {' '.join(map(str, values))}" for name, values in flags.items())
    command = f"python -m benchmarks.accelerate_table {given} --threads {args.threads} --turns {args.turns}"
    header = ["pixels", "batch", "dtype", *(f"{n} ms" for n in (STOCK, FAST, STOCK_SFA, SFA))]
    header += [f"{FAST} / timm", f"{SFA} / timm", f"{SFA} / {FAST}", "least", "distance"]
    path = result_path("accelerate" if args.threads == 1 else f"accelerate-{args.threads}-threads")
    cases = (
        ([f"{size}", f"{batch}", dtype], partial(row, size, batch, dtype, args.turns, clock))
        for dtype, size, batch in itertools.product(args.dtype, args.sizes, args.batch)
    )

    def text(rows: list[list[str]]) -> str:
        return TEXT.format(
            cpu=cpu_name(),
            setting=setting(),
            clock="processor time" if args.threads == 1 else "wall-clock time",
            turns=args.turns,
            sfa=SFA,
            side=SIDE,
            command=command,
            table=table(header, rows),
        )

    fill(path, header, command, cases, text, args.resume)


if __name__ == "__main__":
    main()
