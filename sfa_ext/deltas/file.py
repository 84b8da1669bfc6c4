"""The task file: all that a task adds to its backbone, in one .safetensors file. docs/task-file.md describes it.

Everything is looked at before anything is handed out: version, checksum over every byte, names, sizes and positions.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sfa_ext.deltas.positions import Coding, decode, encode
from sfa_ext.files import write_bytes

VERSION = 1
TASK_FILE = "task.safetensors"  # its name in the folder of a run
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SECTIONS = ("method/", "head/", "buffers/")
_KEY, _NO_CHECKSUM = "sfa_ext", "0" * 64
_LARGEST_HEADER = 100_000_000  # bytes, as safetensors has it
_LARGEST_WEIGHT = 2**48  # entries
_VALUES, _POSITIONS = "selected/values", "selected/positions"


@dataclass
class Selected:
    """Entries of one backbone weight that a task has values of its own for."""

    index: Tensor  # int64 [k], strictly increasing flat positions
    values: Tensor  # [k]
    size: int  # entries of the whole weight


@dataclass
class Task:
    """One task: what it puts into the backbone, its method's and its head's tensors, and what it says of itself.

    meta: "fingerprint" (of the backbone), "method" and "head" ({"name", "settings"}; head null for one the file cannot
    name), "classes", "objects", "palette", "crop" (pixels), "recipe", "results", "parameters", "seconds".
    tensors: by name: "method/...", as the method's state names them, "head/..." and "buffers/..." of the head.
    """

    meta: dict[str, Any]
    selected: dict[str, Selected] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def part(self, section: str) -> dict[str, Tensor]:
        """Tensors of "method", "head" or "buffers", by their names there."""
        return {n.removeprefix(f"{section}/"): t for n, t in self.tensors.items() if n.startswith(f"{section}/")}

    def counts(self) -> dict[str, tuple[int, int]]:
        """(selected entries, all entries) of each weight that could be selected from."""
        return {name: (len(s.index), s.size) for name, s in self.selected.items()}

    def to(self, dtype: torch.dtype) -> Task:
        """The same task with the values of weights in `dtype`; buffers keep theirs.

        Raises ValueError for a number that `dtype` cannot hold.
        """
        chosen = {n: Selected(s.index, _cast(s.values, dtype, n), s.size) for n, s in self.selected.items()}
        tensors = {n: t if n.startswith("buffers/") else _cast(t, dtype, n) for n, t in self.tensors.items()}
        return Task(self.meta, chosen, tensors)


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    cast = tensor.to(dtype)
    if not torch.equal(cast.isfinite(), tensor.isfinite()):
        raise ValueError(f"dtype: {name} holds numbers beyond {str(dtype).removeprefix('torch.')}; take bfloat16")
    return cast


def write(path: str | Path, task: Task) -> None:
    """Writes the task file, atomically. Raises ValueError where selected values are of several dtypes."""
    write_bytes(Path(path), to_bytes(task))


def to_bytes(task: Task) -> bytes:
    """The file's bytes; the same for the same task. Raises as `write`."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in task.tensors.items()}
    if unknown := [n for n in tensors if not n.startswith(SECTIONS)]:
        raise ValueError(f"tensors: {unknown[0]!r} is in none of {', '.join(SECTIONS)}")
    table, streams, values = {}, [], []
    for name, chosen in task.selected.items():
        coding, stream = encode(chosen.index.cpu().numpy(), chosen.size)
        table[name] = [coding.size, coding.count, coding.rice, coding.bytes]
        streams.append(stream)
        values.append(chosen.values.detach().cpu())
    if len({v.dtype for v in values}) > 1:
        raise ValueError(f"dtype: selected values are {sorted({str(v.dtype) for v in values})}; choose one dtype")
    if table:
        tensors[_VALUES] = torch.cat(values)
        tensors[_POSITIONS] = torch.from_numpy(np.concatenate(streams))
    # Sorted and one metadata key: the same task gives the same bytes.
    meta = {"version": VERSION, "checksum": _NO_CHECKSUM, "task": task.meta, "selected": table}
    data = save(dict(sorted(tensors.items())), metadata={_KEY: json.dumps(meta)})
    return data.replace(_NO_CHECKSUM.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def read(path: str | Path) -> Task:
    """The task in the file at `path`.

    Raises FileNotFoundError, or ValueError for a file that is truncated, altered, of another version or no task file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    return from_bytes(path.read_bytes(), str(path))


def from_bytes(data: bytes, where: str = "task file") -> Task:
    """What `to_bytes` was given. Raises ValueError as `read`, with `where` for the file's name."""
    try:
        meta = _header(data)
        _check_bytes(data, meta["checksum"])
        tensors = load(data)
        values, positions = tensors.pop(_VALUES, None), tensors.pop(_POSITIONS, None)
        if unknown := [n for n in tensors if not n.startswith(SECTIONS)]:
            raise ValueError(f"the tensor {unknown[0]!r} belongs to no section")
        return Task(_description(meta["task"]), _selected(meta["selected"], values, positions), tensors)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError, RecursionError) as error:
        text = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise ValueError(f"{where}: cannot be read, {text}") from error


