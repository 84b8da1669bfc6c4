"""torch.ops.sfa.fused_adapter and its backward."""

from __future__ import annotations

import pytest
import torch
from adapter_math import (
    BOUND,
    DTYPES,
    ODD_AND_SERVED,
    SIZES,
    adapter,
    assert_accurate,
    draw,
    dtype_name,
    error,
    in_double,
    result_and_gradients,
    size_name,
    with_grad,
)
from torch.library import opcheck

fused_adapter = torch.ops.sfa.fused_adapter
fused_adapter_backward = torch.ops.sfa.fused_adapter_backward


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("size", SIZES, ids=size_name)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_result_and_gradients_are_accurate(dtype, size, bias, device):
    args = draw(size, dtype, device, bias)
    grad_out = torch.randn_like(args[0])
    ours = result_and_gradients(fused_adapter, args, grad_out)
    eager = result_and_gradients(adapter, args, grad_out)
    assert_accurate(ours, eager, result_and_gradients(adapter, in_double(args), grad_out.double()), dtype)


@pytest.mark.parametrize("size", ODD_AND_SERVED, ids=size_name)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_strided_and_unaligned_inputs(dtype, size, device):
    x, w_down, b_down, w_up, b_up = draw(size, dtype, device)
    expected = fused_adapter(x, w_down, b_down, w_up, b_up)
    strided = x.t().contiguous().t(), w_down.t().contiguous().t(), b_down, w_up.t().contiguous().t(), b_up
    assert torch.equal(fused_adapter(*strided), expected)

    def amid_nan(t):  # one number off any alignment; what lies around it must not be read
        buffer = torch.full((t.numel() + 65,), torch.nan, dtype=dtype, device=device)
        view = buffer[1 : t.numel() + 1].view(t.shape)
        return view.copy_(t)

    args = [amid_nan(t) for t in (x, w_down, b_down, w_up, b_up)]
    assert torch.equal(fused_adapter(*args), expected)
    grad_out = torch.randn_like(x)
    wanted = [True] * 5
    for got, true in zip(
        fused_adapter_backward(amid_nan(grad_out), *args[:4], wanted),
        fused_adapter_backward(grad_out, x, w_down, b_down, w_up, wanted),
        strict=True,
    ):
        assert torch.equal(got, true)


def test_any_number_of_leading_dimensions(device):
    # Sizes that the CUDA kernels serve: torch's products add in another order for a single row.
    x, *weights = draw((24, 16, 8), torch.float32, device)
    expected = fused_adapter(x, *weights)
    assert torch.equal(fused_adapter(x.view(2, 3, 4, 16), *weights), expected.view(2, 3, 4, 16))
    assert torch.equal(fused_adapter(x[0], *weights), expected[0])
    x = x.view(2, 12, 16).requires_grad_()
    fused_adapter(x, *weights).sum().backward()  # the gradient of a sum is expanded, with strides of 0
    assert x.grad.shape == x.shape


