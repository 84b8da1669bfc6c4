"""The search: exact numbers, the right weights, each once, whatever the criterion and scope."""

from __future__ import annotations

import pytest
import torch

from sfa_ext.selection import Schedule, Search, Selection


def weights(*shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {f"w{i}": torch.nn.Parameter(torch.randn(s, generator=generator)) for i, s in enumerate(shapes)}


def give_gradients(candidates, seed):
    generator = torch.Generator().manual_seed(seed)
    for weight in candidates.values():
        weight.grad = torch.randn(weight.shape, generator=generator)


@pytest.mark.parametrize(("total", "rounds"), [(10, 3), (7, 7), (5, 8), (1000, 13), (0, 4)])
def test_round_sizes_sum_to_the_total(total, rounds):
    schedule = Schedule(total, rounds, 10)
    sizes = [schedule.size(r) for r in range(1, rounds + 1)]
    assert sum(sizes) == total and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [((-1, 1, 1), "total.*-1"), ((1, 0, 1), "rounds.*got 0"), ((1, 1, -2), "interval.*-2"), ((1, 2, 0), "rounds=2")],
)
def test_a_schedule_that_makes_no_sense_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Schedule(*settings)


@pytest.mark.parametrize("criterion", ["gradient", "absolute", "squared"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_rounds_pick_the_best_of_what_is_left(criterion, scope):
    candidates = weights((8, 6), (3, 5), (20,))
    search = Search(Selection(candidates), Schedule(31, 4, 2), criterion, scope)
    taken = {n: set() for n in candidates}
    score = {n: torch.zeros_like(w) for n, w in candidates.items()}
    for step in range(1, 9):
        give_gradients(candidates, step)
        for n, w in candidates.items():
            score[n] += {"gradient": w.grad, "absolute": w.grad.abs(), "squared": w.grad.square()}[criterion]
        search.score()
        search.observe()
        assert search.due() == (step % 2 == 0)
        if search.due():
            search.select()
            for n, entries in search.selection:
                new = set(entries.index.tolist()) - taken[n]
                left = [i for i in range(candidates[n].numel()) if i not in taken[n] | new]
                magnitude = score[n].abs().flatten()
                if new and left:
                    assert magnitude[list(new)].min() >= magnitude[left].max()
                taken[n] |= new
            score = {n: torch.zeros_like(w) for n, w in candidates.items()}
    assert search.finished and search.selection.count() == 31 and not search.due()
    if scope == "layer":
        shares = [len(e) / candidates[n].numel() for n, e in search.selection]
        assert max(shares) - min(shares) < 0.1


def test_global_scope_ranks_all_tensors_together():
    candidates = weights((4, 4), (4, 4))
    search = Search(Selection(candidates), Schedule(6, 1, 1))
    candidates["w0"].grad = torch.zeros(4, 4)
    candidates["w1"].grad = torch.arange(16.0).view(4, 4)
    search.score()
    search.observe()
    search.select()
    assert search.selection.counts() == {"w0": 0, "w1": 6}
    assert search.selection.entries["w1"].index.tolist() == [10, 11, 12, 13, 14, 15]


def test_ties_go_to_the_lowest_place():
    candidates = weights((5,), (5,))
    search = Search(Selection(candidates), Schedule(7, 1, 1))
    for weight in candidates.values():
        weight.grad = torch.ones(5)
    search.score()
    search.observe()
    search.select()
    assert [e.index.tolist() for _, e in search.selection] == [[0, 1, 2, 3, 4], [0, 1]]


def test_signed_gradients_cancel_where_magnitudes_do_not():
    def best(criterion):
        candidates = weights((2,))
        search = Search(Selection(candidates), Schedule(1, 1, 2), criterion)
        for gradient in ([3.0, 1.0], [-3.0, 1.0]):
            candidates["w0"].grad = torch.tensor(gradient)
            search.score()
            search.observe()
        search.select()
        return search.selection.entries["w0"].index.item()

    assert best("gradient") == 1
    assert best("absolute") == best("squared") == 0


def test_scores_are_freed_after_the_last_round():
    candidates = weights((6, 6))
    search = Search(Selection(candidates), Schedule(4, 1, 1))
    give_gradients(candidates, 0)
    search.score()
    search.observe()
    search.select()
    assert search.finished and not search.scores


def test_selection_state_is_refused_for_other_weights():
    candidates = weights((6, 6))
    search = Search(Selection(candidates), Schedule(4, 1, 1))
    give_gradients(candidates, 0)
    search.score()
    search.observe()
    search.select()
    state = search.selection.state()
    same = Selection(weights((6, 6)))
    same.load_state(state)
    assert torch.equal(same.entries["w0"].index, search.selection.entries["w0"].index)
    with pytest.raises(ValueError, match="holds other values"):
        Selection(weights((6, 6), seed=5)).load_state(state)
    with pytest.raises(ValueError, match="no entries for weight 'w1'"):
        Selection(weights((6, 6), (2,))).load_state(state)
    with pytest.raises(ValueError, match="not sorted inside its 4 entries"):
        Selection(weights((2, 2))).load_state({**state, "w0/index": torch.tensor([1, 2, 3, 9])})


def test_a_random_search_follows_its_seed_alone_and_covers_all_weights():
    def selected(seed, gradients):
        candidates = weights((50, 40), (1000,))
        search = Search(Selection(candidates), Schedule(600, 3, 1), "random", seed=seed)
        for step in range(3):
            give_gradients(candidates, gradients + step)
            search.score()
            search.observe()
            search.select()
        assert search.finished and search.selection.count() == 600
        return torch.cat([e.index + 2000 * (n == "w1") for n, e in search.selection])

    first = selected(2**63 - 1, 0)
    assert torch.equal(first, selected(2**63 - 1, 77))
    other = selected(5, 0)
    # Two independent choices of 600 of 3000 share 120 on average, with a standard deviation of about 9.
    assert 80 < len(set(first.tolist()) & set(other.tolist())) < 160
    assert 320 < (first < 2000).sum() < 480  # 400 expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "magic"}, "criterion: unknown 'magic', known: gradient"),
        ({"scope": "room"}, "scope: unknown 'room', known: global, layer"),
        ({"schedule": Schedule(37, 1, 1)}, "37 weights to select, but only 36 are eligible"),
    ],
)
def test_bad_settings_name_the_value(settings, message):
    with pytest.raises(ValueError, match=message):
        Search(Selection(weights((6, 6))), **({"schedule": Schedule(1, 1, 1)} | settings))


def test_a_refused_state_leaves_selection_and_values_as_they_were():
    candidates = weights((6, 6))
    search = Search(Selection(candidates), Schedule(4, 1, 1))
    give_gradients(candidates, 0)
    search.score()
    search.observe()
    search.select()
    search.selection.write({"w0": torch.full((4,), 9.0)})
    before, index = candidates["w0"].detach().clone(), search.selection.entries["w0"].index
    state = search.selection.state()
    with pytest.raises(ValueError, match="holds other values"):
        search.selection.load_state({**state, "w0/original": state["w0/original"] + 1})
    assert torch.equal(candidates["w0"], before) and torch.equal(search.selection.entries["w0"].index, index)