def _header(data: bytes) -> dict[str, Any]:
    """Our part of the metadata."""
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else -1
    if not 2 <= length <= min(_LARGEST_HEADER, len(data) - 8):
        raise ValueError("it is truncated or no .safetensors file")
    try:
        text = json.loads(data[8 : 8 + length])["__metadata__"][_KEY]
        meta = json.loads(text)
        version = meta["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError("it is altered or no task file of sfa_ext") from error
    if version != VERSION:
        raise ValueError(f"it is of version {version!r}, this sfa_ext reads version {VERSION}")
    if not isinstance(meta.get("checksum"), str) or len(meta["checksum"]) != len(_NO_CHECKSUM):
        raise ValueError("it is altered, its checksum is missing")
    return meta


def _check_bytes(data: bytes, checksum: str) -> None:
    """The checksum is that of the file with zeros in the checksum's own place."""
    blank = data.replace(checksum.encode(), _NO_CHECKSUM.encode(), 1)
    if (found := hashlib.sha256(blank).hexdigest()) != checksum:
        raise ValueError(f"it is truncated or altered (checksum {found[:12]}, the file says {checksum[:12]})")


_KINDS = {"fingerprint": str, "method": dict, "head": (dict, type(None)), "classes": list, "objects": list}
_KINDS |= {"palette": list, "crop": (int, type(None)), "recipe": (dict, type(None)), "results": dict}


def _description(meta: Any) -> dict[str, Any]:
    for key, kind in _KINDS.items():
        if not isinstance(meta, Mapping) or not isinstance(meta.get(key), kind):
            raise ValueError(f"its {key!r} is missing or of another kind")
    for key in ("method", "head"):
        part = meta[key]
        if part is not None and not (isinstance(part.get("name"), str) and isinstance(part.get("settings"), dict)):
            raise ValueError(f"its {key!r} names no {key}")
    figures = [v for part in meta["results"].values() for v in (part.values() if isinstance(part, dict) else [None])]
    if not all(isinstance(v, (int, float)) for v in figures):
        raise ValueError("its 'results' are no figures by split")
    names, palette, objects = meta["classes"], meta["palette"], meta["objects"]
    colours = [c for row in palette if isinstance(row, list) and len(row) == 3 for c in row]
    if not all(isinstance(n, str) for n in names) or not all(_natural(o, len(names)) for o in objects):
        raise ValueError("its classes are no list of names")
    if len(palette) < len(names) or len(colours) != 3 * len(palette) or not all(_natural(c, 256) for c in colours):
        raise ValueError("its palette holds no colour for each class")
    return dict(meta)


def _natural(value: Any, end: int) -> bool:
    return type(value) is int and 0 <= value < end


def _selected(table: Any, values: Tensor | None, positions: Tensor | None) -> dict[str, Selected]:
    if not table and values is None and positions is None:
        return {}
    if values is None or positions is None or values.dim() != 1 or not values.is_floating_point():
        raise ValueError("its selected values or positions are missing")
    if positions.dtype != torch.uint8 or positions.dim() != 1:
        raise ValueError("its positions are no bytes")
    codings = {}
    for name, row in table.items():
        if len(row) != 4 or not all(_natural(number, _LARGEST_WEIGHT) for number in row):
            raise ValueError(f"positions of {name!r}: no size, count, rice and bytes")
        codings[name] = Coding(*row)
    counted = sum(c.count for c in codings.values()), sum(c.bytes for c in codings.values())
    if counted != (len(values), len(positions)):
        raise ValueError(f"it says {counted[0]} selected values in {counted[1]} bytes of positions, it holds others")
    found, stream, at, start = {}, positions.numpy(), 0, 0
    for name, coding in codings.items():
        try:
            index = decode(coding, stream[start : start + coding.bytes])
        except ValueError as error:
            raise ValueError(f"{name!r}: {error}") from error
        found[name] = Selected(torch.from_numpy(index), values[at : at + coding.count], coding.size)
        at, start = at + coding.count, start + coding.bytes
    return found
