"""torch.ops.sfa.swap_values_: an exchange in place that keeps every bit."""

from __future__ import annotations

import pytest
import torch

import sfa_ext  # noqa: F401  registers torch.ops.sfa
from sfa_ext.ops import reference_selection

swap_values_ = torch.ops.sfa.swap_values_
DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.complex128,
    torch.int64,
    torch.uint8,
    torch.bool,
]


def name(dtype):
    return str(dtype).removeprefix("torch.")


def random_bits(shape, dtype, device):
    """Every pattern of bits, NaN of any payload among them."""
    size = 1 if dtype == torch.bool else torch.empty(0, dtype=dtype).element_size()
    high = 2 if dtype == torch.bool else 256
    return torch.randint(0, high, (*shape[:-1], shape[-1] * size), dtype=torch.uint8, device=device).view(dtype)


def bits(tensor):
    return tensor.view(torch.uint8).clone()


@pytest.fixture(params=["operator", "reference"])
def swap(request):
    return swap_values_ if request.param == "operator" else reference_selection.swap_values_


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
@pytest.mark.parametrize("k", [0, 1000], ids="k={}".format)
@pytest.mark.parametrize("positions", [torch.int64, torch.int32], ids=name)
def test_exchanges_every_bit_and_nothing_else(swap, positions, k, dtype, device):
    weight, values = random_bits((60, 50), dtype, device), random_bits((k,), dtype, device)
    index = torch.randperm(3000, device=device)[:k].sort().values.to(positions)
    weight_before, values_before = bits(weight), bits(values)
    swap(weight, index, values)
    selected = torch.zeros(3000, dtype=torch.bool, device=device)
    selected[index.long()] = True
    entries, entries_before = bits(weight).view(3000, -1), weight_before.view(3000, -1)
    assert torch.equal(entries[~selected], entries_before[~selected])
    assert torch.equal(entries[selected].flatten(), values_before)
    assert torch.equal(bits(values), entries_before[selected].flatten())
    swap(weight, index, values)
    assert torch.equal(bits(weight), weight_before) and torch.equal(bits(values), values_before)


def test_every_entry_and_a_weight_without_dimensions(swap):
    weight, values = torch.arange(70000.0), -torch.arange(70000.0)
    swap(weight, torch.arange(70000), values)
    assert torch.equal(weight, -values) and values[1] == 1
    weight, values = torch.tensor(3.0), torch.tensor([4.0])
    swap(weight, torch.tensor([0]), values)
    assert weight == 4 and values.tolist() == [3.0]


def test_neighbours_of_unaligned_views_stay():
    memory = torch.arange(100.0)
    swap_values_(memory[3:50], torch.tensor([0, 46]), memory[61:63])
    assert memory[[2, 3, 4, 48, 49, 50, 60, 61, 62, 63]].tolist() == [2, 61, 4, 48, 62, 50, 60, 3, 49, 63]


def test_index_may_have_any_stride():
    weight, values = torch.zeros(10), torch.ones(3)
    swap_values_(weight, torch.tensor([[1, 9], [4, 9], [5, 9]])[:, 0], values)
    assert weight.nonzero().flatten().tolist() == [1, 4, 5]


def test_positions_beyond_two_to_the_31():
    weight = torch.empty(2**31 + 10, dtype=torch.uint8)  # memory that is never touched costs nothing
    index = torch.tensor([5, 2**31 - 1, 2**31 + 9])
    weight[index] = torch.tensor([1, 2, 3], dtype=torch.uint8)
    values = torch.tensor([7, 8, 9], dtype=torch.uint8)
    swap_values_(weight, index, values)
    assert values.tolist() == [1, 2, 3] and weight[index].tolist() == [7, 8, 9]


def test_autograd_notices_the_change():
    weight = torch.randn(4, 4)
    x = torch.randn(4, requires_grad=True)
    y = (weight @ x).sum()
    swap_values_(weight, torch.tensor([3]), torch.zeros(1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


W, AT, V = torch.zeros(4, 5), torch.tensor([2, 7]), torch.ones(2)


@pytest.mark.parametrize(
    ("weight", "index", "values", "message"),
    [
        (W, torch.tensor([7, 2]), V, "index must be strictly increasing, got 2 after 7; sort"),
        (W, torch.tensor([7, 7]), V, "index must be strictly increasing, got 7 after 7; sort them and drop"),
        (W, torch.tensor([2, 20]), V, r"index must be flat positions within \[0, 20\), got 20"),
        (W, torch.tensor([-1, 2]), V, r"index must be flat positions within \[0, 20\), got -1"),
        (W, torch.tensor([-(2**63), 2]), V, r"index must be flat positions within \[0, 20\), got -9223372036854775808"),
        (W, torch.tensor([2, 2**63 - 1]), V, r"index must be flat positions within \[0, 20\), got 9223372036854775807"),
        (W, AT.short(), V, "index must be int64 or int32, got int16"),
        (W, torch.tensor([7, 7]).int(), V, "index must be strictly increasing, got 7 after 7; sort them and drop"),
        (W, torch.tensor([2, 20]).int(), V, r"index must be flat positions within \[0, 20\), got 20"),
        (W, torch.tensor([-1, 2]).int(), V, r"index must be flat positions within \[0, 20\), got -1"),
        (W, torch.tensor([2, -(2**31)]).int(), V, "index must be strictly increasing, got -2147483648 after 2; sort"),
        (W, AT[None], V, r"index must be flat positions \[n\], got \[1, 2\]"),
        (W, AT.to("meta"), V, "index must be on cpu .*, got meta"),
        (W, AT, V.double(), "values must be float32, the dtype of weight, got float64"),
        (W, AT, torch.ones(3), r"values must be \[2\], the shape of index, got \[3\]"),
        (W, AT, torch.ones(4)[::2], r"values is changed in place and must be contiguous, .* strides \[2\]"),
        (W.t(), AT, V, r"weight is changed in place and must be contiguous, got shape \[5, 4\] with strides \[1, 5\]"),
        (W, AT, W.view(-1)[4:6], "weight and values share memory.*pass a copy"),
        (torch.zeros(9, requires_grad=True), AT, V, "weight requires grad .* under torch.no_grad"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(weight, index, values, message):
    weight_before, values_before = weight.clone(), values.clone()
    with pytest.raises(RuntimeError, match=message):
        swap_values_(weight, index, values)
    assert torch.equal(weight, weight_before) and torch.equal(values, values_before)


def test_opcheck(device):
    weight, index = torch.randn(4, 5, device=device), torch.tensor([2, 7], device=device)
    torch.library.opcheck(swap_values_.default, (weight, index, torch.randn(2, device=device)))


def test_compiles_into_one_graph(device):
    def forward(x, weight, index, values):
        swap_values_(weight, index, values)
        y = x @ weight
        swap_values_(weight, index, values)
        return y, x @ weight

    def arguments():
        torch.manual_seed(1)
        index = torch.tensor([0, 8, 11], device=device)
        return torch.randn(2, 4, device=device), torch.randn(4, 3, device=device), index, torch.randn(3, device=device)

    ours, compiled = arguments(), arguments()
    want, got = forward(*ours), torch.compile(forward, fullgraph=True)(*compiled)
    assert not torch.equal(want[0], want[1])
    for a, b in zip((*want, *ours), (*got, *compiled), strict=True):
        torch.testing.assert_close(a, b)
    assert torch.equal(compiled[1], arguments()[1]) and torch.equal(compiled[3], arguments()[3])
