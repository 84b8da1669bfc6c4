"""torch.ops.sfa.select_topk against a stable sort, on every kind of input that breaks a selection by digits."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sfa_ext  # noqa: F401  registers torch.ops.sfa
from sfa_ext.ops import reference_selection

select_topk = torch.ops.sfa.select_topk
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
INFINITY = float("inf")


def name(dtype):
    return str(dtype).removeprefix("torch.")


def none_excluded(scores):
    return [torch.empty(0, dtype=torch.int64, device=s.device) for s in scores]


def by_stable_sort(scores, excluded, k):
    """Ties go to the lowest tensor and index because the sort is stable."""
    keys = []
    for score, positions in zip(scores, excluded, strict=True):
        keys.append(score.flatten().abs().double())
        keys[-1][positions] = -1
    best = torch.cat(keys).sort(descending=True, stable=True).indices[:k].sort().values
    starts = torch.tensor([0, *(key.numel() for key in keys)]).cumsum(0).tolist()
    return [best[(best >= a) & (best < b)] - a for a, b in zip(starts, starts[1:], strict=False)]


def assert_selects(scores, excluded, k):
    want = by_stable_sort([s.cpu() for s in scores], [e.cpu() for e in excluded], k)
    for select in (select_topk, reference_selection.select_topk):
        got = select(scores, excluded, k)
        assert len(got) == len(want) and all(torch.equal(g.cpu(), w) for g, w in zip(got, want, strict=True))
        assert all(g.device == s.device for g, s in zip(got, scores, strict=True))


KINDS = {
    "random": lambda n: torch.randn(n, dtype=torch.float64),
    "all-equal": lambda n: torch.full((n,), -0.37, dtype=torch.float64),
    "all-zero-of-both-signs": lambda n: torch.where(torch.rand(n) < 0.5, -0.0, 0.0).double(),
    "many-zero": lambda n: torch.randn(n, dtype=torch.float64) * (torch.rand(n) < 0.05),
    "denormal": lambda n: torch.randn(n, dtype=torch.float64) * 1e-40,
    "half-denormal": lambda n: torch.randn(n, dtype=torch.float64) * 1e-6,
    "infinite": lambda n: torch.where(torch.rand(n) < 0.2, INFINITY, 1.0).double() * torch.randn(n).sign(),
    "same-leading-bits": lambda n: 1 + torch.rand(n, dtype=torch.float64) * 1e-4,
    "few-values": lambda n: torch.randn(n, dtype=torch.float64).mul(2).round(),
    "squares": lambda n: torch.randn(n, dtype=torch.float64).mul(1e-4).square(),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_a_stable_sort(kind, dtype, device):
    sizes = [(7, 11), (1,), (0, 5), (33, 1000), (3, 1, 50)]
    scores = [KINDS[kind](torch.Size(s).numel()).view(s).to(device, dtype) for s in sizes]
    total = sum(s.numel() for s in scores)
    assert_selects(scores, none_excluded(scores), total // 10)
    excluded = [torch.rand(s.numel(), device=device).lt(0.3).nonzero().flatten() for s in scores]
    eligible = total - sum(e.numel() for e in excluded)
    for k in (0, 1, eligible // 3, eligible):
        assert_selects(scores, excluded, k)


def numbers(bits):
    """The floats that these bits are; NaN becomes infinity of its sign."""
    scores = torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)
    return scores.where(~scores.isnan(), INFINITY)


PATTERNS = st.one_of(st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 1 << 31, 0x3F800000, 0x3F800001, 0x7F800000]))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.tuples(PATTERNS, st.booleans()), max_size=40), min_size=1, max_size=4), st.data())
def test_agrees_with_a_stable_sort_on_any_bits(tensors, data):
    scores = [numbers([bits for bits, _ in entries]) for entries in tensors]
    excluded = [torch.tensor([e for _, e in entries], dtype=torch.bool).nonzero().flatten() for entries in tensors]
    eligible = sum(s.numel() - e.numel() for s, e in zip(scores, excluded, strict=True))
    assert_selects(scores, excluded, data.draw(st.integers(0, eligible)))


def test_ties_go_to_the_lowest_tensor_then_the_lowest_index():
    scores = [torch.tensor([1.0, -2.0, 2.0]), torch.tensor([2.0, 3.0, -2.0])]
    assert [p.tolist() for p in select_topk(scores, none_excluded(scores), 3)] == [[1, 2], [1]]
    excluded = [torch.tensor([1]), torch.tensor([1])]
    assert [p.tolist() for p in select_topk(scores, excluded, 2)] == [[2], [0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_positions_are_flat_whatever_the_strides(dtype, device):
    base = torch.randn(70, 600, device=device, dtype=dtype)
    views = [base.t(), base[::3, 5::7], base[:, :1].expand(70, 9), base.view(7, 10, 600).permute(1, 2, 0), base[0, 0]]
    excluded = [torch.arange(0, v.numel(), 5, device=device) for v in views]
    assert_selects(views, excluded, 3000)


def test_unaligned_scores():
    base = torch.randn(70001)
    assert_selects([base[1:], base[3:50000]], none_excluded([base, base]), 7000)


def test_no_tensors():
    assert select_topk([], [], 0) == []


def test_more_than_two_to_the_31_scores():
    # Rows of a window that slides over few numbers: only the last ones of the last rows are not zero.
    rows, width = 2**15 + 1, 2**16
    numbers = torch.zeros(rows + width - 1, dtype=torch.bfloat16)
    numbers[-2:] = torch.tensor([-4.0, 8.0])
    large = numbers.as_strided((rows, width), (1, 1))
    small = torch.full((3,), 2.0, dtype=torch.bfloat16)
    last = rows * width - 1
    assert last > 2**31
    first, second = select_topk([large, small], [torch.tensor([last - 1]), torch.empty(0, dtype=torch.int64)], 4)
    assert first.tolist() == [last - width, last]
    assert second.tolist() == [0, 1]


def test_one_and_two_threads_select_the_same():
    scores = [torch.randn(500, 700).mul(8).round(), torch.randn(90001)]
    excluded = [torch.arange(0, s.numel(), 11) for s in scores]
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append([p.tolist() for p in select_topk(scores, excluded, 77777)])
    assert results[0] == results[1]


MEASURE_PEAK = """
import resource, torch, sfa_ext
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
scores = [torch.empty(2500, 4000).normal_() for _ in range(5)]
excluded = [torch.arange(0, s.numel(), 9) for s in scores]
warm_up = torch.ops.sfa.select_topk([s[:100] for s in scores], [e[:100] for e in excluded], 100)
before = peak()
positions = torch.ops.sfa.select_topk(scores, excluded, 4_000_000)
extra = peak() - before - sum(p.numel() * 8 for p in positions)
print(extra / sum(s.numel() * 4 for s in scores))
"""


def test_extra_memory_is_below_five_per_cent_of_the_scores():
    result = subprocess.run([sys.executable, "-c", MEASURE_PEAK], capture_output=True, text=True, check=True)
    assert float(result.stdout) < 0.05


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("place", [7, 8], ids=["eligible", "excluded"])
def test_refuses_nan_and_names_the_tensor(place, dtype, device):
    scores = [torch.randn(50, device=device).to(dtype) for _ in range(4)]
    scores[3][0] = scores[2][place] = float("nan")
    excluded = [torch.tensor([8], device=device)] * 4
    with pytest.raises(RuntimeError, match=rf"scores\[2\] holds NaN, first at flat position {place}"):
        select_topk(scores, excluded, 5)
    with pytest.raises(RuntimeError, match=r"scores\[2\] holds NaN"):
        reference_selection.select_topk(scores, excluded, 5)


A, E = torch.ones(4), torch.empty(0, dtype=torch.int64)


@pytest.mark.parametrize(
    ("scores", "excluded", "k", "message"),
    [
        ([A], [E], -1, "k must not be negative, got -1"),
        ([A, A], [E, torch.tensor([1])], 8, "k must be at most 7, the number of scores that are not excluded, got 8"),
        ([], [], 1, "k must be at most 0"),
        ([A], [], 1, "excluded must hold one tensor for each of scores, which are 1, got 0; pass an empty"),
        ([A.int()], [E], 1, r"scores\[0\] must be float32 or .*, got int32"),
        ([A, A.double()], [E, E], 1, r"scores\[1\] must be float32 as scores\[0\].*, got float64"),
        ([A, A.to("meta")], [E, E], 1, r"scores\[1\] must be on cpu .*, got meta"),
        ([A], [E.int()], 1, r"excluded\[0\] must be int64, got int32"),
        ([A], [torch.tensor([[1]])], 1, r"excluded\[0\] must be flat positions \[n\], got \[1, 1\]"),
        ([A, A], [E, torch.tensor([2, 1])], 1, r"excluded\[1\] must be strictly increasing, got 1 after 2; sort"),
        ([A], [torch.tensor([2, 2])], 1, r"excluded\[0\] must be strictly increasing, got 2 after 2"),
        ([A], [torch.tensor([3, 4])], 1, r"excluded\[0\] must be flat positions within \[0, 4\), got 4"),
        ([A], [torch.tensor([-1, 2])], 1, r"excluded\[0\] must be flat positions within \[0, 4\), got -1"),
    ],
)
def test_bad_arguments_are_named(scores, excluded, k, message):
    with pytest.raises(RuntimeError, match=message):
        select_topk(scores, excluded, k)


def test_opcheck(device):
    scores = [torch.randn(6, 7, device=device), torch.randn(9, device=device)]
    excluded = [torch.tensor([1, 4], device=device), torch.empty(0, dtype=torch.int64, device=device)]
    torch.library.opcheck(select_topk.default, (scores, excluded, 12))


def test_compiles_into_one_graph(device):
    def halve_the_largest(weight, other):
        nothing = torch.empty(0, dtype=torch.int64, device=weight.device)
        here, there = select_topk([weight, other], [nothing, nothing], 20)
        return weight.flatten().index_add(0, here, weight.flatten()[here], alpha=-0.5), there.numel()

    weight, other = torch.randn(12, 9, device=device), torch.randn(50, device=device)
    want, n = halve_the_largest(weight, other)
    got, m = torch.compile(halve_the_largest, fullgraph=True)(weight, other)
    assert torch.equal(got, want) and m == n
