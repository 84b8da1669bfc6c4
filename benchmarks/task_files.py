"""Measures task files and the bank, and writes benchmarks/results/task-files.md.

    python -m benchmarks.task_files [--turns 9] [--threads 2]

SwinV2-Base with 10 % of its 83.8 M selectable weights selected at random (the hardest case for the code of positions)
and, for memory and files, adapters of the paper's size. Weights are random: nothing here depends on their values.
"""

from __future__ import annotations

import argparse
import copy
import gc
import lzma
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

import sfa_ext
from sfa_ext import backbones, deltas
from sfa_ext.deltas.fitted import exchange, fit
from sfa_ext.deltas.positions import decode, encode, entropy_bits
from sfa_ext.files import write_text

from .timing import RESULTS, in_turns, milliseconds, peak_bytes, setting, table

Clock = Callable[[], float]
NAME = "swinv2_base_window8_256"
SHARE = 0.1
SFA_S = 0.5 * 0.048 * 87.9 / 83.8  # of the selectable weights: half of the paper's budget for SFA-S


def template(backbone: nn.Module, settings: sfa_ext.SFA) -> deltas.Task:
    """A task of SFA before its training."""
    adaptation = sfa_ext.adapt(backbone, settings, seed=0)
    task = deltas.collect(adaptation)
    task.tensors = {n: t.detach().clone() for n, t in task.tensors.items()}
    adaptation.detach()
    return task


def filled(task: deltas.Task, share: float, seed: int) -> deltas.Task:
    """The task with every selectable weight selected with probability `share`, and random values."""
    draw, chosen = np.random.default_rng(seed), {}
    for name, each in task.selected.items():
        gaps = draw.geometric(share, int(each.size * share * 1.2) + 100)
        index = torch.from_numpy(np.cumsum(gaps) - 1)
        index = index[index < each.size]
        values = torch.from_numpy(draw.standard_normal(len(index), np.float32))
        chosen[name] = deltas.Selected(index, values, each.size)
    return deltas.Task(task.meta, chosen, task.tensors)


def size_rows(task: deltas.Task) -> list[list[str]]:
    """Bytes of positions and values against the bound, by dtype."""
    bare = len(deltas.to_bytes(deltas.Task(task.meta, {n: _none(s) for n, s in task.selected.items()}, task.tensors)))
    entropy = sum(entropy_bits(s.size, len(s.index)) for s in task.selected.values()) / 8
    rows = []
    for name, dtype in deltas.DTYPES.items():
        cast = deltas.Task(task.meta, {n: _cast(s, dtype) for n, s in task.selected.items()}, task.tensors)
        cost = len(deltas.to_bytes(cast)) - bare
        bound = entropy + dtype.itemsize * sum(len(s.index) for s in task.selected.values())
        rows.append([name, _megabytes(cost), _megabytes(bound), f"{cost / bound:.4f}"])
    return rows


def _none(chosen: deltas.Selected) -> deltas.Selected:
    return deltas.Selected(chosen.index[:0], chosen.values[:0], chosen.size)


def _cast(chosen: deltas.Selected, dtype: torch.dtype) -> deltas.Selected:
    return deltas.Selected(chosen.index, chosen.values.to(dtype), chosen.size)


def coding_rows(clock: Clock) -> list[list[str]]:
    """Codes of random positions of one weight of 1 M entries: bits a position over the entropy, and decoding time."""
    rows, size = [], 1 << 20
    for share in (0.01, 0.1, 0.3):
        index = np.flatnonzero(np.random.default_rng(0).random(size) < share)
        entropy = entropy_bits(size, len(index))
        coding, stream = encode(index, size)
        gaps = _gap_bytes(index)
        mask = np.packbits(np.isin(np.arange(size), index)).tobytes()
        candidates: dict[str, tuple[int, Callable[[], object]]] = {
            "Golomb-Rice (ours)": (len(stream), lambda c=coding, s=stream: decode(c, s)),
            "zlib 9 of gap bytes": _squeezed(zlib.compress(gaps, 9), zlib.decompress),
            "lzma of gap bytes": _squeezed(lzma.compress(gaps), lzma.decompress),
            "lzma of the bit mask": _squeezed(lzma.compress(mask), lzma.decompress),
        }
        seconds = in_turns({n: call for n, (_, call) in candidates.items()}, 5, clock)
        for name, (length, _) in candidates.items():
            rate = f"{1e9 * statistics.median(seconds[name]) / len(index):.1f}"
            rows.append([f"{100 * share:g} %", name, f"{8 * length / entropy:.3f}", rate])
    return rows


