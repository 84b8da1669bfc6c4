"""`sfa plan` against what 1, 2 and 4 processes really need: python -m benchmarks.scaling

Every process adapts the same backbone with a tiny head and trains; the bytes of all tensors that torch's CPU allocator
holds are followed, from before the model was built. Resident memory would say the same of a large model; of a small one
it tells more of the allocator than of the tensors.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
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
CASES = {
    1: [("sfa-s", "ddp")],
    2: [("sfa-s", "ddp"), ("full", "ddp"), ("sfa-s", "fsdp2"), ("full", "fsdp2")],
    4: [("sfa-s", "ddp"), ("sfa-s", "fsdp2"), ("full", "fsdp2")],
}
CLASSES = 4


def measure(rank: int, size: int, store: str, cases: Sequence[tuple[str, str]]) -> list[dict[str, int]]:
    """Most bytes of tensors on this rank, for each method and layout: in a step of the last round, and in one after."""
    torch.set_num_threads(1)
    _count_in_every_thread()
    if size > 1:
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    found = [_measure(method, layout == "fsdp2") for method, layout in cases]
    if size > 1:
        distributed.destroy_process_group()
    return found


def _count_in_every_thread() -> None:
    """Makes torch's CPU allocator count what any thread frees. The profiler alone sees its own thread, and whatever a
    thread of gloo happens to free last would seem to be held for ever."""
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    ctypes.c_bool.in_dll(library, "FLAGS_caffe2_report_cpu_memory_usage").value = True


def _measure(method: str, shard: bool) -> dict[str, int]:
    gc.collect()  # modules and what shards them hold each other
    with tempfile.TemporaryDirectory() as folder:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            _train(method, shard)
        recorded.export_chrome_trace(f"{folder}/trace.json")
        events = json.loads(Path(folder, "trace.json").read_text())["traceEvents"]
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
    """Most bytes held while the range `name` ran, beyond those that were held when the recording began."""
    (span,) = (e for e in events if e.get("name") == name and e.get("cat") == "user_annotation")
    begin, end = span["ts"], span["ts"] + span["dur"]
    memory = sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"])
    before = memory[0]["args"]["Total Allocated"] - memory[0]["args"]["Bytes"]
    return max(e["args"]["Total Allocated"] for e in memory if begin <= e["ts"] <= end) - before


def run(size: int, cases: Sequence[tuple[str, str]]) -> list[list[dict[str, int]]]:
    """What `measure` finds on each of `size` ranks."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(size, mp_context=context) as pool:
        store = f"file://{folder}/store"
        found = [pool.submit(measure, r, size, store, cases) for r in range(size)]
        return [f.result(1200) for f in found]


def compare(size: int, cases: Sequence[tuple[str, str]]) -> Iterator[tuple[str, str, str, int, int]]:
    """Method, layout, stretch of the training, planned bytes of a rank, and those of the rank that took most."""
    for (method, layout), found in zip(cases, zip(*run(size, cases), strict=True), strict=True):
        (planned,) = plan(BACKBONE, [size], method, BATCH, CROP, METHODS[method], [layout])
        for stretch in ("searching", "after") if "rounds" in METHODS[method] else ("after",):
            yield method, layout, stretch, _planned(planned, stretch), max(f[stretch] for f in found)


def _planned(planned: Plan, stretch: str) -> int:
    # Here the machine's memory is the device's.
    return planned.host + (planned.memory_searching if stretch == "searching" else planned.memory_after)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = []
    for size, cases in CASES.items():
        for method, layout, stretch, planned, found in compare(size, cases):
            row = [method, layout, str(size), stretch, f"{planned / 1e6:.2f}", f"{found / 1e6:.2f}"]
            rows.append([*row, f"{100 * (planned / found - 1):+.1f} %"])
            print(*rows[-1], flush=True)
    header = ["method", "layout", "ranks", "stretch", "planned, MB", "measured, MB", "difference"]
    text = f"# The plan's memory against measured peaks\n\n{__doc__.splitlines()[0]}\n\n{table(header, rows)}\n\n"
    about = f"{BACKBONE}, {BATCH} images of {CROP} pixels a rank; the rank that took most.\n"
    (RESULTS / "scaling.md").write_text(f"{text}{about}{setting()}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
