"""Measures the most memory that a training step needs, each way in a process of its own, and writes the table.

    python -m benchmarks.training_memory [--size 256] [--batch 1] [--steps 2]

SwinV2-Base; the loss is the mean square of its four maps, so what is measured is the backbone's share. The table goes
to benchmarks/results/training-memory.md.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys

import torch

import sfa_ext
from sfa_ext import backbones
from sfa_ext.files import write_text
from sfa_ext.methods import resolve
from sfa_ext.training.memory import peak, restart_peak

from .timing import RESULTS, setting, table

NAME = "swinv2_base_window8_256"
CPU = torch.device("cpu")
FULL = "full fine-tuning, float32 weights, bfloat16 autocast"
SFA = "SFA-S, bfloat16 weights"
# way: method, dtype of the weights, autocast, accelerated
WAYS = {
    "full fine-tuning, float32": ("full", torch.float32, False, False),
    FULL: ("full", torch.float32, True, False),
    f"{SFA}, not accelerated": ("sfa-s", torch.bfloat16, False, False),
    SFA: ("sfa-s", torch.bfloat16, False, True),
}
TEXT = """# Memory of a training step

{setting} SwinV2-Base, images of {size} x {size} pixels, batch {batch}, AdamW (for SFA its sparse one). Peak: the
largest resident set of a process that does nothing else, Python and torch (the first row) included. "search" is a step
of the search for weights, which scores every candidate; "after" one after the last round. Ratios are to the peak of
"{full}", in brackets of what both need beyond Python and torch. Written by `{command}`.

{table}
"""


def step(way: str, size: int, batch: int, steps: int) -> dict[str, float]:
    """Peaks in bytes, of this process."""
    method, dtype, autocast, fast = WAYS[way]
    empty = peak(CPU)
    torch.manual_seed(0)
    with torch.device("meta"):
        backbone = backbones.build(NAME, size=size, dynamic=False)
    backbone = _filled(backbone, dtype)
    settings = resolve(method, backbone, {"rounds": 1, "interval": steps // 2} if method != "full" else {})
    adaptation = sfa_ext.adapt(backbone, settings, seed=0)
    if fast:
        backbones.accelerate(backbone)
    optimizer = adaptation.optimizer(1e-4, steps=steps)
    images, peaks = torch.randn(batch, 3, size, size, dtype=dtype), []
    restart_peak(CPU)
    for number in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = sum(m.float().square().mean() for m in backbone(images))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if number + 1 == steps // 2:
            peaks.append(peak(CPU))
            restart_peak(CPU)
    return {"empty": empty, "search": peaks[0], "after": peak(CPU)}


def _filled(backbone: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """The model with storage and small random weights: timm's own start in float32 would be the peak."""
    backbone = backbone.to(dtype).to_empty(device="cpu")
    for module in backbone.modules():
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            parameter.normal_(0.5 if "norm" in name else 0.0, 0.02)
    return backbone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2, help="half of them search")
    parser.add_argument("--way", help="measure this way alone, in this process, and print it as JSON")
    args = parser.parse_args()
    given = f"--size {args.size} --batch {args.batch} --steps {args.steps}"
    if args.way:
        return print(json.dumps(step(args.way, args.size, args.batch, args.steps)))
    found = {}
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.training_memory", *given.split(), "--way", way]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
        print(way, found[way], flush=True)
    path = RESULTS / "training-memory.md"
    write_text(path, page(found, args.size, args.batch, f"python -m benchmarks.training_memory {given}"))
    print(f"wrote {path}")


def page(found: dict[str, dict[str, float]], size: int, batch: int, command: str) -> str:
    """The table of what `step` found, by way."""
    whole = max(found[FULL]["search"], found[FULL]["after"])
    empty = found[FULL]["empty"]
    rows = [["Python and torch alone", *[f"{empty / 1e6:.0f}"] * 2, "", ""]]
    for way, f in found.items():
        peaks = (f["search"], f["after"])
        ratios = [f"{p / whole:.2f} ({(p - empty) / (whole - empty):.2f})" for p in peaks]
        rows.append([way, *(f"{p / 1e6:.0f}" for p in peaks), *ratios])
    header = ["way", "peak, search MB", "peak, after MB", "ratio, search", "ratio, after"]
    shown = table(header, rows)
    return TEXT.format(setting=setting(), size=size, batch=batch, full=FULL, command=command, table=shown)


if __name__ == "__main__":
    main()
