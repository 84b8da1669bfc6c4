"""Scores that ranks share: what they select together is what one process selects, bit by bit, for a few kilobytes."""

from __future__ import annotations

import processes
import pytest
import torch

from sfa_ext import ranks
from sfa_ext.selection.rows import best_rows
from sfa_ext.selection.sharded import CHUNK, message_bytes, select_topk

SIZES = [(40, 7), (5, 3), (1, 11), (64, 16), (3, 2)]
LIMIT = 100_000  # bytes that a rank may send in one pass


def scores(kind, dtype=torch.float32):
    """Matrices whose leading bits tell much or nothing."""
    g = torch.Generator().manual_seed(7)
    draw = {
        "normal": lambda s: torch.randn(s, generator=g),
        "squares": lambda s: torch.randn(s, generator=g).square() * 1e-12,
        "one digit": lambda s: 1 + torch.rand(s, generator=g) * 1e-6,
        "few values": lambda s: torch.randint(-3, 4, s, generator=g).float(),
        "equal": lambda s: torch.full(s, -2.5),
        "zeros": lambda s: torch.randn(s, generator=g) * (torch.rand(s, generator=g) < 0.1),
        "infinite": lambda s: torch.where(torch.rand(s, generator=g) < 0.2, -torch.inf, torch.randn(s, generator=g)),
    }[kind]
    return [draw(s).to(dtype) for s in SIZES]


def taken(share):
    g = torch.Generator().manual_seed(3)
    return [(torch.rand(a * b, generator=g) < share).nonzero().flatten() for a, b in SIZES]


KINDS = ("normal", "squares", "one digit", "few values", "equal", "zeros", "infinite")
CASES = [(kind, torch.float32, cut, share) for kind in KINDS for cut in ("rows", "uneven") for share in (0.0, 0.3)]
CASES += [("few values", dtype, "rows", 0.3) for dtype in (torch.float64, torch.bfloat16, torch.float16)]
CASES += [("normal", torch.float64, "uneven", 0.3)]


def cuts(rows, how):
    """Where each rank's part of `rows` rows begins and ends: as torch.chunk cuts, or very unevenly."""
    if how == "rows":
        most = -(-rows // ranks.size())
        edges = [min(r * most, rows) for r in range(ranks.size() + 1)]
    else:
        edges = [0] * ranks.size() + [rows] if rows < 6 else [0, *[rows - 3] * (ranks.size() - 1), rows]
    return edges[ranks.rank()], edges[ranks.rank() + 1]


def share_out(wholes, excluded, how):
    """This rank's part of each matrix and of its excluded positions, and where the part begins."""
    parts, left_out, begins = [], [], []
    for whole, index in zip(wholes, excluded, strict=True):
        begin, end = (edge * whole.shape[1] for edge in cuts(len(whole), how))
        parts.append(whole.flatten()[begin:end].view(-1, whole.shape[1]))
        left_out.append(index[(index >= begin) & (index < end)] - begin)
        begins.append(begin)
    return parts, left_out, begins


def select(kind, dtype, how, share):
    """Positions in the whole matrices that this rank takes, for several k, and the most bytes of a message."""
    wholes, excluded = scores(kind, dtype), taken(share)
    parts, left_out, begins = share_out(wholes, excluded, how)
    eligible = sum(s.numel() for s in wholes) - sum(len(e) for e in excluded)
    found = {}
    for k in (0, 1, 17, 500, eligible - 1, eligible):
        picked = select_topk(parts, left_out, k)
        found[k] = [(p + b).tolist() for p, b in zip(picked, begins, strict=True)]
    return found


def select_rows(how, kind):
    wholes = scores(kind)
    gone = [torch.arange(s.shape[1]) for s in wholes]  # the first row of each
    parts, left_out, begins = share_out(wholes, gone, how)
    return {
        room: [(p + b).tolist() for p, b in zip(best_rows(parts, left_out, room, True), begins, strict=True)]
        for room in (0, 16, 300, 1000, 10**6)
    }


def refused(how):
    """What each rank says of NaN that one of them holds, and of more than there is."""
    wholes = scores("normal")
    wholes[3][-1, -1] = torch.nan
    parts, left_out, _ = share_out(wholes, taken(0.0), how)
    messages = []
    for scores_, k in ((parts, 5), (share_out(scores("normal"), taken(0.0), how)[0], 10**6)):
        with pytest.raises(RuntimeError) as error:
            select_topk(scores_, left_out, k)
        messages.append(str(error.value))
    return messages


def all_cases():
    results = {case: select(*case) for case in CASES}
    results |= {("rows of", how, kind): select_rows(how, kind) for how in ("rows", "uneven") for kind in KINDS}
    return results | {("refused", how): refused(how) for how in ("rows", "uneven")}


@pytest.fixture(scope="module", params=[1, 2, 4])
def found(request):
    return processes.run(request.param, all_cases)


def joined(parts):
    """Of what each rank found, by k: the positions in each whole matrix."""
    return {k: [sum(pieces, []) for pieces in zip(*(p[k] for p in parts), strict=True)] for k in parts[0]}


@pytest.mark.parametrize("case", CASES, ids=lambda c: " ".join(map(str, c)).replace("torch.", ""))
def test_ranks_select_what_one_process_selects(found, case):
    kind, dtype, _, share = case
    for k, picked in joined([result[case] for result in found]).items():
        expected = torch.ops.sfa.select_topk(scores(kind, dtype), taken(share), k)
        assert picked == [e.tolist() for e in expected]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["rows", "uneven"])
