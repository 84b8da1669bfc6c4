"""torch.ops.sfa.sparse_adamw_ against torch.optim.AdamW, one run of it for each round of selected entries."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

import sfa_ext  # noqa: F401  registers torch.ops.sfa
from sfa_ext.ops import reference_selection

sparse_adamw_ = torch.ops.sfa.sparse_adamw_
SETTINGS = {"lr": 0.02, "beta1": 0.9, "beta2": 0.98, "eps": 1e-6, "weight_decay": 0.3}
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALF = (torch.bfloat16, torch.float16)


def name(dtype):
    return str(dtype).removeprefix("torch.")


@dataclass
class Entries:
    """One weight with entries of several rounds: what the operator takes, and the same weight under torch's AdamW."""

    weight: Tensor
    index: Tensor
    rounds: Tensor
    exp_avg: Tensor = field(init=False)
    exp_avg_sq: Tensor = field(init=False)
    master: Tensor = field(init=False)
    start: Tensor = field(init=False)

    def __post_init__(self):
        self.start = self.weight.clone()
        wide = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        self.master = self.weight.flatten()[self.index].to(wide)
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(self.master), torch.zeros_like(self.master)

    @classmethod
    def draw(cls, shape, dtype, rounds=1, share=0.3, device="cpu"):
        weight = torch.randn(shape, device=device).to(dtype)
        index = torch.rand(weight.numel(), device=device).lt(share).nonzero().flatten()
        return cls(weight, index, torch.randint(rounds, index.shape, dtype=torch.int16, device=device))


def step(entries, grads, ages, op=sparse_adamw_, **settings):
    op(
        [e.weight for e in entries],
        grads,
        [e.index for e in entries],
        [e.rounds for e in entries],
        [e.exp_avg for e in entries],
        [e.exp_avg_sq for e in entries],
        [e.master for e in entries if e.weight.dtype in HALF],
        ages,
        *{**SETTINGS, **settings}.values(),
    )


def adamw(values):
    """torch's AdamW on one tensor, in its widest form."""
    parameter = torch.nn.Parameter(values.clone())
    s = SETTINGS
    return torch.optim.AdamW([parameter], s["lr"], (s["beta1"], s["beta2"]), s["eps"], s["weight_decay"], foreach=False)


