"""Damaged and forged task files: a short run of what `benchmarks/task_file_fuzz.py` records at length."""

from __future__ import annotations

from benchmarks import task_file_fuzz


def test_every_damaged_or_forged_file_is_refused_and_asks_for_no_memory():
    found, grown = task_file_fuzz.run(600, seed=1)
    assert set(found) == {kind for kind in found if sum(found[kind].values())} and len(found) == 18
    assert grown < 100e6