def test_ranks_select_the_rows_that_one_process_selects(found, how, kind):
    gone = [torch.arange(s[1]) for s in SIZES]
    for room, picked in joined([result["rows of", how, kind] for result in found]).items():
        assert picked == [e.tolist() for e in best_rows(scores(kind), gone, room)]


@pytest.mark.parametrize("how", ["rows", "uneven"])
def test_every_rank_refuses_what_one_of_them_cannot_rank(found, how):
    messages = [result["refused", how] for result in found]
    assert all(m == messages[0] for m in messages)
    assert "scores[3] holds NaN" in messages[0][0] and "k must be at most" in messages[0][1]


def count_traffic(rows):
    """Bytes and messages of this rank while it selects from `rows` rows, and its largest message."""
    sizes, send = [], ranks.sum_
    g = torch.Generator().manual_seed(ranks.rank())
    parts = [torch.randn(rows, 1000, generator=g) for _ in range(200)]
    ranks.sum_ = lambda numbers: sizes.append(numbers.numel() * numbers.element_size()) or send(numbers)
    before = ranks.traffic.bytes
    select_topk(parts, [torch.empty(0, dtype=torch.int64)] * 200, 1000)
    ranks.sum_ = send
    return sizes, ranks.traffic.bytes - before


def test_a_pass_sends_a_histogram_whatever_the_number_of_scores():
    small, large = (processes.run(2, count_traffic, rows) for rows in (1, 20))
    assert small == large and small[0] == small[1]
    sizes, sent = small[0]
    assert sum(sizes) == sent and max(sizes) <= LIMIT
    assert sizes == message_bytes(200, 2) and max(message_bytes(200, 1024)) <= LIMIT


def test_ranking_takes_little_memory_beside_the_scores():
    """5 % at 100 million weights: what is looked at together has a fixed size."""
    from benchmarks.timing import peak_bytes
    from sfa_ext.selection.sharded import leading_counts

    score = torch.randn(16 * CHUNK)
    none = torch.empty(0, dtype=torch.int64)
    leading_counts([score[:CHUNK]], [none], 10, [1], shared=False)
    extra = peak_bytes(lambda: leading_counts([score], [none], 1000, [1], shared=False))
    if extra is None:
        pytest.skip("this system does not tell a process's memory")
    assert extra <= 0.05 * 4 * 100e6
