"""What the benchmarks of the selection operators run: every case holds ours and what one would write in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import sfa_ext  # noqa: F401  registers torch.ops.sfa

Candidates = dict[str, Callable[[], object]]
Shapes = Sequence[tuple[int, int]]
SHARE = 0.1
LR, BETA1, BETA2, EPS, DECAY = 1e-5, 0.9, 0.999, 1e-8, 0.01


def swinv2_base_shapes() -> list[tuple[int, int]]:
    """The weights that SFA selects from in SwinV2-Base: qkv, proj, fc1 and fc2 of its 24 blocks, 83.8 M in all."""
    shapes = []
    for width, blocks in zip((128, 256, 512, 1024), (2, 2, 18, 2), strict=True):
        shapes += [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * blocks
    return shapes


@dataclass(frozen=True)
class Case:
    """An operator in one setting: `make` makes its candidates for weights of these shapes, "ours" first, named as in
    `names`."""

    op: str
    setting: str
    names: tuple[str, ...]
    make: Callable[[Shapes], Candidates]
    traffic: Callable[[Shapes], dict[str, int]] | None = None  # bytes of memory that each candidate reads and writes

    @property
    def label(self) -> str:
        return f"{self.op} {self.setting}"

    def build(self, shapes: Shapes | None = None) -> Candidates:
        """The candidates, by default for the weights of SwinV2-Base."""
        return self.make(shapes or swinv2_base_shapes())


def _randn(shapes: Shapes, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape).to(dtype) for shape in shapes]


def _uniform(shapes: Shapes) -> list[Tensor]:
    """Positions of a share of SHARE, anywhere."""
    return [torch.rand(height * width).lt(SHARE).nonzero().flatten() for height, width in shapes]


def _found(shapes: Shapes) -> list[Tensor]:
    """Positions of a share of SHARE as training finds them: some matrices, rows and columns matter more than others.

    Their spreads are such that as many lines of 64 bytes hold a selected float32 as in runs of swinv2_pico (recipe
    scenes-fpn): 34 % of the lines with the 12.5 % of the weights that sfa-b selects, 13 % with the 3.1 % of sfa-s. This
    model gives 34 and 15 %, uniform positions 88 and 39 %.
    """
    scores = []
    for height, width in shapes:
        spread = 2.0 * torch.randn(()) + 0.8 * torch.randn(height, 1) + 0.8 * torch.randn(1, width)
        scores.append(torch.randn(height, width) * spread.exp_())
    count = int(SHARE * sum(s.numel() for s in scores))
    return torch.ops.sfa.select_topk(scores, [torch.empty(0, dtype=torch.int64) for _ in scores], count)


DRAWS = {"uniform": _uniform, "as found": _found}


def _accumulate(shapes: Shapes, dtype: torch.dtype, criterion: str) -> Candidates:
    grads, scores = _randn(shapes, dtype), _randn(shapes)

    def add(score: Tensor, grad: Tensor) -> None:
        score.add_(grad if criterion == "gradient" else grad.float().square())

    def eager() -> None:
        for score, grad in zip(scores, grads, strict=True):
            add(score, grad)

    fused = torch.compile(add, dynamic=True)

    def compiled() -> None:
        for score, grad in zip(scores, grads, strict=True):
            fused(score.view(-1), grad.view(-1))

    ours = torch.ops.sfa.accumulate_scores_
    return {"ours": lambda: ours(scores, grads, criterion), "eager": eager, "torch.compile": compiled}


def _select(shapes: Shapes, excluding: bool) -> Candidates:
    scores = _randn(shapes)
    excluded = [e if excluding else e[:0] for e in _uniform(shapes)]
    k = int(SHARE * sum(s.numel() for s in scores))

    def topk() -> Tensor:
        keys = [s.flatten().abs() for s in scores]
        if excluding:
            for key, positions in zip(keys, excluded, strict=True):
                key[positions] = -1
        return torch.cat(keys).topk(k).indices

    compiled = torch.compile(lambda: torch.cat([s.flatten().abs() for s in scores]).topk(k).indices)
    ours = torch.ops.sfa.select_topk
    candidates = {"ours": lambda: ours(scores, excluded, k), "abs().topk of all": topk}
    return candidates if excluding else {**candidates, "torch.compile": compiled}


def _masked_adamw(p: Tensor, g: Tensor, mask: Tensor, m: Tensor, v: Tensor, step_size: float, root: float) -> None:
    g = g * mask
    m.lerp_(g, 1 - BETA1)
    v.mul_(BETA2).addcmul_(g, g, value=1 - BETA2)
    p.mul_(1 - LR * DECAY).sub_(step_size * m / (v.sqrt() / root + EPS))


def _adamw(shapes: Shapes, draw: str, gathered: bool) -> Candidates:
    weights, grads = _randn(shapes), [g * 1e-3 for g in _randn(shapes)]
    index = DRAWS[draw](shapes)
    positions = [i.int() for i in index]
    rounds = [torch.zeros(len(i), dtype=torch.int16) for i in index]
    moments = [[torch.zeros(len(i)) for i in index] for _ in range(2)]
    ages = torch.tensor([0])
    given = [g.flatten()[i] for g, i in zip(grads, index, strict=True)] if gathered else grads
    parameters = [torch.nn.Parameter(w.clone()) for w in weights]
    optimizer = torch.optim.AdamW(parameters, LR, (BETA1, BETA2), EPS, DECAY, fused=True)
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.clone()
    as_bool = [
        torch.zeros(w.numel(), dtype=torch.bool).index_fill_(0, i, True) for w, i in zip(weights, index, strict=True)
    ]
    masks = {"bool": [m.view(w.shape) for m, w in zip(as_bool, weights, strict=True)]}
    masks["float"] = [m.float() for m in masks["bool"]]

    def ours() -> None:
        torch.ops.sfa.sparse_adamw_(weights, given, positions, rounds, *moments, [], ages, LR, BETA1, BETA2, EPS, DECAY)

    def masked(kind: str) -> Callable[[], None]:
        def step() -> None:
            for parameter, mask in zip(parameters, masks[kind], strict=True):
                parameter.grad.mul_(mask)
            optimizer.step()

        return step

    fused = torch.compile(_masked_adamw, dynamic=True)

    def compiled() -> None:
        for p, mask in zip(parameters, masks["float"], strict=True):
            state = optimizer.state[p]
            flat = (t.detach().view(-1) for t in (p, p.grad, mask, state["exp_avg"], state["exp_avg_sq"]))
            fused(*flat, LR, 1.0)

    return {
        "ours": ours,
        "bool mask + fused AdamW": masked("bool"),
        "float mask + fused AdamW": masked("float"),
        "fused AdamW of all": optimizer.step,
        "torch.compile": compiled,
    }


def _adamw_traffic(shapes: Shapes, draw: str, gathered: bool) -> dict[str, int]:
    """Bytes to and from memory of one step, for tensors too large for caches, in whole lines of 64 bytes."""
    numbers = entries = lines = 0
    for (height, width), positions in zip(shapes, DRAWS[draw](shapes), strict=True):
        numbers += height * width
        entries += len(positions)
        lines += len(torch.unique_consecutive(positions // 16))
    gradients = 4 * entries if gathered else 64 * lines
    checks = (4 + 2) * entries  # positions and rounds, read once before anything is changed
    return {
        # Positions and rounds; both moments and the weights' lines read and written; gradients.
        "ours": checks + (4 + 2) * entries + 16 * entries + 2 * 64 * lines + gradients,
        # Gradient and mask read, gradient written; then gradient, weight and moments read, the last three written.
        "bool mask + fused AdamW": (4 + 1 + 4 + 28) * numbers,
        "float mask + fused AdamW": (4 + 4 + 4 + 28) * numbers,
        "fused AdamW of all": 28 * numbers,
        "torch.compile": (4 + 28) * numbers,
    }


def _swap(shapes: Shapes, draw: str) -> Candidates:
    weights = _randn(shapes)
    index = DRAWS[draw](shapes)
    values = [torch.randn(len(i)) for i in index]

    def exchange(flat: Tensor, positions: Tensor, value: Tensor) -> None:
        kept = flat[positions]
        flat[positions] = value
        value.copy_(kept)

    def each(call: Callable[[Tensor, Tensor, Tensor], object], flat: bool) -> Callable[[], None]:
        def run() -> None:
            for weight, positions, value in zip(weights, index, values, strict=True):
                call(weight.view(-1) if flat else weight, positions, value)

        return run

    return {
        "ours": each(torch.ops.sfa.swap_values_, False),
        "eager": each(exchange, True),
        "torch.compile": each(torch.compile(exchange, dynamic=True), True),
    }


_TOPK = ("ours", "abs().topk of all")
_ADAMW = ("ours", "bool mask + fused AdamW", "float mask + fused AdamW", "fused AdamW of all", "torch.compile")
_PLAIN = ("ours", "eager", "torch.compile")
_SUMS = (("gradient", torch.float32), ("squared", torch.bfloat16), ("gradient", torch.float16))
CASES = (
    *(
        Case(
            "accumulate_scores_",
            f"{criterion}, {str(dtype).removeprefix('torch.')}",
            _PLAIN,
            partial(_accumulate, dtype=dtype, criterion=criterion),
        )
        for criterion, dtype in _SUMS
    ),
    Case("select_topk", "10 %, first round", (*_TOPK, "torch.compile"), partial(_select, excluding=False)),
    Case("select_topk", "10 %, another 10 % excluded", _TOPK, partial(_select, excluding=True)),
    *(
        Case(
            "sparse_adamw_",
            f"10 % {draw}, {'gathered' if gathered else 'dense'} gradients",
            _ADAMW,
            partial(_adamw, draw=draw, gathered=gathered),
            partial(_adamw_traffic, draw=draw, gathered=gathered),
        )
        for draw in DRAWS
        for gathered in (False, True)
    ),
    *(Case("swap_values_", f"10 % {draw}", _PLAIN, partial(_swap, draw=draw)) for draw in DRAWS),
)
