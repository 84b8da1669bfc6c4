"""How benchmarks time and report: candidates in turns, medians, and one table per command."""

from __future__ import annotations

import ctypes
import gc
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def in_turns(
    candidates: Mapping[str, Callable[[], object]], turns: int = 15, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds by `clock` that each call took, by name. All are called once in every turn, so that what disturbs the
    machine disturbs them alike; the first turn warms up and is not reported."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    gc.collect()
    gc.disable()
    try:
        for turn in range(turns + 1):
            for name, call in candidates.items():
                start = clock()
                call()
                if turn:
                    seconds[name].append(clock() - start)
    finally:
        gc.enable()
    return seconds


def milliseconds(seconds: list[float]) -> str:
    """The median and, in brackets, the lowest."""
    return f"{statistics.median(seconds) * 1e3:.1f} ({min(seconds) * 1e3:.1f})"


def ratio(baseline: list[float], ours: list[float]) -> str:
    """How many times as long the baseline took as ours: the median over turns, and the middle half of the turns."""
    ratios = [b / o for b, o in zip(baseline, ours, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{middle:.1f} ({low:.1f} to {high:.1f})"


def peak_bytes(call: Callable[[], object]) -> int | None:
    """Memory that the process needs at most during the call beyond what it had before; None where Linux hides it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)  # hands back what earlier calls freed, or this one would use it unseen
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the highest use so far
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except OSError:
        return None


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    return int(found[1]) * 1024 if found else 0


def cpu_name() -> str:
    """The processor as it names itself and, since generations share a name, its family: "AMD EPYC, family 25"."""
    try:
        told = dict(re.findall(r"^([^\t:]+?)\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.M))
        return f"{told['model name'].strip()}, family {told['cpu family']}"
    except (OSError, KeyError):
        return platform.machine()


def slug(name: str) -> str:
    """A name fit for a file: "AMD EPYC, family 25" becomes "amd-epyc-family-25"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def result_path(what: str) -> Path:
    """Where the table of `what` on this processor goes; those of one family differ in their instruction sets."""
    isa = torch.ops.sfa.cpu_isa().split(",")[0]
    return RESULTS / f"{slug(cpu_name())}-{isa}-{what}.md"


def setting() -> str:
    """The line under a table that says where its numbers come from."""
    isa = torch.ops.sfa.cpu_isa()
    return f"{cpu_name()}, {torch.get_num_threads()} threads, kernels for {isa}, torch {torch.__version__}."


def rows_of(path: Path, header: list[str], line: str) -> list[list[str]]:
    """Rows of the table with this header in a file that `table` wrote; none where it is absent or lacks `line`."""
    lines = path.read_text().splitlines() if path.is_file() else []
    title = table(header, []).splitlines()[0]
    if title not in lines or not any(line in text for text in lines):
        return []
    return [[cell.strip() for cell in row[1:-1].split("|")] for row in lines[lines.index(title) + 2 :] if row]


def fill(
    path: Path,
    header: list[str],
    command: str,
    cases: Iterable[tuple[list[str], Callable[[], list[str]]]],
    text: Callable[[list[list[str]]], str],
    resume: bool,
) -> None:
    """Measures line by line and writes the file after each; with `resume` lines that `command` wrote there are kept.

    cases: the first cells of a line, which tell it from others, and what measures the whole line.
    """
    from sfa_ext.files import write_text  # needs the built operators, which gpu_check starts without

    rows = rows_of(path, header, f"`{command}`") if resume else []
    for key, measure in cases:
        if key in [row[: len(key)] for row in rows]:
            continue
        rows.append(measure())
        print(*rows[-1], sep="  ", flush=True)
        write_text(path, text(rows))
        gc.collect()
    print(f"wrote {path}")


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
