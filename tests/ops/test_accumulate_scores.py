"""torch.ops.sfa.accumulate_scores_ against a float64 sum."""

from __future__ import annotations

import pytest
import torch

import sfa_ext  # noqa: F401  registers torch.ops.sfa
from sfa_ext.ops import reference_selection

accumulate_scores_ = torch.ops.sfa.accumulate_scores_
RULES = {"gradient": lambda g: g, "absolute": torch.abs, "squared": torch.square}
PAIRS = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.float32, torch.float16),
    (torch.float64, torch.float64),
    (torch.float64, torch.float16),
]


def name(pair):
    return "-".join(str(dtype).removeprefix("torch.") for dtype in pair)


@pytest.fixture(params=["operator", "reference"])
def accumulate(request):
    return accumulate_scores_ if request.param == "operator" else reference_selection.accumulate_scores_


@pytest.mark.parametrize("criterion", RULES)
@pytest.mark.parametrize("dtypes", PAIRS, ids=name)
@pytest.mark.parametrize("shape", [(0,), (), (3, 5), (129, 257)], ids=str)
def test_agrees_with_float64(accumulate, shape, dtypes, criterion, device):
    score = torch.randn(shape, dtype=dtypes[0], device=device)
    want = score.double()
    for _ in range(3):
        grad = torch.randn(shape, device=device).to(dtypes[1])
        want += RULES[criterion](grad.double())
        accumulate([score], [grad], criterion)
    assert (score - want).norm() <= (1e-15 if dtypes[0] == torch.float64 else 1e-7) * 4 * want.norm()


@pytest.mark.parametrize("criterion", RULES)
def test_every_half_number_is_widened_exactly(criterion):
    for dtype in (torch.float16, torch.bfloat16):
        grad = torch.arange(-(2**15), 2**15, dtype=torch.int64).to(torch.int16).view(dtype)
        score = torch.zeros(2**16)
        accumulate_scores_([score], [grad], criterion)
        torch.testing.assert_close(score, 0 + RULES[criterion](grad.float()), rtol=0, atol=0, equal_nan=True)


def test_many_tensors_of_many_dtypes_in_one_call(accumulate, device):
    shapes = [(5,), (0, 3), (40, 1000), (33, 7), (2, 3, 4)]
    scores = [torch.zeros(s, dtype=pair[0], device=device) for s, pair in zip(shapes, PAIRS, strict=True)]
    grads = [torch.randn(s, device=device).to(pair[1]) for s, pair in zip(shapes, PAIRS, strict=True)]
    accumulate(scores, grads, "gradient")
    for score, grad in zip(scores, grads, strict=True):
        assert torch.equal(score, grad.to(score.dtype))


def test_gradients_of_any_stride_and_unaligned_scores():
    memory = torch.zeros(1003)
    grads = [torch.randn(40, 25).t(), torch.randn(1).expand(25, 40), torch.randn(50, 80)[::2, ::2]]
    for grad in grads:
        memory.zero_()
        accumulate_scores_([memory[1:1001].view(25, 40).view(grad.shape)], [grad], "squared")
        assert torch.equal(memory[1:1001].view(grad.shape), grad.square())
        assert memory[0] == 0 and memory[1001:].tolist() == [0, 0]


def test_one_and_two_threads_give_the_same_bits():
    grads = [torch.randn(300, 400), torch.randn(100001).bfloat16(), torch.randn(9).half()]
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        scores = [torch.full(g.shape, 0.1) for g in grads]
        for _ in range(2):
            accumulate_scores_(scores, grads, "squared")
        results.append(scores)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_no_tensors():
    accumulate_scores_([], [], "gradient")


S = torch.zeros(4, 5)


@pytest.mark.parametrize(
    ("scores", "grads", "criterion", "message"),
    [
        ([S], [S + 1], "hessian", "criterion must be one of gradient, absolute, squared, got 'hessian'"),
        ([], [], "hessian", "criterion must be one of"),
        ([S], [], "gradient", "grads must hold one tensor for each of scores, which are 1, got 0"),
        ([S, S[0]], [S + 1, S[1]], "gradient", r"scores\[0\] and scores\[1\] share memory"),
        ([S[0]], [S.view(-1)[4:9]], "gradient", r"scores\[0\] and grads\[0\] share memory.*pass a copy"),
        ([S], [S[:3]], "gradient", r"grads\[0\] must be \[4, 5\], the shape of its scores, got \[3, 5\]"),
        ([S], [S.double()], "gradient", r"grads\[0\] must be .*; float64 gradients need float64 scores, got float64"),
        ([S], [S.long()], "gradient", r"grads\[0\] must be .*, got int64"),
        ([S.half()], [S.half()], "gradient", r"scores\[0\] must be float32 or float64, got float16"),
        ([S], [S.to("meta")], "gradient", r"grads\[0\] must be on cpu .*, got meta"),
        ([S.t()], [S.t() + 1], "gradient", r"scores\[0\] is changed in place and must be contiguous"),
    ],
)
def test_bad_arguments_are_named_and_change_nothing(scores, grads, criterion, message):
    with pytest.raises(RuntimeError, match=message):
        accumulate_scores_(scores, grads, criterion)
    assert not S.any()


def test_opcheck(device):
    scores = [torch.randn(4, 5, device=device), torch.randn(3, device=device)]
    grads = [torch.randn(4, 5, device=device).bfloat16(), torch.randn(3, device=device)]
    torch.library.opcheck(accumulate_scores_.default, (scores, grads, "absolute"))


def test_compiles_into_one_graph(device):
    def step(scores, grads):
        accumulate_scores_(scores, [g * 2 for g in grads], "absolute")
        return [s + 1 for s in scores]

    grads = [torch.randn(4, 5, device=device), torch.randn(3, device=device)]
    scores, compiled = ([torch.zeros_like(g) for g in grads] for _ in range(2))
    want, got = step(scores, grads), torch.compile(step, fullgraph=True)(compiled, grads)
    for a, b in zip([*want, *scores], [*got, *compiled], strict=True):
        torch.testing.assert_close(a, b)
    assert scores[0].any()