def _gap_bytes(index: np.ndarray) -> bytes:
    """Each gap as so many bytes of 255 as it holds and the rest in one more."""
    gaps = np.diff(index, prepend=-1) - 1
    ends = np.cumsum(gaps // 255 + 1) - 1
    coded = np.full(ends[-1] + 1, 255, np.uint8)
    coded[ends] = gaps % 255
    return coded.tobytes()


def _squeezed(data: bytes, undo: Callable[[bytes], bytes]) -> tuple[int, Callable[[], object]]:
    return len(data), lambda: np.cumsum(np.frombuffer(undo(data), np.uint8), dtype=np.int64)


def lora_bytes(backbone: nn.Module, rank: int) -> int:
    """Size of the file that peft writes for LoRA of this rank on the same four weights of every block."""
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

    targets = ["qkv", "proj", "fc1", "fc2"]
    blocks = [n for n, m in backbone.named_modules() if n.split(".")[-1] in targets and isinstance(m, nn.Linear)]
    model = get_peft_model(copy.deepcopy(backbone), LoraConfig(r=rank, target_modules=blocks))
    return len(save({n: t.contiguous() for n, t in get_peft_model_state_dict(model).items()}))


def swap_rows(backbone: nn.Module, tasks: list[deltas.Task], turns: int, clock: Clock) -> list[list[str]]:
    """Milliseconds of every kind of switch."""
    fitted = [fit(task, backbone) for task in tasks]
    state: list = [None]

    def go(number: int | None) -> Callable[[], None]:
        def switch() -> None:
            coming = None if number is None else fitted[number]
            exchange(state[0], coming)
            state[0] = coming

        return switch

    seconds = in_turns({"bare to A": go(0), "A to B": go(1), "B to A": go(0), "A to bare": go(None)}, turns, clock)
    return [[name, milliseconds(took), f"{max(took) * 1e3:.1f}"] for name, took in seconds.items()]


def load_rows(backbone: nn.Module, path: Path, turns: int, clock: Clock) -> list[list[str]]:
    task = deltas.read(path)
    seconds = in_turns(
        {"read and check the file": lambda: deltas.read(path), "fit": lambda: fit(task, backbone)}, turns
    )
    return [[name, milliseconds(took), f"{max(took) * 1e3:.1f}"] for name, took in seconds.items()]


def memory_rows(backbone: nn.Module, paths: list[Path]) -> list[list[str]]:
    """Resident bytes that 1, 4 and 16 tasks take in a bank and as models of their own."""
    rows = []
    for count in (1, 4, 16):
        kept: list = []

        def bank(count: int = count, kept: list = kept) -> None:
            kept.append(deltas.TaskBank(copy.deepcopy(backbone)))
            for path in paths[:count]:
                kept[0].add(path)

        def models(count: int = count, kept: list = kept) -> None:
            kept.extend(copy.deepcopy(backbone) for _ in range(count))

        used = []
        for build in (bank, models):
            gc.collect()
            peak = peak_bytes(build)
            used.append("not measured" if peak is None else f"{peak / 1e6:,.0f}")
            kept.clear()
        rows.append([str(count), *used])
    return rows


def _megabytes(number: float) -> str:
    return f"{number / 1e6:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    backbone = backbones.build(NAME, size=256).eval()
    inner = template(backbone, sfa_ext.SFA(rho=0.0, budget=0.05))
    dense = [filled(inner, SHARE, seed) for seed in range(2)]
    command = f"python -m benchmarks.task_files --turns {options.turns} --threads {options.threads}"
    text = [
        "# Task files and the bank",
        "",
        f"{setting()} {NAME}, {sum(p.numel() for p in backbone.parameters()) / 1e6:.1f} M weights, "
        f"{100 * SHARE:g} % of the selectable ones selected at random. Milliseconds of "
        f"{'processor time' if options.threads == 1 else 'wall-clock time'}: the median of {options.turns} turns, the "
        f"fastest in brackets. Written by `{command}`.",
        "",
        "## A switch (milliseconds)",
        "",
        table(["switch", "median (fastest)", "slowest"], swap_rows(backbone, dense, options.turns, clock)),
        "",
    ]
    print("\n".join(text), flush=True)
    text += ["## Positions and values (MB) against the entropy of the mask plus the values", ""]
    text += [table(["dtype", "file", "bound", "file / bound"], size_rows(dense[0])), ""]
    del dense
    text += ["## Codes of positions, 1 M entries", ""]
    text += [table(["selected", "code", "bits / entropy", "ns to decode one"], coding_rows(clock)), ""]
    print("\n".join(text), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        whole = sum(t.numel() * t.element_size() for t in backbone.state_dict().values())
        preset = sfa_ext.methods.resolve("sfa-s", backbone)
        small = template(backbone, preset)
        paths = [Path(folder) / f"{seed}.safetensors" for seed in range(16)]
        for seed, path in enumerate(paths):
            deltas.write(path, filled(small, SFA_S, seed))
        half = len(deltas.to_bytes(deltas.read(paths[0]).to(torch.bfloat16)))
        files = {"SFA-S, float32": paths[0].stat().st_size, "SFA-S, bfloat16": half}
        files |= {f"peft LoRA, rank {r}": lora_bytes(backbone, r) for r in (8, 32)}
        files |= {"full fine-tuning": whole}
        text += ["## Bytes per task, without a head", ""]
        rows = [[name, _megabytes(size), f"{whole / size:.1f}"] for name, size in files.items()]
        text += [table(["file", "MB", "times smaller than the backbone"], rows), ""]
        text += ["## Loading one task of SFA-S (milliseconds)", ""]
        text += [table(["step", "median (fastest)", "slowest"], load_rows(backbone, paths[0], 3, clock)), ""]
        text += ["## Memory (MB) that tasks of SFA-S take, backbone included, at the peak of loading", ""]
        text += [table(["tasks", "one bank", "as models of their own"], memory_rows(backbone, paths)), ""]
    write_text(RESULTS / "task-files.md", "\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