def test_no_rows(device):
    args = with_grad(draw((0, 10, 4), torch.float32, device))
    out = fused_adapter(*args)
    assert out.shape == (0, 10)
    out.sum().backward()
    assert args[0].grad.shape == (0, 10)
    assert all(a.grad.shape == a.shape and not a.grad.any() for a in args[1:])


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_same_bits_for_any_number_of_threads(dtype):
    args = draw((4500, 64, 40), dtype)
    grad_out = torch.randn_like(args[0])
    torch.set_num_threads(1)
    one = result_and_gradients(fused_adapter, args, grad_out)
    for threads in (2, 3):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, one, result_and_gradients(fused_adapter, args, grad_out)))


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("rows", [1, 23, 64])
def test_a_row_has_the_same_bits_among_few_and_many_on_any_threads(dtype, rows):
    if f"{dtype_name(dtype)} by torch" in torch.ops.sfa.cpu_isa():
        pytest.skip("torch computes this type here, and its products may differ with their number of rows")
    x, *weights = draw((700, 50, 70), dtype)
    many = fused_adapter(x, *weights)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.equal(fused_adapter(x[:rows], *weights), many[:rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=dtype_name)
@pytest.mark.parametrize("size", [(9, 35, 7), (9, 40, 8)], ids=size_name)
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_infinity_and_nan_spread_as_in_eager(value, size, dtype, device):
    for where in range(4):  # x, w_down, b_down, w_up
        args = draw(size, dtype, device)
        args[where].view(-1)[11 % args[where].numel()] = value
        for got, eager in zip(
            result_and_gradients(fused_adapter, args, torch.ones_like(args[0])),
            result_and_gradients(adapter, args, torch.ones_like(args[0])),
            strict=True,
        ):
            assert torch.equal(got.isnan(), eager.isnan())
            assert torch.equal(got.isposinf(), eager.isposinf()) and torch.equal(got.isneginf(), eager.isneginf())


@pytest.mark.parametrize("wanted", range(5), ids=["x", "w_down", "b_down", "w_up", "b_up"])
@pytest.mark.parametrize("size", ODD_AND_SERVED, ids=size_name)
def test_backward_computes_only_what_is_asked(size, wanted, device):
    args = draw(size, torch.float32, device)
    grad_out = torch.randn_like(args[0])
    every = fused_adapter_backward(grad_out, *args[:4], [True] * 5)
    only = fused_adapter_backward(grad_out, *args[:4], [i == wanted for i in range(5)])
    for i, (got, full) in enumerate(zip(only, every, strict=True)):
        assert torch.equal(got, full) if i == wanted else got.numel() == 0


@pytest.mark.parametrize("size", ODD_AND_SERVED, ids=size_name)
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
def test_backward_gives_the_same_with_hidden_numbers_kept(dtype, size, device):
    args = draw(size, dtype, device)
    grad_out = torch.randn_like(args[0])
    out, hidden = torch.ops.sfa.fused_adapter_keep(*args)
    assert torch.equal(out, fused_adapter(*args)) and hidden.shape == (size[0], size[2])
    again = fused_adapter_backward(grad_out, *args[:4], [True] * 5)
    for got, true in zip(fused_adapter_backward(grad_out, *args[:4], [True] * 5, hidden), again, strict=True):
        assert error(got, true.double()) <= BOUND[dtype]


def test_frozen_arguments_get_no_gradient(device):
    x, w_down, b_down, w_up, b_up = draw((50, 20, 9), torch.float32, device)
    w_up.requires_grad_()
    fused_adapter(x, w_down, b_down, w_up, b_up).square().sum().backward()
    assert w_up.grad is not None and x.grad is None and w_down.grad is None


@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_opcheck(dtype, bias, device):
    args = draw((6, 8, 4), dtype, device, bias)
    opcheck(fused_adapter, tuple(with_grad(args)))
    opcheck(torch.ops.sfa.fused_adapter_keep, tuple(args))
    opcheck(fused_adapter_backward, (torch.randn_like(args[0]), *args[:4], [True, False, bias, True, False]))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_first_and_second_derivatives(bias, device):
    args = with_grad(draw((3, 5, 4), torch.float64, device, bias))
    assert torch.autograd.gradcheck(fused_adapter, args)
    assert torch.autograd.gradgradcheck(fused_adapter, args)


def test_compiles_into_one_graph_and_runs(device):
    args = draw((40, 16, 8), torch.float32, device)

    def step(*args):
        return fused_adapter(*args).sin()

    compiled = torch.compile(step, fullgraph=True)
    grad_out = torch.randn_like(args[0])
    expected = result_and_gradients(step, args, grad_out)
    for got, true in zip(result_and_gradients(compiled, args, grad_out), expected, strict=True):
        assert error(got, true.double()) < 1e-6


def test_exports_with_a_dynamic_number_of_rows():
    class Model(torch.nn.Module):
        def forward(self, x, w_down, b_down, w_up, b_up):
            return fused_adapter(x, w_down, b_down, w_up, b_up)

    args = draw((6, 16, 8), torch.float32)
    program = torch.export.export(Model(), tuple(args), dynamic_shapes=({0: torch.export.Dim("rows")}, *[None] * 4))
    assert any("sfa" in str(node.target) for node in program.graph.nodes)
    longer = [torch.randn(25, 16), *args[1:]]
    assert torch.equal(program.module()(*longer), fused_adapter(*longer))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=dtype_name)