@pytest.mark.parametrize("op", [sparse_adamw_, reference_selection.sparse_adamw_], ids=["operator", "reference"])
@pytest.mark.parametrize("gathered", [False, True], ids=["dense", "gathered"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_each_round_is_a_fresh_adamw(dtype, gathered, op, device):
    rounds, period, steps = 3, 4, 15
    entries = [Entries.draw(shape, dtype, rounds, device=device) for shape in [(40, 50), (7,), (3, 5, 7)]]
    ages = torch.full((rounds,), -1, device=device)
    optimizers: dict[tuple[int, int], torch.optim.AdamW] = {}
    in_round = [[(e.rounds == r).nonzero().flatten() for r in range(rounds)] for e in entries]
    active = [Entries(e.weight, e.index[:0], e.rounds[:0]) for e in entries]

    def grow(r):
        """Round r selects: its entries start with moments of zero among the older ones."""
        for i, e in enumerate(entries):
            optimizers[i, r] = adamw(e.master[in_round[i][r]])
            grown = Entries(e.weight, e.index[e.rounds <= r], e.rounds[e.rounds <= r])
            old = torch.isin(grown.index, active[i].index)
            for part in ("exp_avg", "exp_avg_sq", "master"):
                getattr(grown, part)[old] = getattr(active[i], part)
            active[i] = grown
        ages[r] = 0

    for t in range(steps):
        if t % period == 0 and t // period < rounds:
            grow(t // period)
        dense = [torch.randn(e.weight.shape, device=device).to(dtype) for e in entries]
        grads = [g.flatten()[a.index] if gathered else g for g, a in zip(dense, active, strict=True)]
        step(active, grads, ages, op)
        for (i, r), optimizer in optimizers.items():
            parameter = optimizer.param_groups[0]["params"][0]
            parameter.grad = dense[i].flatten()[entries[i].index[in_round[i][r]]].to(parameter.dtype)
            optimizer.step()

    assert ages.tolist() == [15, 11, 7]
    bound = 1e-13 if dtype == torch.float64 else 3e-6
    for (i, r), optimizer in optimizers.items():
        want = optimizer.param_groups[0]["params"][0].detach()
        got = active[i].master if dtype in HALF else entries[i].weight.flatten()[entries[i].index]
        assert (got[in_round[i][r]] - want).norm() <= bound * want.norm()
    for e, a in zip(entries, active, strict=True):
        if dtype in HALF:
            assert torch.equal(e.weight.flatten()[e.index], a.master.to(dtype))
        others = torch.ones(e.weight.numel(), dtype=torch.bool, device=device)
        others[e.index] = False
        assert torch.equal(e.weight.flatten()[others], e.start.flatten()[others])
        assert not torch.equal(e.weight.flatten()[e.index], e.start.flatten()[e.index])


@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_dense_and_gathered_gradients_give_the_same_bits(dtype):
    torch.manual_seed(1)
    e = Entries.draw((300, 301), dtype)
    other = Entries(e.weight.clone(), e.index, e.rounds)
    for _ in range(2):
        grad = torch.randn(301, 300).to(dtype).t()
        step([e], [grad], torch.tensor([3]))
        step([other], [grad.flatten()[e.index]], torch.tensor([3]))
    assert torch.equal(e.weight, other.weight) and torch.equal(e.exp_avg_sq, other.exp_avg_sq)


@pytest.mark.parametrize("gathered", [False, True], ids=["dense", "gathered"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name)
def test_positions_of_32_bits_give_the_same_bits(dtype, gathered, device):
    torch.manual_seed(2)
    e = Entries.draw((300, 301), dtype, rounds=2, device=device)
    other = Entries(e.weight.clone(), e.index.int(), e.rounds)
    for _ in range(2):
        grad = torch.randn(300, 301, device=device).to(dtype)
        grad = grad.flatten()[e.index] if gathered else grad
        for entries in (e, other):
            step([entries], [grad], torch.tensor([3, 8], device=device))
    assert torch.equal(e.weight, other.weight) and torch.equal(e.exp_avg_sq, other.exp_avg_sq)


@pytest.mark.parametrize("dtype", HALF, ids=name)
def test_half_weights_train_below_their_resolution(dtype):
    """Steps too small to change a half weight add up in its master value; float32 gradients are taken as they are."""
    weight = torch.ones(100, dtype=dtype)
    e = Entries(weight, torch.arange(0, 100, 2), torch.zeros(50, dtype=torch.int16))
    ages = torch.tensor([0])
    step([e], [torch.ones(50)], ages, lr=1e-4, weight_decay=0)
    assert torch.equal(weight, torch.ones_like(weight)) and (e.master < 1).all()
    for _ in range(99):
        step([e], [torch.ones(50)], ages, lr=1e-4, weight_decay=0)
    torch.testing.assert_close(e.master, torch.full((50,), 0.99), rtol=0, atol=1e-4)
    assert weight[::2].max() < 1 and torch.equal(weight[1::2], torch.ones_like(weight[1::2]))


def test_many_tensors_of_many_dtypes_in_one_call():
    together = [Entries.draw(s, d) for s, d in zip([(50, 60), (9,), (33, 3), (2, 40)], DTYPES, strict=True)]
    together.append(Entries.draw((20,), torch.float32, share=0.0))
    alone = [Entries(e.weight.clone(), e.index, e.rounds) for e in together]
    grads = [torch.randn(e.weight.shape).to(e.weight.dtype) for e in together]
    step(together, grads, torch.tensor([0]))
    for e, grad in zip(alone, grads, strict=True):
        step([e], [grad], torch.tensor([0]))
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a.weight, b.weight) and torch.equal(a.exp_avg, b.exp_avg)


def test_one_and_two_threads_give_the_same_bits():
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(3)
        entries = [Entries.draw((600, 200), torch.float32, rounds=2), Entries.draw((999,), torch.bfloat16, share=0.9)]
        ages = torch.tensor([5, 0])
        for _ in range(2):
            step(entries, [torch.randn(e.weight.shape).to(e.weight.dtype) for e in entries], ages)
        results.append([t for e in entries for t in (e.weight, e.exp_avg, e.exp_avg_sq, e.master)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_positions_beyond_two_to_the_31():
    weight = torch.empty(2**31 + 9, dtype=torch.bfloat16)  # memory that is never touched costs nothing
    index = torch.tensor([0, 2**31 - 1, 2**31 + 8])
    weight[index] = torch.tensor([1.0, 2.0, 3.0], dtype=torch.bfloat16)
    e = Entries.__new__(Entries)
    e.weight, e.index, e.rounds = weight, index, torch.zeros(3, dtype=torch.int16)
    e.master, e.exp_avg, e.exp_avg_sq = weight[index].float(), torch.zeros(3), torch.zeros(3)
    step([e], [torch.ones(3)], torch.tensor([0]), lr=0.5, weight_decay=0)
    assert weight[index].tolist() == [0.5, 1.5, 2.5]


def test_ages_rise_even_without_entries_and_unselected_rounds_stay():
    ages = torch.tensor([4, 0, -1, -1])
    step([], [], ages)
    assert ages.tolist() == [5, 1, -1, -1]


def test_autograd_notices_the_change():
    e = Entries.draw((4, 4), torch.float32)
    x = torch.randn(4, requires_grad=True)
    y = (e.weight @ x).sum()
    step([e], [torch.ones(4, 4)], torch.tensor([0]))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def arguments():
    """Arguments of a good call, by name, for two weights."""
    return {
        "weights": [torch.ones(4, 5), torch.ones(6, dtype=torch.bfloat16)],
        "grads": [torch.ones(4, 5), torch.ones(1, dtype=torch.bfloat16)],
        "indices": [torch.tensor([2, 7]), torch.tensor([3])],
        "rounds": [torch.tensor([0, 1], dtype=torch.int16), torch.tensor([0], dtype=torch.int16)],
        "exp_avgs": [torch.zeros(2), torch.zeros(1)],
        "exp_avg_sqs": [torch.zeros(2), torch.zeros(1)],
        "masters": [torch.ones(1)],
        "ages": torch.tensor([3, 0, -1]),
        **SETTINGS,
    }


def first(tensor):
    return lambda tensors: [tensor, *tensors[1:]]


@pytest.mark.parametrize(
    ("argument", "change", "message"),
    [
        ("grads", lambda t: t[:1], "grads must hold one tensor for each of weights, which are 2, got 1"),
        (
            "masters",
            lambda t: [],
            "masters must hold one tensor for each bfloat16 or float16 weight, which are 1, got 0",
        ),
        ("weights", first(torch.ones(5, 4).t()), r"weights\[0\] is changed in place and must be contiguous"),
        ("weights", first(torch.ones(4, 5, dtype=torch.int32)), r"weights\[0\] must be float32 .*, got int32"),
        ("weights", first(torch.ones(4, 5, requires_grad=True)), r"weights\[0\] requires grad .* torch.no_grad"),
        ("weights", first(torch.ones(4, 5, device="meta")), r"weights\[0\] must be on cpu .*, got meta"),
        ("grads", first(torch.ones(5, 4)), r"grads\[0\] must be \[4, 5\], .*or \[2\], gathered .*, got \[5, 4\]"),
        (
            "grads",
            first(torch.ones(4, 5).half()),
            r"grads\[0\] must be float32, the dtype of its weight, got float16",
        ),
        ("indices", first(torch.tensor([7, 2])), r"indices\[0\] must be strictly increasing, got 2 after 7"),
        ("indices", first(torch.tensor([2, 20])), r"indices\[0\] must be flat positions within \[0, 20\), got 20"),
        ("indices", first(torch.tensor([2, 7]).short()), r"indices\[0\] must be int64 or int32, got int16"),
        ("rounds", first(torch.tensor([0, 1])), r"rounds\[0\] must be int16, got int64"),
        ("rounds", first(torch.tensor([0, 2]).short()), r"rounds\[0\] holds 2, whose age is -1: every"),
        ("rounds", first(torch.tensor([0, 3]).short()), r"rounds\[0\] holds 3, which ages does not have: every"),
        ("rounds", first(torch.tensor([0, -1]).short()), r"rounds\[0\] holds -1, which ages does not have"),
        ("exp_avgs", first(torch.zeros(3)), r"exp_avgs\[0\] must be \[2\], the shape of its indices, got \[3\]"),
        ("exp_avg_sqs", first(torch.zeros(2).double()), r"exp_avg_sqs\[0\] must be float32, got float64"),
        ("masters", lambda t: [torch.ones(1).bfloat16()], r"masters\[0\] must be float32, got bfloat16"),
        ("ages", lambda t: t.int(), "ages must be int64, got int32"),
        ("lr", lambda v: -0.1, "lr must not be negative, got -0.1"),
        ("beta2", lambda v: 1.0, r"beta2 must be within \[0, 1\), got 1.0"),
        ("eps", lambda v: float("nan"), "eps must not be negative, got nan"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(argument, change, message):
    call, before = arguments(), arguments()
    call[argument] = change(call[argument])
    with pytest.raises(RuntimeError, match=message):
        sparse_adamw_(*call.values())
    for key in before.keys() - {argument, *SETTINGS}:
        pairs = [(call[key], before[key])] if key == "ages" else zip(call[key], before[key], strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_shared_memory_is_named():
    call = arguments()
    call["exp_avg_sqs"][0] = call["exp_avgs"][0]
    with pytest.raises(RuntimeError, match=r"exp_avgs\[0\] and exp_avg_sqs\[0\] share memory.*pass a copy"):
        sparse_adamw_(*call.values())


def test_opcheck(device):
    def moved(value):
        return [t.to(device) for t in value] if isinstance(value, list) else value

    call = {key: value.to(device) if key == "ages" else moved(value) for key, value in arguments().items()}
    torch.library.opcheck(sparse_adamw_.default, tuple(call.values()))


def test_compiles_into_one_graph(device):
    def train(e, x, ages):
        grad = x * e.weight
        step([e], [grad], ages)
        return e.weight * 2

    eager = Entries.draw((30, 20), torch.float32, device=device)
    compiled = Entries(eager.weight.clone(), eager.index, eager.rounds)
    x = torch.randn(30, 20, device=device)
    want = train(eager, x, torch.tensor([0], device=device))
    got = torch.compile(train, fullgraph=True)(compiled, x, torch.tensor([0], device=device))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(compiled.exp_avg, eager.exp_avg)
    assert eager.exp_avg.any()
