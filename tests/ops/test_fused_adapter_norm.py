"""torch.ops.sfa.fused_adapter_norm and its backward."""

from __future__ import annotations

import pytest
import torch
from adapter_math import (
    BOUND,
    DTYPES,
    ODD_AND_SERVED,
    SIZES,
    adapter_norm,
    assert_accurate,
    draw_norm,
    dtype_name,
    error,
    in_double,
    result_and_gradients,
    size_name,
    with_grad,
)
from torch.library import opcheck

fused_adapter_norm = torch.ops.sfa.fused_adapter_norm
fused_adapter_norm_backward = torch.ops.sfa.fused_adapter_norm_backward
HALF = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("size", [size for size in SIZES if size[1] > 1], ids=size_name)
@pytest.mark.parametrize(
    ("dtype", "wide"),
    [*((dtype, dtype) for dtype in DTYPES), *((dtype, torch.float32) for dtype in HALF)],
    ids=[*map(dtype_name, DTYPES), *(f"{dtype_name(dtype)}_in_float32" for dtype in HALF)],
)
def test_result_and_gradients_are_accurate(dtype, wide, size, device):
    args = draw_norm(size, dtype, device, bias=size[0] % 2 == 0, wide=wide)
    grad_out = torch.randn_like(args[0])
    ours = result_and_gradients(fused_adapter_norm, args, grad_out)
    eager = result_and_gradients(adapter_norm, args, grad_out)
    assert_accurate(ours, eager, result_and_gradients(adapter_norm, in_double(args), grad_out.double()), dtype)


def test_a_single_column_is_normed_to_the_bias(device):
    args = draw_norm((4, 1, 1), torch.float32, device)
    assert torch.allclose(fused_adapter_norm(*args), args[0] + args[7])


def test_norm_of_a_large_constant_row_stays_exact(device):
    """The variance comes from the differences: 1000 + noise of 0.01 would be lost in a mean of squares."""
    args = draw_norm((20, 96, 8), torch.float32, device)
    args[1] = 1000 + 0.01 * torch.randn_like(args[1])
    args[4].zero_(), args[5].zero_()
    assert error(fused_adapter_norm(*args), adapter_norm(*in_double(args))) < 1e-2


@pytest.mark.parametrize("size", ODD_AND_SERVED, ids=size_name)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_strided_and_unaligned_inputs(dtype, size, device):
    args = draw_norm(size, dtype, device)
    expected = fused_adapter_norm(*args)
    strided = [a.t().contiguous().t() if isinstance(a, torch.Tensor) and a.dim() == 2 else a for a in args]
    assert torch.equal(fused_adapter_norm(*strided), expected)

    def amid_nan(t):
        buffer = torch.full((t.numel() + 65,), torch.nan, dtype=t.dtype, device=device)
        return buffer[1 : t.numel() + 1].view(t.shape).copy_(t)

    args = [amid_nan(a) if isinstance(a, torch.Tensor) else a for a in args]
    assert torch.equal(fused_adapter_norm(*args), expected)


def test_no_rows(device):
    args = with_grad(draw_norm((0, 10, 4), torch.float32, device))
    fused_adapter_norm(*args).sum().backward()
    assert all(a.grad.shape == a.shape and not a.grad.any() for a in args[:-1])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_same_bits_for_any_number_of_threads(dtype):
    args = draw_norm((4500, 64, 40), dtype)
    grad_out = torch.randn_like(args[0])
    torch.set_num_threads(1)
    one = result_and_gradients(fused_adapter_norm, args, grad_out)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, one, result_and_gradients(fused_adapter_norm, args, grad_out)))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_a_row_has_the_same_bits_among_few_and_many_on_any_threads(dtype):
    if f"{dtype_name(dtype)} by torch" in torch.ops.sfa.cpu_isa():
        pytest.skip("torch computes this type here, and its products may differ with their number of rows")
    residual, x, *weights = draw_norm((700, 50, 70), dtype)
    many = fused_adapter_norm(residual, x, *weights)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.equal(fused_adapter_norm(residual[:23], x[:23], *weights), many[:23])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=dtype_name)
@pytest.mark.parametrize("size", [(9, 35, 7), (9, 40, 8)], ids=size_name)
@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_infinity_and_nan_spread_as_in_eager(value, size, dtype, device):
    for where in (0, 1, 2, 6, 7):  # residual, x, w_down, norm_weight, norm_bias
        args = draw_norm(size, dtype, device)
        args[where].view(-1)[11] = value
        got, eager = fused_adapter_norm(*args), adapter_norm(*args)
        assert torch.equal(got.isnan(), eager.isnan()) and torch.equal(got.isinf(), eager.isinf())


