"""The records of finished runs survive whatever a crash, an editor or another version does to their file."""

from __future__ import annotations

import json

import pytest

from sfa_ext.report.comparison import Record
from sfa_ext.studies import records


def record(name, **changes):
    values = {"arm": "lora", "stage": "final", "seed": 0, "rate": 0.1, "steps": 5, "figures": {"val": {"miou": 0.25}}}
    counts = {"trainable": 3, "share": 0.5, "task_bytes": 7, "head_bytes": 2}
    return Record(**(values | counts | {"fingerprint": name} | changes))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "deep" / "records.jsonl"
    for name in ("a", "b"):
        records.append(path, record(name))
    return path


def test_records_come_back_as_they_were(path):
    assert records.read(path) == {"a": record("a"), "b": record("b")}
    assert records.read(path.with_name("none.jsonl")) == {}


@pytest.mark.parametrize("kept", [1, 10, 200])
def test_a_torn_last_line_is_dropped_and_the_next_record_is_whole(path, kept):
    whole = path.read_bytes()
    line = whole.splitlines(keepends=True)[-1]
    assert kept < len(line) - 1
    path.write_bytes(whole + line[:kept])
    assert set(records.read(path)) == {"a", "b"}
    records.append(path, record("c"))
    assert set(records.read(path)) == {"a", "b", "c"} and path.read_bytes().startswith(whole)
    assert [json.loads(line)["fingerprint"] for line in path.read_text().splitlines()] == ["a", "b", "c"]


def test_torn_bytes_of_a_letter_are_dropped_too(path):
    path.write_bytes(path.read_bytes() + '{"arm": "ü'.encode()[:-1])
    assert set(records.read(path)) == {"a", "b"}


def test_a_last_line_without_its_end_is_kept(path):
    path.write_bytes(path.read_bytes().rstrip())
    assert set(records.read(path)) == {"a", "b"}
    records.append(path, record("c"))
    assert set(records.read(path)) == {"a", "b", "c"}


def test_a_damaged_line_inside_is_named(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0][:40] + b"\n" + lines[1])
    with pytest.raises(ValueError, match="records.jsonl: line 1 is no record of a run"):
        records.read(path)


def test_the_last_of_two_records_of_a_run_counts_and_unknown_facts_are_left_out(path):
    line = json.loads(path.read_text().splitlines()[0]) | {"rate": 0.7, "colour": "red"}
    path.write_text(path.read_text() + json.dumps(line) + "\n")
    assert records.read(path)["a"] == record("a", rate=0.7)
