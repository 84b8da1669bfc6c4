"""Triton's kernels in its interpreter, on small tensors cut into small chunks; run by test_triton_interpreted.py in a
process of its own, since Triton decides at import whether it interprets."""

from __future__ import annotations

import pytest
import test_select_topk
import torch
from adapter_math import (
    adapter,
    adapter_norm,
    assert_accurate,
    draw,
    draw_norm,
    dtype_name,
    in_double,
    result_and_gradients,
    size_name,
)
from test_sparse_adamw import Entries, step

from sfa_ext.ops.triton import selection, topk

# rows, D, d: less than a tile, parts of tiles, whole tiles, and more columns than fit on the chip
SIZES = ((1, 1, 1), (5, 7, 3), (47, 100, 33), (64, 128, 64), (20, 600, 24))
TYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    for module, sizes in ((selection, (256, 64)), (topk, (256, 64))):
        monkeypatch.setattr(module, "CHUNK", sizes[0])
        monkeypatch.setattr(module, "BLOCK", sizes[1])
    monkeypatch.setattr(topk, "MARK_CHUNK", 32)
    monkeypatch.setattr(topk, "PROGRAMS", 3)


@pytest.mark.parametrize("size", SIZES, ids=size_name)
@pytest.mark.parametrize("dtype", TYPES, ids=dtype_name)
def test_adapter(dtype, size, device):
    args = draw(size, dtype, device, bias=size[0] % 2 == 0)
    compare(torch.ops.sfa.fused_adapter, adapter, args, dtype)


@pytest.mark.parametrize("size", SIZES[1:], ids=size_name)
@pytest.mark.parametrize("wide", [None, torch.float32], ids=["", "in_float32"])
@pytest.mark.parametrize("dtype", TYPES, ids=dtype_name)
def test_adapter_norm(dtype, wide, size, device):
    args = draw_norm(size, dtype, device, bias=size[0] % 2 == 0, wide=wide)
    compare(torch.ops.sfa.fused_adapter_norm, adapter_norm, args, dtype)


def compare(ours, eager, args, dtype):
    grad_out = torch.randn_like(args[0])
    exact = result_and_gradients(eager, in_double(args), grad_out.double())
    got = result_and_gradients(ours, args, grad_out)
    theirs = result_and_gradients(eager, args, grad_out)
    assert_accurate(got, theirs, exact, dtype)
    with torch.no_grad():  # without gradients another operator serves, which keeps nothing
        assert torch.equal(ours(*args), got[0])


def test_hidden_numbers_are_computed_again_where_they_were_not_kept(device):
    args = draw((50, 40, 9), torch.float32, device)
    grad_out = torch.randn_like(args[0])
    backward = torch.ops.sfa.fused_adapter_backward
    again = backward(grad_out, *args[:4], [True] * 5)
    exact = result_and_gradients(adapter, in_double(args), grad_out.double())[1:]
    assert_accurate(again, exact_in(exact, torch.float32), exact, torch.float32)
    norm = draw_norm((50, 40, 9), torch.float32, device)
    residual, *rest, _, eps = norm
    again = torch.ops.sfa.fused_adapter_norm_backward(grad_out, *rest, eps, [True] * 7)
    exact = result_and_gradients(adapter_norm, in_double(norm), grad_out.double())[2:]
    assert_accurate(again, exact_in(exact, torch.float32), exact, torch.float32)


def exact_in(tensors, dtype):
    return [t.to(dtype) for t in tensors]


def test_what_no_kernel_covers_is_computed_by_torch(device):
    for args in (draw((6, 9, 4), torch.float64, device), draw((6, 9, 300), torch.float32, device)):
        compare(torch.ops.sfa.fused_adapter, adapter, args, args[0].dtype)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *(("random", dtype) for dtype in test_select_topk.DTYPES),
        *((kind, torch.float32) for kind in ("all-equal", "many-zero", "same-leading-bits")),
        *(("infinite", dtype) for dtype in (torch.bfloat16, torch.float64)),
    ],
)
def test_select_topk_agrees_with_a_stable_sort(kind, dtype, device):
    sizes = [(7, 11), (1,), (0, 5), (9, 70), (3, 1, 50)]
    scores = [test_select_topk.KINDS[kind](torch.Size(s).numel()).view(s).to(device, dtype) for s in sizes]
    excluded = [torch.rand(s.numel()).lt(0.3).nonzero().flatten() for s in scores]
    eligible = sum(s.numel() - e.numel() for s, e in zip(scores, excluded, strict=True))
    cases = [(test_select_topk.none_excluded(scores), 200), (excluded, eligible // 3)]
    for left_out, k in [*cases, (excluded, 0), (excluded, eligible)] if kind == "random" else cases:
        want = test_select_topk.by_stable_sort(scores, left_out, k)
        for got, positions in zip(torch.ops.sfa.select_topk(scores, left_out, k), want, strict=True):
            assert torch.equal(got, positions)


@pytest.mark.parametrize("positions", [[2, 1], [3, 3], [4, 700], [-1, 3]], ids=str)
def test_select_topk_refuses_bad_positions_and_touches_nothing(positions, device):
    scores = [torch.randn(5), torch.randn(600)]
    with pytest.raises(RuntimeError, match=r"excluded\[1\] must be"):
        torch.ops.sfa.select_topk(scores, [torch.empty(0, dtype=torch.int64), torch.tensor(positions)], 3)


def test_sparse_adamw_leaves_alone_what_is_out_of_range(device):
    """No kernel waits to be told: what would be an access out of range is left out."""
    good = Entries.draw((30, 20), torch.float32, rounds=2)
    n = len(good.index)
    index = torch.cat([torch.tensor([-5]), good.index, torch.tensor([600, 2**40])])
    numbers = torch.cat([torch.zeros(1), good.rounds, torch.zeros(2)]).to(torch.int16)
    numbers[3:6] = torch.tensor([2, -1, 7], dtype=torch.int16)  # not selected yet, and not there
    bad, grad = Entries.__new__(Entries), torch.randn(30, 20)
    bad.weight, bad.index, bad.rounds = good.weight.clone(), index, numbers
    bad.master, bad.exp_avg, bad.exp_avg_sq = (torch.zeros(n + 3) for _ in range(3))
    ages = torch.tensor([3, 0, -1])
    selection.sparse_adamw_(
        *([t] for t in (bad.weight, grad, bad.index, bad.rounds, bad.exp_avg, bad.exp_avg_sq)),
        [], ages, 0.1, 0.9, 0.99, 1e-8, 0.1,
    )  # fmt: skip
    assert ages.tolist() == [4, 1, -1]
    step([good], [grad], torch.tensor([3, 0, -1]), lr=0.1, beta2=0.99, eps=1e-8, weight_decay=0.1)
    left = torch.ones(n, dtype=torch.bool)
    left[2:5] = False
    torch.testing.assert_close(bad.weight.flatten()[good.index[left]], good.weight.flatten()[good.index[left]])
    others = torch.ones(600, dtype=torch.bool)
    others[good.index[left]] = False
    assert torch.equal(bad.weight.flatten()[others], good.start.flatten()[others])


def test_swap_values_leaves_alone_what_is_out_of_range(device):
    weight, values = torch.arange(600.0), -torch.arange(1.0, 5.0)
    selection.swap_values_(weight, torch.tensor([-3, 7, 599, 600]), values)
    assert values.tolist() == [-1, 7, 599, -4] and weight[7] == -2 and weight[599] == -3
    assert int((weight != torch.arange(600.0)).sum()) == 2
