"""What a task file holds and what it costs, and how two tasks differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sfa_ext.deltas import file
from sfa_ext.deltas.file import Selected, Task
from sfa_ext.deltas.positions import encode, entropy_bits
from sfa_ext.selection import Overlap, overlap

_BAR = 30


def account(path: str | Path) -> dict[str, Any]:
    """Facts about a task file as plain values; "bytes" sum up to the file. Raises as `file.read`."""
    data = Path(path).read_bytes() if Path(path).is_file() else b""
    task = file.from_bytes(data, str(path)) if data else file.read(path)
    positions, values = _selected_bytes(task)
    parts = {name: sum(_bytes(t) for t in task.part(name).values()) for name in ("method", "head", "buffers")}
    sizes = {"positions": positions, "values": values, **parts}
    bound = sum(entropy_bits(s.size, len(s.index)) / 8 + _bytes(s.values) for s in task.selected.values())
    return {
        "file": str(path),
        "fingerprint": task.meta["fingerprint"],
        "method": task.meta["method"],
        "head": task.meta["head"],
        "classes": task.meta["classes"],
        "backbone": ((task.meta["recipe"] or {}).get("backbone") or {}).get("name"),
        "results": task.meta["results"],
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in _all_tensors(task)}),
        "selected": sum(len(s.index) for s in task.selected.values()),
        "selectable": sum(s.size for s in task.selected.values()),
        "layers": layers(task),
        "bytes": sizes | {"description": len(data) - sum(sizes.values())},
        "over_bound": (positions + values) / bound if bound else None,
    }


def _selected_bytes(task: Task) -> tuple[int, int]:
    positions = sum(encode(s.index.numpy(), s.size)[0].bytes for s in task.selected.values())
    return positions, sum(_bytes(s.values) for s in task.selected.values())


def _all_tensors(task: Task) -> list[torch.Tensor]:
    return [*task.tensors.values(), *(s.values for s in task.selected.values())]


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def layers(task: Task) -> dict[str, list[int]]:
    """[selected, all] entries of the weights that could be selected, by transformer block."""
    found: dict[str, list[int]] = {}
    for name, (count, size) in task.counts().items():
        entry = found.setdefault(block_of(name), [0, 0])
        entry[0] += count
        entry[1] += size
    return found


def block_of(name: str) -> str:
    """The block a weight belongs to: "model.layers.1.blocks.0.mlp.fc1.weight" is in "layers.1.blocks.0"."""
    numbered = re.match(r"(?:model\.)?(.*\.\d+)\.", name)
    return numbered[1] if numbered else name


def render(facts: Mapping[str, Any]) -> str:
    """The facts of `account` for a terminal."""
    whole = sum(facts["bytes"].values())
    text = [
        f"file         {facts['file']}  {whole:,} bytes, {', '.join(facts['dtypes'])}",
        f"backbone     {facts['backbone'] or 'not named'}  fingerprint {facts['fingerprint'][:12]}",
        f"method       {facts['method']['name']}",
        f"head         {facts['head']['name'] if facts['head'] else 'none that it names'}",
        f"classes      {', '.join(facts['classes']) or 'none'}",
    ]
    for split, figures in facts["results"].items():
        numbers = [f"{k} {v:.4f}" for k, v in figures.items() if "/" not in k and k != "at"]
        text.append(f"{split:<12} {'  '.join(numbers)}")
    text += ["", "where the bytes go"]
    text += [_line(name, size / max(whole, 1), f"{size:>13,}") for name, size in facts["bytes"].items() if size]
    if facts["over_bound"]:
        text.append(f"  positions and values: {facts['over_bound']:.4f} times the entropy of the mask plus the values")
    if facts["selectable"]:
        share = facts["selected"] / facts["selectable"]
        text += ["", f"selected weights by block: {facts['selected']:,} of {facts['selectable']:,} = {share:.2%}"]
        most = max(count / size for count, size in facts["layers"].values()) or 1
        text += [_line(n, c / s, f"{c:>13,}", (c / s) / most) for n, (c, s) in facts["layers"].items()]
    return "\n".join(text)


def _line(name: str, share: float, number: str, length: float | None = None) -> str:
    bar = "#" * round(_BAR * (share if length is None else length))
    return f"  {name:<20} {number} {100 * share:6.2f} % {bar}".rstrip()


def compare(a: Task, b: Task) -> dict[str, Any]:
    """How two tasks differ, as plain values.

    "selection": by block, entries of a, of b, of both, and of both as expected were the choices independent;
    "values": the largest difference at entries that both select; "tensors": names that only one holds, or that differ.
    """
    keys = ("fingerprint", "method", "head", "classes", "crop")
    about = {k: [a.meta[k], b.meta[k]] for k in keys if a.meta[k] != b.meta[k]}
    results = {n: [_figures(t).get(n) for t in (a, b)] for n in {**_figures(a), **_figures(b)}}
    tensors = {n: _differ(a.tensors.get(n), b.tensors.get(n)) for n in sorted({*a.tensors, *b.tensors})}
    return {
        "about": about,
        "results": results,
        "selection": {block: [o.first, o.second, o.both, o.expected] for block, o in _overlaps(a, b).items()},
        "values": max((_difference(a.selected[n], b.selected[n]) for n in a.selected if n in b.selected), default=0.0),
        "tensors": {n: text for n, text in tensors.items() if text},
    }


def _overlaps(a: Task, b: Task) -> dict[str, Overlap]:
    """What the two select of every weight that either could select from, by block."""
    sizes = {name: size for task in (a, b) for name, (_, size) in task.counts().items()}
    blocks: dict[str, list[str]] = {}
    for name in sizes:
        blocks.setdefault(block_of(name), []).append(name)
    nothing = torch.empty(0, dtype=torch.int64)
    index = lambda task, names: {n: task.selected[n].index if n in task.selected else nothing for n in names}  # noqa: E731
    return {
        block: overlap(index(a, names), index(b, names), {n: sizes[n] for n in names})
        for block, names in blocks.items()
    }


def _difference(one: Selected, two: Selected) -> float:
    """The largest difference of values at entries that both select."""
    here, there = torch.isin(one.index, two.index), torch.isin(two.index, one.index)
    difference = (one.values[here].double() - two.values[there].double()).abs()
    return float(difference.max()) if len(difference) else 0.0


def _figures(task: Task) -> dict[str, float]:
    found = ((split, n, v) for split, fs in task.meta["results"].items() for n, v in fs.items())
    return {f"{split} {n}": v for split, n, v in found if "/" not in n and n != "at"}


def _differ(one: torch.Tensor | None, two: torch.Tensor | None) -> str:
    if one is None or two is None:
        return "only in the second" if one is None else "only in the first"
    if one.shape != two.shape:
        return f"{list(one.shape)} and {list(two.shape)}"
    if one.dtype == two.dtype and torch.equal(one, two):
        return ""
    return f"differs by up to {float((one.double() - two.double()).abs().max()):.3g}"


def render_comparison(found: Mapping[str, Any], names: tuple[str, str]) -> str:
    """What `compare` found, for a terminal."""
    text = [f"first   {names[0]}", f"second  {names[1]}"]
    text += [f"{key}: {_short(one)} | {_short(two)}" for key, (one, two) in found["about"].items()]
    text += [f"{name}: {_number(one)} | {_number(two)}" for name, (one, two) in found["results"].items()]
    rows = {n: r for n, r in found["selection"].items() if r[0] or r[1]}
    if rows:
        text += ["", f"{'selected in':<20} {'first':>10} {'second':>10} {'both':>10} {'by chance':>10}"]
        total = [sum(r[i] for r in rows.values()) for i in range(4)]
        for name, row in (*rows.items(), ("all", total)):
            text.append(f"{name:<20} {row[0]:>10,} {row[1]:>10,} {row[2]:>10,} {row[3]:>10,.0f}")
        text.append(f"values selected by both differ by up to {found['values']:.3g}")
    shown = list(found["tensors"].items())
    text += ["", f"{len(shown)} other tensors differ"] + [f"  {n}: {t}" for n, t in shown[:20]]
    return "\n".join(text + ([f"  and {len(shown) - 20} more"] if len(shown) > 20 else []))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
