"""Times the adapter operators against eager and torch.compile, and writes the table.

    python -m benchmarks.adapter_table [--turns 15] [--threads 2] [--all] [--batch 1 4] [--dtype float32 bfloat16]
        [--resume]

The table goes to benchmarks/results/<processor>-<instruction set>-adapter.md. It is written after every line;
`--resume` goes on from there and measures only lines that are missing. torch.compile, which takes long to start, is
timed at a few shapes. With one thread the clock counts that thread's processor time, which other work on the machine
disturbs less.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

from .adapter_cases import CANDIDATES, DTYPES, FEW, FEW_HIDDEN, PHASES, Shape, calls, shapes
from .timing import cpu_name, fill, result_path, setting, table

TEXT = """# The adapter operators on {cpu}

{setting} Rows are the tokens of images of 512 x 512 pixels at the stages of SwinV2-Base and SwinV2-Large. Milliseconds
of {clock} are the median of up to {turns} turns, fewer where a turn takes long; the candidates take turns. A ratio is
how many times as long as ours a candidate took: the median over turns. Below 1 we are slower. Written by `{command}`.

{summary}

{table}
"""


def main() -> None:
    args = _arguments()
    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    clock = time.thread_time if args.threads == 1 else time.perf_counter
    columns = ["shape", "phase", *(f"{n} ms" for n in CANDIDATES), *(f"{n} / ours" for n in CANDIDATES[1:])]
    command, path = "python -m benchmarks.adapter_table" + args.given, result_path("adapter")
    cases = (
        ([str(shape), phase], partial(_row, shape, phase, args.turns, clock))
        for shape, phase in itertools.product(shapes(args.all, tuple(args.batch), tuple(args.dtype)), PHASES)
    )

    def text(rows: list[list[str]]) -> str:
        return TEXT.format(
            cpu=cpu_name(),
            setting=setting(),
            clock="processor time" if args.threads == 1 else "wall-clock time",
            turns=args.turns,
            command=command,
            summary=_summary(rows),
            table=table(columns, rows),
        )

    fill(path, columns, command, cases, text, args.resume)


def _row(shape: Shape, phase: str, turns: int, clock: Callable[[], float]) -> list[str]:
    names = CANDIDATES if (shape.width, shape.rows) in FEW and shape.hidden in FEW_HIDDEN else CANDIDATES[:2]
    seconds = _seconds(calls(shape, phase, names), turns, clock)
    against = {name: _ratio(seconds[name], seconds["ours"]) for name in names[1:]}
    times = [f"{statistics.median(seconds[name]) * 1e3:.2f}" if name in names else "" for name in CANDIDATES]
    cells = [f"{against[name]:.2f}" if name in names else "" for name in CANDIDATES[1:]]
    return [str(shape), phase, *times, *cells]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=15, help="how often each candidate is timed")
    parser.add_argument("--all", action="store_true", help="every stage and width instead of a few")
    parser.add_argument("--batch", type=int, nargs="+", default=[1], help="images at once")
    parser.add_argument("--dtype", nargs="+", default=list(DTYPES), choices=list(DTYPES))
    parser.add_argument("--resume", action="store_true", help="keep the lines that the table of this command has")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    flags = [f"--turns {args.turns}"] + [f"--threads {args.threads}"] + ["--all"] * args.all
    flags += [f"--batch {' '.join(map(str, args.batch))}", f"--dtype {' '.join(args.dtype)}"]
    args.given = " " + " ".join(flags)
    return args


def _seconds(
    candidates: dict[str, Callable[[], object]], turns: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """As timing.in_turns, by any clock, and with fewer turns where they would take more than half a minute."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    started = None
    for turn in range(turns + 1):
        for name, call in candidates.items():
            start = clock()
            call()
            if turn:
                seconds[name].append(clock() - start)
        started = started or clock()  # the first turn warms up
        if turn >= 3 and clock() - started > 30:
            break
    return seconds


def _ratio(baseline: list[float], ours: list[float]) -> float:
    return statistics.median(b / o for b, o in zip(baseline, ours, strict=True))


def _summary(rows: list[list[str]]) -> str:
    ratios: dict[tuple[str, str, str], list[float]] = {}
    for shape, phase, *cells in rows:
        for name, cell in zip(CANDIDATES[1:], cells[len(CANDIDATES) :], strict=True):
            if cell:
                ratios.setdefault((shape.split()[0], phase, name), []).append(float(cell))
    lines = [
        [*key, f"{statistics.geometric_mean(values):.2f}", f"{min(values):.2f}", f"{max(values):.2f}"]
        for key, values in ratios.items()
    ]
    return table(["dtype", "phase", "against", "geometric mean", "lowest", "highest"], lines)


if __name__ == "__main__":
    main()
