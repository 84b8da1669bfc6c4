"""Peak memory is that of the stretch that was asked about."""

from __future__ import annotations

import torch

from sfa_ext.training import memory

CPU = torch.device("cpu")


def test_the_peak_counts_what_was_there_and_is_gone_and_starts_anew():
    memory.restart_peak(CPU)
    before = memory.peak(CPU)
    torch.zeros(100_000_000)  # 400 MB
    assert 350e6 < memory.peak(CPU) - before < 600e6
    memory.restart_peak(CPU)
    assert memory.peak(CPU) - before < 200e6
