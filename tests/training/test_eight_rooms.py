"""Every head on the embedded backbone learns eight rooms by heart, from its recipe and with all weights trained."""

from __future__ import annotations

import os

import pytest

from benchmarks.eight_rooms import CASES, measure, reached


@pytest.mark.skipif(os.environ.get("SFA_LONG") != "1", reason="takes minutes; set SFA_LONG=1")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", CASES)
def test_learns_eight_rooms_by_heart(name, tmp_path):
    """Also writes what it measured into benchmarks/results/eight-rooms.md."""
    figures = measure(name, tmp_path)
    assert figures and all(reached(figures).values()), figures
