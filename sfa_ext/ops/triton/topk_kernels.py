"""Triton kernels of select_topk: a radix select that reads the scores where they are.

The bits of a score without its sign, read as an integer ("key"), order like its magnitude. Each pass counts the keys
that share the digits found so far by their next digit; `pick` then finds the digit of the k-th largest, on the device.
Counts are whole numbers, so neither order nor scheduling can show in a result. Table: length, first
chunk, scores, first word of the tensor's part of the mask, which holds one bit per score: excluded or not.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .selection_kernels import column, part


@triton.jit
def mark_excluded(table, owners, mask, faults, CHUNK: tl.constexpr):
    """Sets a bit for every excluded position; notes positions that are out of range or not strictly increasing. Chunks
    are those of the positions; table: length, first chunk, positions, first word, length of the scores."""
    row, begin, end = part(table, owners, tl.program_id(0), 5, CHUNK)
    positions = column(row, 2, tl.int64)
    at = begin + tl.arange(0, CHUNK)
    position = tl.load(positions + at, mask=at < end, other=0)
    before = tl.load(positions + at - 1, mask=(at < end) & (at > 0), other=-1)
    inside = (at < end) & (position >= 0) & (position < tl.load(row + 4))
    bit = tl.full((CHUNK,), 1, tl.int32) << (position % 32).to(tl.int32)
    tl.atomic_or(mask + tl.load(row + 3) + position // 32, bit, mask=inside)
    wrong = tl.max(((at < end) & ((inside == 0) | (position <= before))).to(tl.int32))
    if wrong != 0:
        tl.atomic_or(faults, 1)


@triton.jit
def _keys(row, at, end, mask, KEY: tl.constexpr, SIGNLESS: tl.constexpr, EXCLUDING: tl.constexpr):
    """Keys at these positions, and which of them are eligible."""
    key = tl.load(column(row, 2, KEY) + at, mask=at < end, other=0) & SIGNLESS
    eligible = at < end
    if EXCLUDING:
        word = tl.load(mask + tl.load(row + 3) + at // 32, mask=at < end, other=0)
        eligible = eligible & (((word >> (at % 32).to(tl.int32)) & 1) == 0)
    return key, eligible


@triton.jit(do_not_specialize=["chunks"])
def count_digits(
    table, owners, mask, state, counts, faults, chunks,
    KEY: tl.constexpr, SIGNLESS: tl.constexpr, INFINITY: tl.constexpr, EXCLUDING: tl.constexpr, TOP: tl.constexpr,
    SHIFT: tl.constexpr, BITS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Each program's counts of digits, over every chunk that is its turn. The first pass, TOP, notes NaN."""
    BINS: tl.constexpr = 1 << BITS
    program = tl.program_id(0)
    bins = tl.arange(0, BINS)
    found = tl.zeros((BINS,), tl.int32)
    threshold = tl.load(state).to(KEY)
    nan = tl.zeros((BLOCK,), tl.int32)
    for chunk in range(program, chunks, tl.num_programs(0)):
        row, begin, end = part(table, owners, chunk, 4, CHUNK)
        for start in range(begin, end, BLOCK):
            at = start + tl.arange(0, BLOCK)
            key, counted = _keys(row, at, end, mask, KEY, SIGNLESS, EXCLUDING)
            if TOP:
                nan = nan | (key > INFINITY).to(tl.int32)
            else:
                counted = counted & ((key >> (SHIFT + BITS)) == (threshold >> (SHIFT + BITS)))
            digit = ((key >> SHIFT) & (BINS - 1)).to(tl.int32)
            found += tl.histogram(digit, BINS, mask=counted)
    tl.store(counts + program.to(tl.int64) * BINS + bins, found)
    if TOP:
        if tl.max(nan) != 0:
            tl.atomic_or(faults, 2)


@triton.jit
def pick(counts, state, SHIFT: tl.constexpr, BITS: tl.constexpr):
    """Adds the next digit of the k-th largest key to the threshold, state[0], and takes how many keys lie above that
    digit from the rank that is left, state[1]."""
    BINS: tl.constexpr = 1 << BITS
    bins = tl.arange(0, BINS)
    total = tl.load(counts + bins)
    wanted = tl.load(state + 1)
    from_here = tl.cumsum(total, 0, reverse=True)
    above = from_here - total
    # The digit whose keys hold the rank; where none is wanted, the highest, which nothing exceeds.
    chosen = ((above < wanted) & (from_here >= wanted)) | ((wanted == 0) & (bins == BINS - 1))
    digit = tl.sum(tl.where(chosen, bins, 0))
    taken = tl.sum(tl.where(chosen, above, 0))
    tl.store(state, tl.load(state) + (digit.to(tl.int64) << SHIFT))
    tl.store(state + 1, wanted - tl.where(wanted == 0, 0, taken))


@triton.jit
def count_taken(
    table, owners, mask, state, above, equal,
    KEY: tl.constexpr, SIGNLESS: tl.constexpr, EXCLUDING: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """How many eligible keys of each chunk lie above the threshold, and how many at it."""
    program = tl.program_id(0)
    row, begin, end = part(table, owners, program, 4, CHUNK)
    threshold = tl.load(state).to(KEY)
    over = tl.zeros((BLOCK,), tl.int32)
    ties = tl.zeros((BLOCK,), tl.int32)
    for start in range(begin, end, BLOCK):
        at = start + tl.arange(0, BLOCK)
        key, eligible = _keys(row, at, end, mask, KEY, SIGNLESS, EXCLUDING)
        over += (eligible & (key > threshold)).to(tl.int32)
        ties += (eligible & (key == threshold)).to(tl.int32)
    tl.store(above + program, tl.sum(over).to(tl.int64))
    tl.store(equal + program, tl.sum(ties).to(tl.int64))


@triton.jit
def write(
    table, owners, mask, state, results, ties, offsets, counts,
    KEY: tl.constexpr, SIGNLESS: tl.constexpr, EXCLUDING: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Writes each chunk's positions, in order, from `offsets` on: all above the threshold and the first `ties` at it.
    `results`: the address of each tensor's result."""
    program = tl.program_id(0)
    if tl.load(counts + program) > 0:
        row, begin, end = part(table, owners, program, 4, CHUNK)
        out = column(results + tl.load(owners + program), 0, tl.int64) + tl.load(offsets + program)
        threshold, left = tl.load(state).to(KEY), tl.load(ties + program)
        for start in range(begin, end, BLOCK):
            at = start + tl.arange(0, BLOCK)
            key, eligible = _keys(row, at, end, mask, KEY, SIGNLESS, EXCLUDING)
            tie = (eligible & (key == threshold)).to(tl.int64)
            taken = (eligible & (key > threshold)) | ((tie != 0) & (tl.cumsum(tie, 0) <= left))
            place = tl.cumsum(taken.to(tl.int64), 0) - 1
            tl.store(out + place, at, mask=taken)
            left -= tl.sum(tie)
            out += tl.sum(taken.to(tl.int64))