@pytest.mark.parametrize("wanted", range(7), ids=["x", "w_down", "b_down", "w_up", "b_up", "norm_weight", "norm_bias"])
@pytest.mark.parametrize("size", ODD_AND_SERVED, ids=size_name)
def test_backward_computes_only_what_is_asked(size, wanted, device):
    residual, *args, _, eps = draw_norm(size, torch.float32, device)
    every = fused_adapter_norm_backward(residual, *args, eps, [True] * 7)
    only = fused_adapter_norm_backward(residual, *args, eps, [i == wanted for i in range(7)])
    for i, (got, full) in enumerate(zip(only, every, strict=True)):
        assert torch.equal(got, full) if i == wanted else got.numel() == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_backward_gives_the_same_with_numbers_kept(dtype, device):
    args = draw_norm((50, 20, 9), dtype, device)
    out, hidden, adapted = torch.ops.sfa.fused_adapter_norm_keep(*args, True)
    assert torch.equal(out, fused_adapter_norm(*args))
    kept = (torch.ops.sfa.fused_adapter(*args[1:6]), *torch.ops.sfa.fused_adapter_keep(*args[1:6])[1:])
    assert torch.equal(adapted, kept[0]) and torch.equal(hidden, kept[1])
    common = (args[0], *args[1:7], args[-1], [True] * 7)
    again = fused_adapter_norm_backward(*common)
    for given in ((hidden,), (None, adapted), (hidden, adapted)):
        for got, true in zip(fused_adapter_norm_backward(*common, *given), again, strict=True):
            assert error(got, true.double()) <= BOUND[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_opcheck(dtype, device):
    residual, *args = draw_norm((6, 8, 4), dtype, device)
    opcheck(fused_adapter_norm, tuple(with_grad([residual, *args])))
    for keep_adapted in (False, True):
        opcheck(torch.ops.sfa.fused_adapter_norm_keep, (residual, *args, keep_adapted))
    mask = [True, False, True, True, False, True, False]
    opcheck(fused_adapter_norm_backward, (torch.randn_like(residual), *args[:6], args[-1], mask))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_first_and_second_derivatives(bias, device):
    args = with_grad(draw_norm((3, 5, 4), torch.float64, device, bias))
    assert torch.autograd.gradcheck(fused_adapter_norm, args)
    assert torch.autograd.gradgradcheck(fused_adapter_norm, args)


def test_compiles_into_one_graph_and_runs(device):
    args = draw_norm((40, 16, 8), torch.float32, device)
    compiled = torch.compile(lambda *args: fused_adapter_norm(*args), fullgraph=True)
    grad_out = torch.randn_like(args[0])
    expected = result_and_gradients(fused_adapter_norm, args, grad_out)
    for got, true in zip(result_and_gradients(compiled, args, grad_out), expected, strict=True):
        assert error(got, true.double()) < 1e-6


@pytest.mark.parametrize("dtype", HALF, ids=dtype_name)
def test_autocast_keeps_the_stream_of_residuals_in_float32(dtype, device):
    args = draw_norm((30, 16, 8), torch.float32, device)
    leaves = with_grad(args)
    with torch.autocast(device.type, dtype):
        out = fused_adapter_norm(*leaves)
        eager = adapter_norm(*args)
    assert out.dtype == eager.dtype == torch.float32
    assert error(out.detach(), eager.double()) < 1e-2
    out.sum().backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves[:-1])


BAD = {
    "residual too short": (0, (2, 6), torch.float32, "residual must be the shape of x = [3, 6], got [2, 6]"),
    "residual in float64": (
        0,
        (3, 6),
        torch.float64,
        "residual must be float32 (the dtype of x is float32), got float64",
    ),
    "w_up transposed": (4, (4, 6), torch.float32, "w_up must be [D, d] = [6, 4], got [4, 6]"),
    "norm_weight too long": (6, (7,), torch.float32, "norm_weight must be [D] = [6], got [7]"),
    "norm_bias in half": (
        7,
        (6,),
        torch.float16,
        "norm_bias must be float32 (the dtype of norm_weight is float32), got float16",
    ),
}


@pytest.mark.parametrize(("place", "shape", "dtype", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(place, shape, dtype, message):
    args = draw_norm((3, 6, 4), torch.float32)
    args[place] = torch.zeros(shape, dtype=dtype)
    for tracked in (False, True):
        with pytest.raises(RuntimeError) as caught:
            fused_adapter_norm(*(a.requires_grad_(tracked) if isinstance(a, torch.Tensor) else a for a in args))
        assert str(caught.value) == message
    with torch.inference_mode(), pytest.raises(RuntimeError):
        fused_adapter_norm(*args)


def test_bad_eps_is_named():
    args = draw_norm((3, 6, 4), torch.float32)
    with pytest.raises(RuntimeError, match="^eps must not be negative, got -1.0$"):
        fused_adapter_norm(*args[:-1], -1.0)
    with torch.inference_mode(), pytest.raises(RuntimeError):
        fused_adapter_norm(*args[:-1], -1.0)


def test_bad_residual_of_a_half_type_lists_what_is_allowed():
    args = draw_norm((3, 6, 4), torch.bfloat16, wide=torch.float16)
    with pytest.raises(RuntimeError, match="^residual must be bfloat16 or float32 .*, got float16$"):
        fused_adapter_norm(*args)


def test_bad_kept_numbers_are_named():
    residual, *args, _, eps = draw_norm((3, 6, 4), torch.float32)
    common = (residual, *args, eps, [True] * 7)
    with pytest.raises(RuntimeError, match=r"^hidden must be \[..., d\] = \[3, 4\], got \[3, 5\]$"):
        fused_adapter_norm_backward(*common, torch.zeros(3, 5))
    with pytest.raises(RuntimeError, match=r"^adapted must be \[..., D\] = \[3, 6\], got \[3, 5\]$"):
        fused_adapter_norm_backward(*common, None, torch.zeros(3, 5))
    with pytest.raises(RuntimeError, match="^adapted must be float32 .*, got float64$"):
        fused_adapter_norm_backward(*common, None, torch.zeros(3, 6, dtype=torch.float64))
