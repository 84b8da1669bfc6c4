"""Times the selection operators against what one would write in their place, and writes the table.

    python -m benchmarks.selection_table [--turns 15]

The table goes to benchmarks/results/<processor>-<instruction set>-selection.md.
"""

from __future__ import annotations

import argparse
import gc
import statistics

import torch

from sfa_ext.files import write_text

from .selection_cases import CASES, swinv2_base_shapes
from .timing import cpu_name, in_turns, milliseconds, peak_bytes, ratio, result_path, setting, table

TEXT = """# The selection operators on {cpu}

{setting} The {tensors} weights that SFA selects from in
SwinV2-Base, {millions:.1f} M numbers; selections are uniformly random, or as found: clustered in matrices, rows and
columns as much as those of real runs; `sparse_adamw_` gets them in 32 bits. Milliseconds are the median of {turns}
turns with the fastest in brackets; candidates take turns. "Ratio" is how many times as long as ours a candidate took:
the median over turns, in brackets the middle half. "MiB" is memory beyond what was there before the call, results
included. "GB" is what a step moves to and from memory, counted in whole cache lines: it bounds how much faster a
sparse step can be.
Reading two such lists of tensors and writing one (`a += b`) moved {bandwidth:.0f} GB/s here.
Written by `python -m benchmarks.selection_table`.

{table}
"""


def bandwidth(turns: int) -> float:
    """GB/s of a += b over the tensors of the table."""
    a, b = ([torch.zeros(shape) for shape in swinv2_base_shapes()] for _ in range(2))
    seconds = in_turns({"add": lambda: torch._foreach_add_(a, b)}, turns)["add"]
    return 3 * sum(t.nbytes for t in a) / statistics.median(seconds) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=15, help="how often each candidate is timed")
    turns = parser.parse_args().turns
    torch.manual_seed(0)
    rate, rows = bandwidth(turns), []
    for case in CASES:
        candidates = case.build()
        seconds = in_turns(candidates, turns)
        traffic = case.traffic(swinv2_base_shapes()) if case.traffic else {}
        for name, call in candidates.items():
            peak = peak_bytes(call)
            times = ratio(seconds[name], seconds["ours"]) if name != "ours" else ""
            memory = "" if peak is None else f"{peak / 2**20:.0f}"
            moved = f"{traffic[name] / 1e9:.2f}" if name in traffic else ""
            first = [f"`{case.op}`", case.setting] if name == "ours" else ["", ""]
            rows.append([*first, name, milliseconds(seconds[name]), times, memory, moved])
            print(*rows[-1], sep="  ", flush=True)
        del candidates, call
        gc.collect()
    report = table(["operator", "setting", "candidate", "ms", "ratio", "MiB", "GB"], rows)
    sizes = [a * b for a, b in swinv2_base_shapes()]
    text = TEXT.format(
        cpu=cpu_name(),
        setting=setting(),
        tensors=len(sizes),
        millions=sum(sizes) / 1e6,
        turns=turns,
        bandwidth=rate,
        table=report,
    )
    path = result_path("selection")
    write_text(path, text)
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
