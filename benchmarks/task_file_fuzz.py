"""Damages and forges task files in thousands of ways, and records what became of them.

    python -m benchmarks.task_file_fuzz [--count 10000] [--seed 0]

Damaged files are altered anywhere; forged ones are altered on purpose and given the right checksum again. Every one
must be refused with one line of ValueError, when it is read or when a bank takes it up, and leave the bank as it was. A
forged stream of positions may happen to stand for other positions: then these must be increasing and inside their
weight. The table goes to benchmarks/results/task-file-fuzz.md.
"""

from __future__ import annotations

import argparse
import collections
import copy
import hashlib
import json
import random
import resource
import struct
import time
from collections.abc import Callable

import timm
import torch
from torch import nn

import sfa_ext
from sfa_ext import deltas
from sfa_ext.files import write_text

from .timing import RESULTS, table

HUGE = (2**31, 2**40, 2**62, 2**63, 10**30, -1)


def backbone() -> nn.Module:
    """A SwinV2 of a few thousand parameters."""
    settings = {"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1), "window_size": 2, "img_size": 64}
    torch.manual_seed(0)
    return timm.create_model("swinv2_tiny_window8_256", features_only=True, feature_cls="getter", **settings).eval()


def whole_file(model: nn.Module) -> bytes:
    """A task file of SFA with a head: every section is there."""
    twin = copy.deepcopy(model)
    adaptation = sfa_ext.adapt(twin, sfa_ext.SFA(budget=0.2, dim=1, rounds=1, interval=1), seed=0)
    head = sfa_ext.tasks.build("pretrain", {"width": 8}, twin.feature_info.channels(), ("a", "b"))
    optimizer = adaptation.optimizer(1e-2, head=head.parameters(), steps=1)
    sum(m.square().mean() for m in twin(torch.randn(1, 3, 64, 64))).backward()
    optimizer.step()
    meta = {"head": {"name": "pretrain", "settings": {"width": 8}}, "classes": ["a", "b"], "objects": [1]}
    return deltas.to_bytes(deltas.collect(adaptation, head, **meta, palette=[[0, 0, 0], [9, 9, 9]], crop=64))


# Damage: bytes change, the checksum stays.


def _truncate(data: bytearray, r: random.Random) -> None:
    del data[r.randrange(len(data)) :]


def _flip_bit(data: bytearray, r: random.Random) -> None:
    data[r.randrange(len(data))] ^= 1 << r.randrange(8)


def _flip_in_header(data: bytearray, r: random.Random) -> None:
    data[r.randrange(8 + struct.unpack("<Q", data[:8])[0])] ^= r.randrange(1, 256)


def _overwrite(data: bytearray, r: random.Random) -> None:
    start, before = r.randrange(len(data)), bytes(data)
    data[start : start + r.randrange(1, 64)] = r.randbytes(min(r.randrange(1, 64), len(data) - start))
    if data == before:
        data[start] ^= 1


def _insert(data: bytearray, r: random.Random) -> None:
    start = r.randrange(len(data) + 1)
    data[start:start] = r.randbytes(r.randrange(1, 64))


def _delete(data: bytearray, r: random.Random) -> None:
    start = r.randrange(len(data))
    del data[start : start + r.randrange(1, 64)]


def _header_length(data: bytearray, r: random.Random) -> None:
    own = struct.unpack("<Q", data[:8])[0]
    data[:8] = struct.pack(
        "<Q", r.choice([n for n in (0, 1, own - 1, own + 8, len(data), 2**40, 2**64 - 1) if n != own])
    )


DAMAGE = (_truncate, _flip_bit, _flip_in_header, _overwrite, _insert, _delete, _header_length)


# Forgery: the header is changed, the checksum is right again.


def _split(data: bytes) -> tuple[dict, dict, bytearray]:
    """The header, our JSON in it, and the tensors' bytes."""
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["sfa_ext"]), bytearray(data[8 + length :])


def _join(header: dict, meta: dict, body: bytes) -> bytes:
    header["__metadata__"]["sfa_ext"] = json.dumps(meta | {"checksum": "0" * 64})
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + body
    return data.replace(b"0" * 64, hashlib.sha256(data).hexdigest().encode(), 1)


def _entry(header: dict, r: random.Random) -> dict:
    return header[r.choice(sorted(n for n in header if n != "__metadata__"))]


def _offsets(header: dict, meta: dict, body: bytearray, r: random.Random) -> None:
    entry = _entry(header, r)
    entry["data_offsets"][r.randrange(2)] += r.choice((-8, -4, 4, 8, 2**40, 2**62))


def _shape(header: dict, meta: dict, body: bytearray, r: random.Random) -> None:
    entry = _entry(header, r)
    entry["shape"] = r.choice(([r.choice(HUGE)], [2**33, 2**33], [*entry["shape"], 2], [], ["x"], None))
    if entry["shape"] == []:
        entry["dtype"] = "F64"


def _dtype(header: dict, meta: dict, body: bytearray, r: random.Random) -> None:
    header[r.choice(["selected/values", "selected/positions"])]["dtype"] = r.choice(
        ["I32", "I8", "BOOL", "F8_E4M3", "Q"]
    )


def _rename(header: dict, meta: dict, body: bytearray, r: random.Random) -> None:
    name = r.choice(sorted(n for n in header if n != "__metadata__"))
    header[r.choice([f"{name}x", name.split("/", 1)[1], f"other/{name}", ""])] = header.pop(name)


def _table(header: dict, meta: dict, body: bytearray, r: random.Random) -> None:
    row = meta["selected"][r.choice(sorted(meta["selected"]))]
    column = r.randrange(4)
    row[column] = r.choice((*HUGE, row[column] + 1, row[column] - 1, float(row[column]), str(row[column]), None))


