"""The selection operators as chains of torch's own, for every device that has no kernel of ours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from . import selection_checks as checks


def accumulate_scores_(scores: Sequence[Tensor], grads: Sequence[Tensor], criterion: str) -> None:
    if not scores:  # see select_topk
        checks.accumulate_scores(scores, grads, criterion)
    checks.accumulate_scores_values(scores, grads, criterion)
    for score, grad in zip(scores, grads, strict=True):
        g = grad.to(score.dtype)
        score.add_({"gradient": torch.positive, "absolute": torch.abs, "squared": torch.square}[criterion](g))


def select_topk(scores: Sequence[Tensor], excluded: Sequence[Tensor], k: int) -> list[Tensor]:
    if not scores:  # a call without tensors has no device, and reaches no check before this one
        checks.select_topk(scores, excluded, k)
        return []
    checks.select_topk_values(scores, excluded, k)
    keys = [score.abs().flatten() for score in scores]
    for key, positions in zip(keys, excluded, strict=True):
        key[positions] = -1
    sizes, keys = [key.numel() for key in keys], torch.cat(keys)
    threshold = keys.topk(k, sorted=False).values.min() if k else torch.inf
    above, ties = keys > threshold, keys == threshold
    taken = above | (ties & (ties.cumsum(0) <= k - above.sum()))
    return [part.nonzero().flatten() for part in taken.split(sizes)]


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
    lists = (weights, grads, indices, rounds, exp_avgs, exp_avg_sqs)
    checks.sparse_adamw_values(*lists, masters, ages)
    ages += ages >= 0
    step_size, root = lr / (1 - beta1 ** ages.double()), (1 - beta2 ** ages.double()).sqrt()
    remaining = iter(masters)
    for weight, grad, index, number, exp_avg, exp_avg_sq in zip(*lists, strict=True):
        number, flat = number.long(), weight.view(-1)
        value = flat[index] if weight.dtype == exp_avg.dtype else next(remaining)
        g = (grad if grad.shape == index.shape else grad.flatten()[index]).to(exp_avg.dtype)
        exp_avg.lerp_(g, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        change = exp_avg / (exp_avg_sq.sqrt() / root[number].to(g.dtype) + eps)
        value.mul_(1 - lr * weight_decay).sub_(step_size[number].to(g.dtype) * change)
        flat[index] = value.to(weight.dtype)


def swap_values_(weight: Tensor, index: Tensor, values: Tensor) -> None:
    checks.swap_values_values(weight, index, values)
    flat = weight.view(-1)
    kept = flat[index]
    flat[index] = values
    values.copy_(kept)
