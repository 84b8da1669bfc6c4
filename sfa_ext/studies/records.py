"""The record of finished runs: one line of JSON a run, enough to go on from anywhere and to make every table anew."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from sfa_ext.report.comparison import Record

_FIELDS = {f.name for f in dataclasses.fields(Record)}
_NEEDED = {f.name for f in dataclasses.fields(Record) if f.default is dataclasses.MISSING}


def read(path: Path) -> dict[str, Record]:
    """Records by the fingerprint of their run, the last one where there are several.

    A last line that a kill or a full disk cut off is left out. Raises ValueError for any other line that is no record.
    """
    data = path.read_bytes() if path.is_file() else b""
    found: dict[str, Record] = {}
    for number, line in enumerate(_whole(data).splitlines(), 1):
        record = _parse(line)
        if record is None:
            raise ValueError(f"{path}: line {number} is no record of a run; mend it or take it out")
        found[record.fingerprint] = record
    return found


def append(path: Path, record: Record) -> None:
    """Adds a record, on the disk before this returns. What was left of a line that was cut off is taken out first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    with open(handle, "r+b") as file:
        kept = _whole(file.read())
        file.seek(0)
        file.truncate(len(kept))
        file.seek(len(kept))
        start = b"\n" if kept and not kept.endswith(b"\n") else b""
        file.write(start + json.dumps(dataclasses.asdict(record)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _whole(data: bytes) -> bytes:
    """The data without a last line that is no record; an editor may have taken a whole line's end."""
    head, mark, tail = data.rpartition(b"\n")
    return data if not tail or _parse(tail) else head + mark


def _parse(line: bytes) -> Record | None:
    try:
        values = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    if not isinstance(values, dict) or not values.keys() >= _NEEDED:
        return None
    return Record(**{name: value for name, value in values.items() if name in _FIELDS})