def _weights(header: dict, meta: dict, body: bytearray, r: random.Random) -> None:
    names = sorted(meta["selected"])
    one, two = r.sample(names, 2)
    rows = meta["selected"]
    rows[r.choice([f"{one}x", "", "head/semantic.weight"])] = rows.pop(one)
    if r.random() < 0.5:
        del rows[two]


def _version(header: dict, meta: dict, body: bytearray, r: random.Random) -> None:
    meta["version"] = r.choice((0, 2, "1", None, 1.5, [1], 2**70))


def _about(header: dict, meta: dict, body: bytearray, r: random.Random) -> None:
    key = r.choice(["fingerprint", "method", "head", "classes", "palette", "results"])
    meta["task"][key] = r.choice([{}, [], 3, "x" * 64, [[1, 2]], {"name": 3}, {"name": "magic", "settings": {}}][1:])
    if key == "classes" and meta["task"][key] == [] or key in ("palette", "results") and meta["task"][key] == {}:
        del meta["task"][key]


def _settings(header: dict, meta: dict, body: bytearray, r: random.Random) -> None:
    task = meta["task"]
    if r.random() < 0.5:
        task["method"]["settings"]["dim"] = r.choice((2, 10**9, 2**70, -1, "1", [1]))
    else:
        task["head"]["settings"]["width"] = r.choice((16, 8 * 10**4, 8 * 10**9, 2**66, 0, "8", None))


def _classes(header: dict, meta: dict, body: bytearray, r: random.Random) -> None:
    count = r.choice((1, 3, 250, 10**5))
    meta["task"] |= {"classes": ["c"] * count, "palette": [[0, 0, 0]] * count, "objects": []}


def _stream(header: dict, meta: dict, body: bytearray, r: random.Random) -> None:
    begin, end = header["selected/positions"]["data_offsets"]
    for _ in range(r.randrange(1, 9)):
        body[r.randrange(begin, end)] ^= r.randrange(1, 256)


FORGERY = (
    _offsets, _shape, _dtype, _rename, _table, _weights, _version, _about, _settings, _classes, _stream,
)  # fmt: skip


def mutate(data: bytes, r: random.Random) -> tuple[str, bytes]:
    """A kind of mutation and the file it gives."""
    change: Callable = r.choice(DAMAGE if r.random() < 0.6 else FORGERY)
    if change in DAMAGE:
        altered = bytearray(data)
        change(altered, r)
        return f"damaged: {change.__name__[1:].replace('_', ' ')}", bytes(altered)
    parts = _split(data)
    change(*parts, r)
    return f"forged: {change.__name__[1:]}", _join(*parts)


class Outcome(Exception):
    """A mutation that was not handled as it must be."""


def meet(data: bytes, bank: deltas.TaskBank) -> str:
    """What becomes of one file: "refused when read", "refused by the bank" or, for other positions, "another task"."""
    try:
        task = deltas.from_bytes(data)
    except ValueError as error:
        _check_line(error)
        return "refused when read"
    for name, chosen in task.selected.items():
        index = chosen.index
        if len(index) and (index[0] < 0 or index[-1] >= chosen.size or (index[1:] <= index[:-1]).any()):
            raise Outcome(f"{name}: positions out of order were accepted")
    try:
        bank.add(task, "forged")
    except ValueError as error:
        _check_line(error)
        if bank.names:
            raise Outcome("a refused task is in the bank") from error
        return "refused by the bank"
    with bank.task("forged"):
        pass
    bank.remove("forged")
    return "another task"


def _check_line(error: ValueError) -> None:
    text = str(error)
    if not 15 < len(text) < 2000:
        raise Outcome(f"an unhelpful line: {text!r}")


def run(count: int, seed: int = 0) -> tuple[dict[str, collections.Counter], int]:
    """Outcomes by kind of mutation, and by how many bytes the process grew at its peak. Raises Outcome."""
    model = backbone()
    data, start = whole_file(model), copy.deepcopy(model.state_dict())
    bank, r = deltas.TaskBank(model), random.Random(seed)
    if meet(data, bank) != "another task":
        raise Outcome("the file itself was refused")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    for number in range(count):
        kind, altered = mutate(data, r)
        try:
            outcome = meet(altered, bank)
        except Exception as error:
            raise Outcome(f"mutation {number} of seed {seed} ({kind}): {type(error).__name__}: {error}") from error
        if outcome == "another task" and kind != "forged: stream":
            raise Outcome(f"mutation {number} of seed {seed} ({kind}) was accepted")
        found[kind][outcome] += 1
    if not all(torch.equal(t, start[n]) for n, t in model.state_dict().items()):
        raise Outcome("the backbone changed")
    return found, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.perf_counter()
    found, grown = run(options.count, options.seed)
    outcomes = ("refused when read", "refused by the bank", "another task")
    rows = [[k, *(f"{found[k][o]:,}" if found[k][o] else "" for o in outcomes)] for k in sorted(found)]
    rows.append(["all", *(f"{sum(c[o] for c in found.values()):,}" for o in outcomes)])
    text = [
        "# Damaged and forged task files",
        "",
        f"{options.count:,} mutations of one task file, seed {options.seed}. None crashed, none that was damaged was "
        'accepted, and the backbone and the bank were as before after each. "Another task" are forged streams, with '
        "the right checksum, that stand for other positions, increasing and inside their weight. The process grew by "
        f"{grown / 1e6:.1f} MB at its peak. {time.perf_counter() - started:.0f} s. Written by "
        f"`python -m benchmarks.task_file_fuzz --count {options.count} --seed {options.seed}`.",
        "",
        table(["mutation", *outcomes], rows),
        "",
    ]
    write_text(RESULTS / "task-file-fuzz.md", "\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
