"""Builds from the checkout, runs every op test on the GPU by every backend, looks for stray accesses, and measures.

    python -m benchmarks.gpu_check [--seconds 540] [--out benchmarks/results]

Needs nothing but this Python with torch, and takes nothing from a network. It keeps to its time by itself: what does
not fit is left out and named. <device>.md and <device>.json are written after every step and figure, so a run that is
cut off leaves what it had. Exit status 1 if the build, a test or a stray access failed it, or if the time was up before
all of them were done. --dry-run does the same on the CPU with tiny shapes, to try the flow.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from .gpu_report import Report
from .timing import RESULTS, cpu_name, slug

ROOT = Path(__file__).resolve().parent.parent
LEFT_FOR_WRITING = 10  # seconds
# Each compiled kernel, in sizes that it serves itself and does not leave to torch: under the sanitizer time is short.
SANITIZED = (
    "cuda and not triton and not reference and ("
    "(strided and 37x56x24) or (every_plan and not 22000 and (float32 or bfloat16)) or (stable_sort and random) "
    "or (exchanges and 1000 and (uint8 or float32 or complex128)) or (agrees_with_float64 and squared) "
    "or (fresh_adamw and (float32 or bfloat16)))"
)


@dataclass(frozen=True)
class Step:
    """A command, and up to which share of the whole time it may run.

    unable: what it prints where this machine does not let it work.
    """

    name: str
    command: list[str]
    share: float
    variables: tuple[tuple[str, str], ...] = ()
    unable: str | None = None


def steps(dry_run: bool) -> list[Step]:
    """What is done before measuring."""
    pytest = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    if dry_run:
        two = "cpu and exchanges and uint8 and int64 and operator"
        chosen = ["-p", "no:xdist", "tests/ops/test_swap_values.py", "-k", two]
        return [Step("tests of the ops", [*pytest, *chosen], 0.8)]
    parallel = importlib.util.find_spec("xdist") is not None
    workers = ["-n", str(min(8, os.cpu_count() or 1))] if parallel else []
    # Images for many GPUs set this list, and a build for all of them takes longer than there is time.
    own_gpu = (("TORCH_CUDA_ARCH_LIST", ""),)
    # Memory straight from the driver: the caching allocator would hide a stray access behind its own blocks.
    alone = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
    sanitizer = ["compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9", "--target-processes", "all"]
    return [
        Step("build", [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], 0.4, variables=own_gpu),
        Step("tests of the ops", [*pytest, *workers, "tests/ops", "-k", "cuda"], 0.35),
        Step(
            "compute-sanitizer",
            [*sanitizer, *pytest, "-p", "no:xdist", "-x", "tests/ops", "-k", SANITIZED],
            0.15,
            variables=alone,
            unable="Device not supported",
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=540, help="time for everything (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, with tiny shapes")
    args = parser.parse_args()
    until = time.monotonic() + args.seconds - LEFT_FOR_WRITING
    if not args.dry_run and not torch.cuda.is_available():
        print("gpu-check: no GPU that torch can use; --dry-run tries the flow on the CPU", file=sys.stderr)
        return 2
    report = begin(args.out, args.dry_run)
    good = True
    for step in steps(args.dry_run):
        seconds = min(step.share * args.seconds, until - time.monotonic())
        good &= run(step, seconds, report)
    good &= measure(report, until, args.dry_run)
    return 0 if good else 1


def begin(out: Path, dry_run: bool) -> Report:
    name = f"{cpu_name()} (dry run)" if dry_run else torch.cuda.get_device_name()
    facts = {"device": name, "torch": torch.__version__, "CUDA of torch": str(torch.version.cuda)}
    if not dry_run:
        gpu = torch.cuda.get_device_properties(0)
        facts["compute capability"] = f"{gpu.major}.{gpu.minor}"
        facts["memory"] = f"{gpu.total_memory / 2**30:.0f} GiB"
        facts["multiprocessors"] = str(gpu.multi_processor_count)
    report = Report(out / slug(name), facts)
    report.save()
    return report


def run(step: Step, seconds: float, report: Report) -> bool:
    """Runs a step within its time; whether it is done, or could not be done for want of a program.

    One that was cut off has proved nothing, however well it went until then."""
    program = step.command[0]
    if shutil.which(program) is None:
        report.step(step.name, "skipped", 0, f"{program} is not on the PATH")
        return True
    if seconds < 5:
        report.step(step.name, "skipped", 0, "no time was left")
        return False
    start = time.monotonic()
    status, output = _run(step, seconds)
    if status != 0:
        print(output[-4000:], flush=True)
    if status and step.unable and step.unable in output:
        report.step(step.name, "skipped", time.monotonic() - start, f"{program} says: {step.unable}")
        return True
    report.step(step.name, _word(status), time.monotonic() - start, _summary(step, status, output))
    return status == 0


def _word(status: int | None) -> str:
    return {0: "ok", None: "cut off"}.get(status, f"failed ({status})")


def _run(step: Step, seconds: float) -> tuple[int | None, str]:
    """Exit status, None where the time was up, and what it printed. Its children end with it."""
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", "SFA_BACKEND": "", **dict(step.variables)}
    with subprocess.Popen(
        step.command,
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return None, process.communicate()[0]


def _summary(step: Step, status: int | None, output: str) -> str:
    if "pytest" in step.command:
        counts = [f"{output.count(f' {word}')} {word.lower()}" for word in ("PASSED", "FAILED", "ERROR", "SKIPPED")]
        failed = re.findall(r"(?:FAILED|ERROR) (tests/\S+)", output)
        names = f"; failed: {', '.join(dict.fromkeys(failed[:10]))}" if failed else ""
        return ", ".join(count for count in counts if not count.startswith("0 ")) + names
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if status == 0:  # the build says what it did about CUDA kernels
        lines = [line for line in lines if line.startswith("sfa_ext: ")]
    return lines[-1][:300].replace("|", "/") if lines else ""


def measure(report: Report, until: float, dry_run: bool) -> bool:
    """Lets benchmarks.gpu_bench add its figures, then notes how that ended."""
    stem = report.stem
    seconds = until - time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu_bench", str(stem), "--seconds", f"{seconds * 0.9 - 5:.0f}"]
    command += ["--device", "cpu", "--small"] if dry_run else ["--device", "cuda"]
    start = time.monotonic()
    status, output = _run(Step("measuring", command, 1), max(seconds, 1))
    report = Report.read(stem)
    rows, skipped = len(report.data["rows"]), len(report.data["skipped"])
    report.step("measuring", _word(status), time.monotonic() - start, f"{rows} cases, {skipped} left out")
    print(output[-6000:] if status == 0 else output[-3000:])
    print(f"wrote {stem.with_suffix('.md')} and {stem.with_suffix('.json')}")
    return status == 0


if __name__ == "__main__":
    sys.exit(main())