def test_autocast(dtype, device):
    args = draw((30, 16, 8), torch.float32, device)
    leaves = with_grad(args)
    with torch.autocast(device.type, dtype):
        out = fused_adapter(*leaves)
    assert out.dtype == dtype
    assert torch.equal(out, fused_adapter(*(a.to(dtype) for a in args)))
    out.sum().backward()
    assert all(leaf.grad.dtype == torch.float32 for leaf in leaves)


def test_autocast_leaves_float64_alone(device):
    args = draw((3, 4, 2), torch.float64, device)
    with torch.autocast(device.type, torch.bfloat16):
        assert fused_adapter(*args).dtype == torch.float64


def test_inference_mode(device):
    args = draw((30, 16, 8), torch.float32, device)
    with torch.inference_mode():
        assert torch.equal(fused_adapter(*args), fused_adapter(*(a.clone() for a in args)))


F32, F64 = torch.float32, torch.float64
BAD = {
    "x without dimensions": (0, (), F32, "x must be [..., D], got a tensor without dimensions: []"),
    "x with no columns": (0, (3, 0), F32, "x must be [..., D] with D at least 1, got [3, 0]"),
    "x of integers": (0, (3, 6), torch.int64, "x must be float32, float64, bfloat16 or float16, got int64"),
    "w_down not a matrix": (1, (6,), F32, "w_down must be [d, D], got [6]"),
    "w_down too wide": (1, (4, 7), F32, "w_down must be [d, D] = [4, 6], got [4, 7]"),
    "w_down in float64": (1, (4, 6), F64, "w_down must be float32 (the dtype of x is float32), got float64"),
    "b_down too long": (2, (5,), F32, "b_down must be [d] = [4], got [5]"),
    "w_up transposed": (3, (4, 6), F32, "w_up must be [D, d] = [6, 4], got [4, 6]"),
    "w_up in float64": (3, (6, 4), F64, "w_up must be float32 (the dtype of x is float32), got float64"),
    "b_up a matrix": (4, (1, 6), F32, "b_up must be [D] = [6], got [1, 6]"),
    "b_up in half": (4, (6,), torch.float16, "b_up must be float32 (the dtype of x is float32), got float16"),
}


@pytest.mark.parametrize(("place", "shape", "dtype", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(place, shape, dtype, message):
    args = draw((3, 6, 4), torch.float32)
    args[place] = torch.zeros(shape, dtype=dtype)
    for tracked in (False, True):
        with pytest.raises(RuntimeError) as caught:
            fused_adapter(*(a.requires_grad_(tracked and a.is_floating_point()) for a in args))
        assert str(caught.value) == message
    with torch.inference_mode(), pytest.raises(RuntimeError):
        fused_adapter(*args)


def test_bad_device_is_named():
    args = draw((3, 6, 4), torch.float32)
    args[3] = args[3].to("meta")
    with pytest.raises(RuntimeError, match="^w_up must be on cpu as x is, got meta$"):
        fused_adapter(*args)


def test_bad_gradient_is_named():
    args = draw((3, 6, 4), torch.float32)
    with pytest.raises(RuntimeError, match=r"^grad_out must be the shape of x = \[3, 6\], got \[3, 5\]$"):
        fused_adapter_backward(torch.zeros(3, 5), *args[:4], [True] * 5)
    with pytest.raises(RuntimeError, match=r"^hidden must be \[..., d\] = \[3, 4\], got \[3, 5\]$"):
        fused_adapter_backward(torch.zeros(3, 6), *args[:4], [True] * 5, torch.zeros(3, 5))
    with pytest.raises(RuntimeError, match="^output_mask must have 5 entries, got 4$"):
        fused_adapter_backward(torch.zeros(3, 6), *args[:4], [True] * 4)
