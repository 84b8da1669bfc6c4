"""The measuring half of `make gpu-check`, in a process of its own: a crash of a kernel leaves what was found before.

    python -m benchmarks.gpu_bench STEM --device cuda --seconds 240 [--small]

Adds ceilings and rows to STEM.json, which benchmarks.gpu_check began, and stops by itself when its time is up.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from pathlib import Path

import torch

from sfa_ext.ops.backends import using

from .gpu_cases import Case, cases, serving
from .gpu_clock import Clock, Timing, ceilings
from .gpu_report import Report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stem", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--small", action="store_true", help="tiny shapes, to try the flow")
    args = parser.parse_args()
    until = time.monotonic() + args.seconds
    device = torch.device(args.device)
    torch.manual_seed(0)
    report, clock = Report.read(args.stem), Clock(device, repeats=3 if args.small else 30)
    report.data["ceilings"] = ceilings(clock, device, args.small)
    report.save()
    for case in cases(device, args.small):
        if time.monotonic() > until:
            report.data["skipped"].append(f"{case.section}: {case.label}")
            continue
        times = measured(case, clock, device, report)
        floor = case.floor_ms(report.data["ceilings"])
        ms, bound = floor if floor else (None, None)
        row = {"section": case.section, "label": case.label, "dtype": case.dtype, "floor_ms": ms, "bound": bound}
        report.data["rows"].append({**row, "times": times})
        report.save()
        print(case.section, case.label, {name: t and round(t["ms"], 4) for name, t in times.items()}, flush=True)
    report.data["finished"] = True
    report.save()


def measured(case: Case, clock: Clock, device: torch.device, report: Report) -> dict[str, dict | None]:
    """Timings by candidate, ours once for each backend; None for one that failed, whose error the report gets."""
    times: dict[str, dict | None] = {}
    try:
        with torch.device(device):
            calls = case.build()
    except Exception as error:  # noqa: BLE001  whatever failed, the other cases are worth having
        report.data["skipped"].append(f"{case.section}: {case.label}: {_line(error)}")
        return times
    for name, call in calls.items():
        for label in serving(device, case.ops) if name == "ours" else [name]:
            with using(label) if label in ("triton", "reference") else contextlib.nullcontext():
                try:
                    timing: Timing | None = clock.measure(call)
                except Exception as error:  # noqa: BLE001
                    report.data["skipped"].append(f"{case.section}: {case.label}: {label}: {_line(error)}")
                    timing = None
            times[label] = dataclasses.asdict(timing) if timing else None
    return times


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


if __name__ == "__main__":
    main()
