"""The coding of positions: exact, close to the entropy, and strict about what it reads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from sfa_ext.deltas.positions import decode, encode, entropy_bits


def draw(size, share, seed=0):
    return np.flatnonzero(np.random.default_rng(seed).random(size) < share)


@pytest.mark.parametrize("share", [0.0, 1e-4, 0.01, 0.1, 0.3, 0.499, 0.5, 0.501, 0.7, 0.95, 0.9999, 1.0])
@pytest.mark.parametrize("size", [1, 7, 8, 9, 1000, 300_001])
def test_positions_come_back(size, share):
    index = draw(size, share)
    coding, stream = encode(index, size)
    assert np.array_equal(decode(coding, stream), index)


def test_no_entries_and_all_entries_cost_nothing_and_are_written_in_one_way():
    for index in (np.arange(0), np.arange(1000)):
        coding, stream = encode(index, 1000)
        assert coding.bytes == coding.rice == 0
        with pytest.raises(ValueError, match="counts out of range"):
            decode(dataclasses.replace(coding, rice=1), stream)


@pytest.mark.parametrize("index", [[0], [999], [0, 999], [998, 999], list(range(500)), list(range(0, 1000, 3))])
def test_edges_come_back(index):
    coding, stream = encode(np.array(index), 1000)
    assert decode(coding, stream).tolist() == index


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 0.95])
def test_the_code_is_within_four_per_cent_of_the_entropy(share):
    size = 1_000_000
    index = draw(size, share)
    assert 8 * encode(index, size)[0].bytes <= 1.04 * entropy_bits(size, len(index)) + 16


def test_the_entropy_is_the_logarithm_of_a_binomial():
    import math

    assert entropy_bits(60, 17) == pytest.approx(math.log2(math.comb(60, 17)))
    assert entropy_bits(60, 0) == entropy_bits(60, 60) == 0


@pytest.mark.parametrize("index", [[3, 3], [4, 3], [-1, 3], [3, 10]])
def test_positions_that_are_not_sorted_inside_are_refused(index):
    with pytest.raises(ValueError, match=r"strictly increasing in \[0, 10\)"):
        encode(np.array(index), 10)


@pytest.mark.parametrize(
    "changes",
    [
        {"count": 101}, {"count": 99}, {"count": -1}, {"count": 1001}, {"rice": 2}, {"rice": 60}, {"rice": -1},
        {"size": 500}, {"bytes": 3}, {"size": 2**47, "rice": 47, "count": 3},
        {"count": 2**40, "size": 2**41, "rice": 0},
    ],
    ids=str,
)  # fmt: skip
def test_a_coding_that_does_not_fit_its_stream_is_refused(changes):
    index = np.sort(np.random.default_rng(1).choice(1000, 100, replace=False))
    coding, stream = encode(index, 1000)
    with pytest.raises(ValueError, match="positions: "):
        decode(dataclasses.replace(coding, **changes), stream)


def test_an_altered_stream_is_refused_or_stands_for_sorted_positions():
    index = draw(1000, 0.1)
    coding, stream = encode(index, 1000)
    refused = 0
    for bit in range(8 * len(stream)):
        altered = stream.copy()
        altered[bit // 8] ^= 128 >> bit % 8
        try:
            found = decode(coding, altered)
        except ValueError:
            refused += 1
        else:
            assert len(found) == len(index) and found[0] >= 0 and found[-1] < 1000 and (np.diff(found) > 0).all()
            assert not np.array_equal(found, index)
    assert refused > 0.4 * 8 * len(stream)
