"""accumulate_scores_, sparse_adamw_ and swap_values_ by Triton: one launch for all tensors of one kind, and no waiting.

The GPU is not asked what tensors hold: a position outside of its weight and a round without an age are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import triton
from torch import Tensor

from .. import selection_checks as checks
from . import selection_kernels as kernels
from . import tables

CHUNK, BLOCK = 8192, 1024
_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}


def accumulate_scores_(scores: Sequence[Tensor], grads: Sequence[Tensor], criterion: str) -> None:
    checks.accumulate_scores_values(scores, grads, criterion)
    grads = [grad.contiguous() for grad in grads]
    for (score, grad), places in _groups(lambda i: (scores[i].dtype, grads[i].dtype), len(scores)).items():
        columns = [tables.addresses([tensors[i] for i in places]) for tensors in (scores, grads)]
        table = tables.make([scores[i].numel() for i in places], columns, CHUNK, scores[0].device)
        if table.chunks:
            kernels.accumulate[(table.chunks,)](
                table.rows, table.owners, SCORE=tables.element(score), GRAD=tables.element(grad), CRITERION=criterion,
                CHUNK=CHUNK, BLOCK=BLOCK,
            )  # fmt: skip


def sparse_adamw_(
    weights: Sequence[Tensor],
    grads: Sequence[Tensor],
    indices: Sequence[Tensor],
    rounds: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    masters: Sequence[Tensor],
    ages: Tensor,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    checks.sparse_adamw_memory(weights, grads, indices, rounds, exp_avgs, exp_avg_sqs, masters, ages)
    grads, indices, rounds = ([t.contiguous() for t in tensors] for tensors in (grads, indices, rounds))
    remaining = iter(masters)
    own = [next(remaining).data_ptr() if weight.dtype in checks.HALF else 0 for weight in weights]
    # Doubles travel with integers, as the bits they are.
    numbers = torch.tensor([lr, beta1, beta2, eps, 1 - lr * weight_decay], dtype=torch.float64)
    settings = tables.to_device(numbers, ages.device)
    corrections = torch.empty((2, ages.numel()), dtype=torch.float64, device=ages.device)
    if ages.numel():
        block = triton.next_power_of_2(ages.numel())
        kernels.advance[(1,)](ages, settings, corrections, ROUNDS=ages.numel(), BLOCK=block)
    kinds = _groups(lambda i: (weights[i].dtype, grads[i].dtype, indices[i].dtype), len(weights))
    for (weight, grad, index), places in kinds.items():
        table = tables.make(
            [len(indices[i]) for i in places],
            [
                [weights[i].data_ptr() for i in places],
                [weights[i].numel() for i in places],
                [grads[i].data_ptr() for i in places],
                [int(grads[i].shape == indices[i].shape) for i in places],
                *(tables.addresses([t[i] for i in places]) for t in (indices, rounds, exp_avgs, exp_avg_sqs)),
                [own[i] for i in places],
            ],
            CHUNK,
            ages.device,
        )
        if table.chunks:
            wide = torch.float64 if weight == torch.float64 else torch.float32
            kernels.adamw[(table.chunks,)](
                table.rows, table.owners, ages, settings, corrections, ages.numel(), WEIGHT=tables.element(weight),
                GRAD=tables.element(grad), INDEX=tables.element(index), WIDE=tables.element(wide), CHUNK=CHUNK,
                BLOCK=BLOCK,
            )  # fmt: skip


def swap_values_(weight: Tensor, index: Tensor, values: Tensor) -> None:
    checks.swap_values_memory(weight, index, values)
    if index.numel() == 0:
        return
    # Bits move as integers: a float register may quiet a NaN.
    word = _WORDS[weight.element_size()]
    flat, entries = weight.view(-1).view(word), values.view(word)
    words = entries.numel() // index.numel()
    grid = (triton.cdiv(entries.numel(), BLOCK),)
    kernels.swap[grid](flat, index.contiguous(), entries, index.numel(), weight.numel(), WORDS=words, BLOCK=BLOCK)


def _groups(kind: Callable[[int], tuple], count: int) -> dict[tuple, list[int]]:
    """Which of `count` tensors are of each kind."""
    groups: dict[tuple, list[int]] = {}
    for i in range(count):
        groups.setdefault(kind(i), []).append(i)
    return groups
