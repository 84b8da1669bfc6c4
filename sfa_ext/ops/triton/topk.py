"""select_topk by Triton: no score is copied or moved, and the host waits once, for the sizes of the results."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import triton.language as tl
from torch import Tensor

from . import tables
from . import topk_kernels as kernels

CHUNK, BLOCK = 16384, 2048
MARK_CHUNK = 1024
PROGRAMS = 512  # that count; each leaves its counts, so that no two write to one place
DIGIT = 8  # bits; Triton counts with few bins fastest

# Integer of a dtype's size, the bits of infinity
_KEYS = {
    torch.float32: (tl.int32, 0x7F800000),
    torch.float64: (tl.int64, 0x7FF0000000000000),
    torch.bfloat16: (tl.int16, 0x7F80),
    torch.float16: (tl.int16, 0x7C00),
}


def select_topk(scores: Sequence[Tensor], excluded: Sequence[Tensor], k: int) -> list[Tensor]:
    device, lengths = scores[0].device, [score.numel() for score in scores]
    scores, excluded = ([t.contiguous() for t in tensors] for tensors in (scores, excluded))
    words = [-(-length // 32) for length in lengths]
    first_word = [0, *accumulate(words)]
    faults = torch.zeros(1, dtype=torch.int32, device=device)
    mask = None
    if any(map(len, excluded)):
        mask = torch.zeros(first_word[-1] or 1, dtype=torch.int32, device=device)
        columns = [tables.addresses(excluded), first_word[:-1], lengths]
        table = tables.make([len(e) for e in excluded], columns, MARK_CHUNK, device)
        kernels.mark_excluded[(table.chunks,)](table.rows, table.owners, mask, faults, CHUNK=MARK_CHUNK)
    table = tables.make(lengths, [tables.addresses(scores), first_word[:-1]], CHUNK, device)
    state = tables.to_device(torch.tensor([0, k]), device)
    key, infinity = _KEYS[scores[0].dtype]
    signless = (1 << (key.primitive_bitwidth - 1)) - 1
    options = {"KEY": key, "SIGNLESS": signless, "EXCLUDING": mask is not None, "CHUNK": CHUNK, "BLOCK": BLOCK}
    reads = (table.rows, table.owners, faults if mask is None else mask, state)
    taken = torch.zeros(2, table.chunks, dtype=torch.int64, device=device)  # above the threshold, at it
    if table.chunks:
        _find_threshold(reads, faults, key.primitive_bitwidth - 1, infinity, options)
        kernels.count_taken[(table.chunks,)](*reads, *taken, **options)

    above, equal = taken
    ties = (k - above.sum() - equal.cumsum(0) + equal).clamp(min=0).minimum(equal)
    counts = above + ties
    before = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    first = table.rows[:, 1]  # each tensor's first chunk
    starts = before[first]
    ends = before[torch.cat([first[1:], first.new_full((1,), table.chunks)])]
    *sizes, fault = torch.cat([ends - starts, faults.long()]).tolist()  # here the host waits
    if fault:
        raise RuntimeError("scores must not hold NaN, and excluded must be strictly increasing positions")
    results = [torch.empty(size, dtype=torch.int64, device=device) for size in sizes]
    if k:
        places = tables.to_device(torch.tensor(tables.addresses(results)), device)
        offsets = before[:-1] - starts[table.owners]
        kernels.write[(table.chunks,)](*reads, places, ties, offsets, counts, **options)
    return results


def _find_threshold(reads, faults: Tensor, bits: int, infinity: int, options: dict) -> None:
    """Leaves the k-th largest key in the state, digit by digit from the top."""
    chunks = len(reads[1])
    programs, left = min(chunks, PROGRAMS), bits
    while left:
        digit = min(DIGIT, left)
        left -= digit
        counts = torch.empty((programs, 1 << digit), dtype=torch.int32, device=faults.device)
        kernels.count_digits[(programs,)](
            *reads, counts, faults, chunks, INFINITY=infinity, TOP=left + digit == bits, SHIFT=left, BITS=digit,
            **options,
        )  # fmt: skip
        kernels.pick[(1,)](counts.sum(0), reads[3], SHIFT=left, BITS=digit)
