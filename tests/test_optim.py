"""SparseAdamW: what is not selected stays bit-identical, what is selected moves as under torch's AdamW."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from sfa_ext.optim import SparseAdamW
from sfa_ext.selection import Schedule, Search, Selection


class Setup:
    """A linear model whose weight is searched, beside a bias that is trained whole."""

    def __init__(self, dtype=torch.float32, total=12, rounds=3, interval=2, criterion="gradient", **settings):
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 8).to(dtype))
        self.other = nn.Parameter(torch.randn(5, 6).to(dtype))
        self.bias = nn.Parameter(torch.zeros(5, dtype=dtype))
        self.start = [self.weight.detach().clone(), self.other.detach().clone()]
        self.selection = Selection({"a": self.weight, "b": self.other})
        self.search = Search(self.selection, Schedule(total, rounds, interval), criterion)
        self.optimizer = SparseAdamW([self.bias], self.search, **({"lr": 0.05, "weight_decay": 0.1} | settings))

    def loss(self, seed):
        x = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed)).to(self.weight.dtype)
        return (torch.tanh(x @ self.weight.T) @ self.other.T + self.bias - 1).float().square().mean()

    def backward(self, seed):
        self.loss(seed).backward()

    def train(self, steps, first=0):
        for seed in range(first, first + steps):
            self.optimizer.zero_grad()
            self.backward(seed)
            self.optimizer.step()
        return self

    def unselected_is_untouched(self):
        for name, weight, start in zip("ab", (self.weight, self.other), self.start, strict=True):
            mask = torch.ones(weight.numel(), dtype=torch.bool)
            mask[self.selection.entries[name].index] = False
            if not torch.equal(weight.detach().flatten()[mask], start.flatten()[mask]):
                return False
        return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_unselected_weights_stay_bit_identical_after_every_step(dtype):
    setup = Setup(dtype)
    for step in range(10):
        setup.train(1, first=step)
        assert setup.unselected_is_untouched()
    assert setup.selection.count() == 12
    assert not torch.equal(setup.weight, setup.start[0])


def test_selected_weights_follow_torch_adamw_from_the_step_of_their_selection():
    setup = Setup(rounds=2, interval=3, total=10)
    mirror = Setup(rounds=2, interval=3, total=10)
    setup.train(3)
    first = {n: e.index.clone() for n, e in setup.selection}
    mirror.train(3)
    # From here each round's entries must move like fresh AdamW on the same gradients, all else held.
    values = [nn.Parameter(w.detach().flatten()[first[n]].clone()) for n, w in mirror.selection.weights.items()]
    reference = torch.optim.AdamW(values, lr=0.05, weight_decay=0.1)
    for step in range(3, 6):
        setup.optimizer.zero_grad()
        setup.backward(step)
        for value, slot in zip(values, setup.optimizer.slots(), strict=True):
            value.grad = slot.grad.clone()
        setup.optimizer.step()
        reference.step()
        for (name, index), value in zip(first.items(), values, strict=True):
            moved = setup.selection.weights[name].detach().flatten()[index]
            torch.testing.assert_close(moved, value.detach(), rtol=1e-6, atol=1e-7)
    assert setup.optimizer.ages.tolist() == [3, 0]


def test_a_half_precision_weight_has_a_float32_master_for_selected_entries_only():
    setup = Setup(torch.bfloat16, lr=1e-5, weight_decay=0.0).train(40)
    state = setup.optimizer.selected_state()
    counts = setup.selection.counts()
    for name in "ab":
        assert state[f"{name}/master"].dtype == torch.float32 and state[f"{name}/master"].numel() == counts[name]
        at = setup.selection.entries[name]
        # Steps of 1e-5 vanish in bfloat16; the master must have gathered them all the same.
        assert (state[f"{name}/master"] != at.original.float()).all()


def test_state_is_held_for_selected_entries_alone():
    setup = Setup().train(8)
    held = sum(t.numel() for n, t in setup.optimizer.selected_state().items() if n.endswith(("avg", "avg_sq")))
    assert held == 2 * 12


def test_dense_gradients_are_released_and_not_kept_after_the_last_round():
    setup = Setup().train(1)
    assert setup.weight.grad is None and all(s.grad is None for s in setup.optimizer.slots())
    setup.train(6, first=1)
    assert setup.search.finished
    setup.backward(9)
    assert setup.weight.grad is None and setup.other.grad is None
    assert sum(s.grad.numel() for s in setup.optimizer.slots() if s.grad is not None) == 12


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for the memory of this process")
def test_after_the_last_round_the_system_has_the_memory_of_the_search_back():
    weights = {f"w{i}": nn.Parameter(torch.zeros(256, 256, dtype=torch.bfloat16)) for i in range(400)}
    search = Search(Selection(weights), Schedule(1, 1, 1))
    optimizer = SparseAdamW([], search)
    sum(w.sum() for w in weights.values()).backward()
    needed = sum(s.nbytes for s in search.scores.values()) + sum(w.grad.nbytes for w in weights.values())
    last = torch.zeros(256, 256)  # lies behind what is freed, which glibc would therefore keep
    before = resident()
    optimizer.step()
    assert search.finished and last.numel()
    assert before - resident() > 0.8 * needed


def resident():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("when", [1, 8], ids=["searching", "fixed"])
def test_gradient_accumulation_adds_up(when):
    whole, parts = Setup().train(when), Setup().train(when)
    whole.optimizer.zero_grad()
    (whole.loss(50) + whole.loss(51)).backward()
    parts.optimizer.zero_grad()
    parts.backward(50)
    parts.backward(51)
    for a, b in zip(whole.optimizer.slots(), parts.optimizer.slots(), strict=True):
        assert (a.grad is None) == (b.grad is None)
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("value", [float("inf"), float("nan")], ids=["inf", "nan"])
def test_a_non_finite_step_is_neither_scored_nor_applied(value):
    setup = Setup().train(3)
    before = [t.detach().clone() for t in (setup.weight, setup.other, setup.bias, *setup.search.scores.values())]
    setup.optimizer.zero_grad()
    setup.backward(3)
    setup.other.grad[0, 0] = value
    setup.optimizer.step()
    after = [setup.weight, setup.other, setup.bias, *setup.search.scores.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert setup.optimizer.skipped == 1 and setup.search.step == 3


def test_a_gradient_scaler_drives_it_like_any_optimizer():
    plain, scaled = Setup(), Setup()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for seed in range(8):
        plain.train(1, first=seed)
        scaled.optimizer.zero_grad()
        scaler.scale(scaled.loss(seed)).backward()
        scaler.step(scaled.optimizer)
        scaler.update()
    assert all(torch.equal(a.index, b.index) for (_, a), (_, b) in zip(plain.selection, scaled.selection, strict=True))
    torch.testing.assert_close(plain.weight, scaled.weight)


def test_interval_zero_selects_on_the_first_gradient_and_trains_with_it():
    setup = Setup(rounds=1, interval=0, total=9)
    setup.backward(0)
    best = torch.cat([setup.weight.grad.flatten(), setup.other.grad.flatten()]).abs().topk(9).indices.sort().values
    setup.optimizer.step()
    picked = torch.cat([setup.selection.entries["a"].index, setup.selection.entries["b"].index + 48])
    assert torch.equal(picked, best) and setup.search.finished
    moved = torch.cat([setup.weight.detach().flatten(), setup.other.detach().flatten()])
    start = torch.cat([s.flatten() for s in setup.start])
    assert torch.equal((moved != start).nonzero().flatten(), best)


def test_displacement_trains_everything_in_a_round_and_resets_the_rest():
    setup = Setup(criterion="displacement", rounds=2, interval=3, total=8)
    setup.train(2)
    assert not setup.unselected_is_untouched()
    moved_most = None
    setup.optimizer.zero_grad()
    setup.backward(2)
    setup.optimizer.step()
    assert setup.unselected_is_untouched() and setup.selection.count() == 4
    setup.train(3, first=3)
    assert setup.search.finished and setup.unselected_is_untouched() and setup.selection.count() == 8
    del moved_most


@pytest.mark.parametrize("criterion", ["gradient", "displacement"])
@pytest.mark.parametrize("stop", [1, 4, 7])
def test_state_restores_to_the_same_bits(criterion, stop):
    whole = Setup(criterion=criterion).train(10)
    first, second = Setup(criterion=criterion).train(stop), Setup(criterion=criterion)
    second.selection.load_state(first.selection.state())
    second.search.load_state(first.search.state())
    second.optimizer.load_selected_state(first.optimizer.selected_state())
    second.bias.data.copy_(first.bias)
    second.optimizer.whole.load_state_dict(first.optimizer.whole.state_dict())
    second.train(10 - stop, first=stop)
    for a, b in ((whole.weight, second.weight), (whole.other, second.other), (whole.bias, second.bias)):
        assert torch.equal(a, b)


def test_an_lr_scheduler_reaches_every_group():
    setup = Setup()
    scheduler = torch.optim.lr_scheduler.LambdaLR(setup.optimizer, lambda step: 0.5)
    assert {g["lr"] for g in setup.optimizer.param_groups} == {0.025}
    assert setup.optimizer.whole.param_groups[0]["lr"] == 0.025
    del scheduler
