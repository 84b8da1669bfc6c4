"""The adapter's CUDA kernels on a GPU, at sizes that lead them into each of their plans (csrc/cuda/adapter_plan.h)."""

from __future__ import annotations

import pytest
import torch
from adapter_math import (
    adapter,
    adapter_norm,
    assert_accurate,
    dtype_name,
    error,
    in_double,
    result_and_gradients,
    size_name,
)

import sfa_ext

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
    pytest.mark.skipif(sfa_ext.ops.backends()["fused_adapter"]["cuda"] != "cuda", reason="no CUDA kernels are in use"),
]
DEVICE = "cuda"
# rows, D, d. Blocks are of 128 rows where every multiprocessor gets one, of 32 in small problems. With many columns x
# does not stay in shared memory, with few the weights stay as well. From 72 hidden numbers on they are taken 128 at a
# time.
SIZES = (
    (33, 128, 64),
    (300, 264, 40),
    (300, 1544, 72),
    (70, 520, 200),
    (22000, 128, 64),
    (22000, 256, 64),
    (22000, 256, 128),
    (22000, 512, 256),
)
OPS = {"adapter": (torch.ops.sfa.fused_adapter, adapter), "norm": (torch.ops.sfa.fused_adapter_norm, adapter_norm)}


def draw(name, size, dtype):
    """Arguments whose hidden numbers are computed exactly and are not zero before the relu: where rounding decides
    whether a hidden number lives, gradients jump."""
    rows, width, hidden = size
    x, w_down = (torch.randint(-3, 4, s, device=DEVICE) for s in ((rows, width), (hidden, width)))
    b_down = torch.randint(-8, 9, (hidden,), device=DEVICE) + 0.5
    w_up, b_up = torch.randn(width, hidden, device=DEVICE) * hidden**-0.5, torch.randn(width, device=DEVICE)
    args = [t.to(dtype) for t in (x, w_down / 64, b_down / 64, w_up, b_up)]
    if name == "norm":
        residual, *norm = (torch.randn(s, device=DEVICE, dtype=dtype) for s in ((rows, width), width, width))
        return [residual, *args, *norm, 1e-5]
    return args


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("size", SIZES, ids=size_name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=dtype_name)
def test_every_plan_is_accurate_and_gives_the_same_bits_again(dtype, size, name):
    op, eager = OPS[name]
    args = draw(name, size, dtype)
    grad_out = torch.randn_like(args[0])
    ours = result_and_gradients(op, args, grad_out)
    exact = result_and_gradients(eager, in_double(args), grad_out.double())
    assert_accurate(ours, result_and_gradients(eager, args, grad_out), exact, dtype)
    for _ in range(3):  # a race would show sooner or later
        assert all(map(torch.equal, ours, result_and_gradients(op, args, grad_out)))


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("size", SIZES, ids=size_name)
def test_tf32_is_used_where_torch_allows_it(size, name, monkeypatch):
    op, eager = OPS[name]
    args = draw(name, size, torch.float32)
    grad_out = torch.randn_like(args[0])
    exact = result_and_gradients(eager, in_double(args), grad_out.double())
    monkeypatch.setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32")
    for got, true in zip(result_and_gradients(op, args, grad_out), exact, strict=True):
        assert error(got, true) < 2e-3
    if torch.cuda.get_device_capability() >= (8, 0):
        with torch.no_grad():
            assert error(op(*args), exact[0]) > 1e-5


def test_work_is_queued_on_the_current_stream():
    """What comes before on it is waited for: without that the operators would see zeros."""
    args, scores = draw("adapter", (70, 128, 64), torch.bfloat16), torch.randn(5000, device=DEVICE)
    expected, (positions,) = (
        torch.ops.sfa.fused_adapter(*args),
        torch.ops.sfa.select_topk([scores], [none_excluded()], 70),
    )
    late_x, late_scores, sums = torch.zeros_like(args[0]), torch.zeros_like(scores), torch.zeros_like(scores)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(100_000_000)
        late_x.copy_(args[0])
        late_scores.copy_(scores)
        out = torch.ops.sfa.fused_adapter(late_x, *args[1:])
        torch.ops.sfa.accumulate_scores_([sums], [late_scores], "gradient")
        (found,) = torch.ops.sfa.select_topk([late_scores], [none_excluded()], 70)
        torch.cuda.current_stream().synchronize()
    assert torch.equal(out, expected) and torch.equal(sums, scores) and torch.equal(found, positions)


def none_excluded():
    return torch.empty(0, dtype=torch.int64, device=DEVICE)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
def test_a_cuda_graph_holds_forward_and_backward(dtype, name):
    op, _ = OPS[name]
    fixed, other = (draw(name, (300, 128, 64), dtype) for _ in range(2))
    grad_out = torch.randn_like(fixed[0])
    expected = result_and_gradients(op, other, grad_out)
    leaves = [a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in fixed]
    tensors = [a for a in leaves if isinstance(a, torch.Tensor)]

    def step():
        out = op(*leaves)
        return [out, *torch.autograd.grad(out, tensors, grad_out)]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()  # what is made at the first call only, cuBLAS's workspace for one, is not captured
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        for to, values in zip(tensors, [a for a in other if isinstance(a, torch.Tensor)], strict=True):
            to.copy_(values)
    graph.replay()
    for got, true in zip(captured, expected, strict=True):
        assert error(got.detach(), true.double()) < (1e-6 if dtype == torch.float32 else 1e-2)
