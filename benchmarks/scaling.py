"""`sfa plan` against what 1, 2 and 4 processes really need: python -m benchmarks.scaling

Every process adapts the same backbone with a tiny head and trains; the bytes of all tensors that torch's CPU allocator
holds are followed through the allocations that torch's profiler records, from before the model was built. Resident
memory would say the same of a large model; of a small one it tells more of the allocator than of the tensors.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch import distributed, nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.timing import RESULTS, setting, table
from sfa_ext import ranks
from sfa_ext.training.plan import Plan, plan

BACKBONE, CROP, BATCH, INTERVAL = "swinv2_pico", 96, 4, 2
METHODS = {"sfa-s": {"rounds": 2, "interval": INTERVAL}, "full": {}}
CASES = [("sfa-s", layout, size) for layout in ("ddp", "fsdp2") for size in (1, 2, 4) if size > 1 or layout == "ddp"]
CASES += [("full", "ddp", 2), ("full", "fsdp2", 2)]
CLASSES = 4


def measure(rank: int, size: int, store: str, method: str, shard: bool) -> dict[str, int]:
    """Most bytes of tensors on this rank during a step of the search's last round, and during one after it."""
    torch.set_num_threads(1)
    if size > 1:
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            _train(method, shard)
        recorded.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
    if size > 1:
        distributed.destroy_process_group()
    return {name: _peak(events, name) for name in ("searching", "after")}


def _train(method: str, shard: bool) -> None:
    from sfa_ext import adapt, backbones
    from sfa_ext.methods import resolve
    from sfa_ext.training.model import Classes, Model
    from sfa_ext.training.sharding import clip_gradients_
    from sfa_ext.training.sharding import shard as share

    backbone = backbones.build(BACKBONE, size=CROP, dynamic=False)
    for name, parameter in backbone.named_parameters():
        if "norm" in name:  # timm starts them at zero: no block would have a gradient, nor the search a choice
            nn.init.normal_(parameter, mean=0.5, std=0.2)
    adaptation = adapt(backbone, resolve(method, backbone, METHODS[method]), seed=0)
    head = nn.Conv2d(backbone.feature_info.channels()[-1], CLASSES, 1)
    model = Model(backbone, adaptation, head, Classes((), (), []), CROP, "none", False)
    if shard:
        share(model)
    optimizer = adaptation.optimizer(1e-3, head=head.parameters(), steps=3 * INTERVAL)
    stretches = {2 * INTERVAL - 1: "searching", 2 * INTERVAL + 1: "after"}  # steps that no round follows
    for step in range(1, 2 * INTERVAL + 2):
        with record_function(stretches.get(step, "others")):
            optimizer.zero_grad()
            maps = backbone(torch.randn(BATCH, 3, CROP, CROP))
            loss = head(maps[-1]).logsumexp(1).mean() + sum(m.mean() for m in maps)
            del maps
            loss.backward()
            del loss
            own = list(head.parameters())
            if shard:
                ranks.mean_gradients(own)
                clip_gradients_(adaptation.parameters(), own, 1.0)
            else:
                ranks.mean_gradients([*adaptation.parameters(), *own])
                nn.utils.clip_grad_norm_([*adaptation.parameters(), *own], 1.0)
            optimizer.step()


def _peak(events: list[dict], name: str) -> int:
    """Most bytes held while the range `name` ran, of all that was taken since the recording began."""
    (span,) = (e for e in events if e.get("name") == name and e.get("cat") == "user_annotation")
    begin, end = span["ts"], span["ts"] + span["dur"]
    held, most = 0, 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        if begin <= event["ts"] <= end:
            most = max(most, held)
    return most


def run(size: int, method: str, shard: bool) -> list[dict[str, int]]:
    """What `measure` finds on each of `size` ranks."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(size, mp_context=context) as pool:
        store = f"file://{folder}/store"
        found = [pool.submit(measure, r, size, store, method, shard) for r in range(size)]
        return [f.result(600) for f in found]


def compare(method: str, layout: str, size: int) -> list[tuple[str, int, int]]:
    """For each stretch of the training: its name, the planned bytes of a rank, and those of the rank that took most."""
    (planned,) = plan(BACKBONE, [size], method, BATCH, CROP, METHODS[method], [layout])
    found = run(size, method, layout == "fsdp2")
    stretches = ("searching", "after") if "rounds" in METHODS[method] else ("after",)
    return [(s, _planned(planned, s), max(f[s] for f in found)) for s in stretches]


def _planned(planned: Plan, stretch: str) -> int:
    return planned.memory_searching if stretch == "searching" else planned.memory_after


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = []
    for method, layout, size in CASES:
        for stretch, planned, found in compare(method, layout, size):
            row = [method, layout, str(size), stretch, f"{planned / 1e6:.2f}", f"{found / 1e6:.2f}"]
            rows.append([*row, f"{100 * (planned / found - 1):+.1f} %"])
            print(*rows[-1], flush=True)
    header = ["method", "layout", "ranks", "stretch", "planned, MB", "measured, MB", "difference"]
    text = f"# The plan's memory against measured peaks\n\n{__doc__.splitlines()[0]}\n\n{table(header, rows)}\n\n"
    about = f"{BACKBONE}, {BATCH} images of {CROP} pixels a rank; the rank that took most.\n"
    (RESULTS / "scaling.md").write_text(f"{text}{about}{setting()}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
