"""What the arguments of the selection operators must be. Each check raises RuntimeError naming the argument, its value
and what to do.

The first four look at shapes, dtypes and devices and run on every call, traced ones too; they are written for speed,
as one call may hold hundreds of tensors. The `*_values` functions look at what tensors hold. The compiled kernels look
at that themselves before they change anything; these run where there is no such kernel, and to say what was wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import FLOATING, HALF, name

CRITERIA = ("gradient", "absolute", "squared")
_WIDE = (torch.float32, torch.float64)


def accumulate_scores(scores: Sequence[Tensor], grads: Sequence[Tensor], criterion: str) -> None:
    if criterion not in CRITERIA:
        raise RuntimeError(f"criterion must be one of {', '.join(CRITERIA)}, got {criterion!r}")
    _equally_many("grads", grads, "scores", scores)
    for i, (score, grad) in enumerate(zip(scores, grads, strict=True)):
        _updated("scores", i, score)
        _dtype("scores", i, score, *_WIDE)
        if score.dtype == torch.float64:
            _dtype("grads", i, grad, *FLOATING)
        else:
            _dtype("grads", i, grad, torch.float32, *HALF, why="; float64 gradients need float64 scores")
        if grad.shape != score.shape:
            raise RuntimeError(
                f"grads[{i}] must be {list(score.shape)}, the shape of its scores, got {list(grad.shape)}"
            )
        _device("grads", i, grad, score)


def select_topk(scores: Sequence[Tensor], excluded: Sequence[Tensor], k: int) -> None:
    _equally_many("excluded", excluded, "scores", scores, "; pass an empty int64 tensor where nothing is excluded")
    eligible = 0
    for i, (score, positions) in enumerate(zip(scores, excluded, strict=True)):
        _dtype("scores", i, score, *FLOATING)
        _dtype("scores", i, score, scores[0].dtype, why=" as scores[0]: different dtypes cannot be ranked together")
        _device("scores", i, score, scores[0])
        _positions("excluded", i, positions, score)
        eligible = eligible + score.numel() - positions.numel()
    if k < 0:
        raise RuntimeError(f"k must not be negative, got {k}")
    if k > eligible:
        raise RuntimeError(f"k must be at most {eligible}, the number of scores that are not excluded, got {k}")


def sparse_adamw(
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
    lists = {"grads": grads, "indices": indices, "rounds": rounds, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    for argument, tensors in lists.items():
        _equally_many(argument, tensors, "weights", weights)
    halves = [i for i, weight in enumerate(weights) if weight.dtype in HALF]
    if len(masters) != len(halves):
        raise RuntimeError(
            f"masters must hold one tensor for each bfloat16 or float16 weight, which are {len(halves)}, "
            f"got {len(masters)}"
        )
    _updated("ages", None, ages)
    _dtype("ages", None, ages, torch.int64)
    for i, (weight, grad, index) in enumerate(zip(weights, grads, indices, strict=True)):
        _updated("weights", i, weight)
        _dtype("weights", i, weight, *FLOATING)
        _device("weights", i, weight, ages)
        _positions("indices", i, index, weight, torch.int64, torch.int32)
        _gradient(i, grad, weight, index)
        _per_entry("rounds", i, rounds[i], index, torch.int16)
        wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
        for argument in ("exp_avgs", "exp_avg_sqs"):
            _per_entry(argument, i, lists[argument][i], index, wide)
            _updated(argument, i, lists[argument][i])
    for j, i in enumerate(halves):
        _per_entry("masters", j, masters[j], indices[i], torch.float32)
        _updated("masters", j, masters[j])
    for argument, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
        if not value >= 0:
            raise RuntimeError(f"{argument} must not be negative, got {value}")
    for argument, value in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= value < 1:
            raise RuntimeError(f"{argument} must be within [0, 1), got {value}")


def swap_values(weight: Tensor, index: Tensor, values: Tensor) -> None:
    _updated("weight", None, weight)
    _positions("index", None, index, weight, torch.int64, torch.int32)
    _dtype("values", None, values, weight.dtype, why=", the dtype of weight")
    _per_entry("values", None, values, index, weight.dtype, "index")
    _updated("values", None, values)


def accumulate_scores_values(scores: Sequence[Tensor], grads: Sequence[Tensor], criterion: str) -> None:
    _disjoint(_numbered("scores", scores), _numbered("grads", grads))


def select_topk_values(scores: Sequence[Tensor], excluded: Sequence[Tensor], k: int) -> None:
    for i, (score, positions) in enumerate(zip(scores, excluded, strict=True)):
        _sorted(f"excluded[{i}]", positions, score.numel())
    for i, score in enumerate(scores):
        nan = score.isnan()
        if nan.any():
            place = int(nan.flatten().to(torch.uint8).argmax())
            raise RuntimeError(
                f"scores[{i}] holds NaN, first at flat position {place}: it has no rank. "
                "Leave out steps whose gradients are not finite"
            )


def sparse_adamw_values(weights, grads, indices, rounds, exp_avgs, exp_avg_sqs, masters, ages, *settings) -> None:
    for i, (weight, index) in enumerate(zip(weights, indices, strict=True)):
        _sorted(f"indices[{i}]", index, weight.numel())
    selected = torch.cat([ages >= 0, ages.new_zeros(1, dtype=torch.bool)])
    for i, numbers in enumerate(rounds):
        place = numbers.to(torch.int64)
        place = place.where((place >= 0) & (place < ages.numel()), ages.numel())
        wrong = ~selected[place]
        if wrong.any():
            number = int(numbers[wrong][0])
            age = f"whose age is {int(ages[number])}" if 0 <= number < ages.numel() else "which ages does not have"
            raise RuntimeError(
                f"rounds[{i}] holds {number}, {age}: every entry's round must be within [0, {ages.numel()}) and have "
                "an age of at least 0, which it gets when the round selects"
            )
    sparse_adamw_memory(weights, grads, indices, rounds, exp_avgs, exp_avg_sqs, masters, ages)


def sparse_adamw_memory(weights, grads, indices, rounds, exp_avgs, exp_avg_sqs, masters, ages) -> None:
    """That nothing which is changed shares memory with another argument; looks at no value."""
    written = {"weights": weights, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs, "masters": masters}
    read = {"grads": grads, "indices": indices, "rounds": rounds}
    _disjoint(
        [*(pair for argument, tensors in written.items() for pair in _numbered(argument, tensors)), ("ages", ages)],
        [pair for argument, tensors in read.items() for pair in _numbered(argument, tensors)],
    )


def swap_values_values(weight: Tensor, index: Tensor, values: Tensor) -> None:
    _sorted("index", index, weight.numel())
    swap_values_memory(weight, index, values)


def swap_values_memory(weight: Tensor, index: Tensor, values: Tensor) -> None:
    """That weight, index and values share no memory; looks at no value."""
    _disjoint([("weight", weight), ("values", values)], [("index", index)])


def _equally_many(argument: str, tensors: Sequence, other: str, others: Sequence, remedy: str = "") -> None:
    if len(tensors) != len(others):
        raise RuntimeError(
            f"{argument} must hold one tensor for each of {other}, which are {len(others)}, got {len(tensors)}{remedy}"
        )


def _at(argument: str, i: int | None) -> str:
    return argument if i is None else f"{argument}[{i}]"


def _dtype(argument: str, i: int | None, tensor: Tensor, *allowed: torch.dtype, why: str = "") -> None:
    if tensor.dtype not in allowed:
        names = " or ".join(map(name, allowed))
        raise RuntimeError(f"{_at(argument, i)} must be {names}{why}, got {name(tensor.dtype)}")


def _device(argument: str, i: int | None, tensor: Tensor, model: Tensor) -> None:
    if tensor.device != model.device:
        raise RuntimeError(
            f"{_at(argument, i)} must be on {model.device} as the other arguments are, got {tensor.device}"
        )


def _updated(argument: str, i: int | None, tensor: Tensor) -> None:
    """A tensor that is changed in place."""
    if not tensor.is_contiguous():
        raise RuntimeError(
            f"{_at(argument, i)} is changed in place and must be contiguous, got shape {list(tensor.shape)} with "
            f"strides {list(tensor.stride())}; pass a contiguous tensor"
        )
    if tensor.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"{_at(argument, i)} requires grad and is changed in place; call the operator under torch.no_grad()"
        )


def _positions(argument: str, i: int | None, index: Tensor, model: Tensor, *dtypes: torch.dtype) -> None:
    _dtype(argument, i, index, *(dtypes or (torch.int64,)))
    _device(argument, i, index, model)
    if index.dim() != 1:
        raise RuntimeError(f"{_at(argument, i)} must be flat positions [n], got {list(index.shape)}")


def _per_entry(
    argument: str, i: int | None, tensor: Tensor, index: Tensor, dtype: torch.dtype, other: str = "its indices"
) -> None:
    _dtype(argument, i, tensor, dtype)
    _device(argument, i, tensor, index)
    if tensor.shape != index.shape:
        raise RuntimeError(
            f"{_at(argument, i)} must be {list(index.shape)}, the shape of {other}, got {list(tensor.shape)}"
        )


def _gradient(i: int, grad: Tensor, weight: Tensor, index: Tensor) -> None:
    if weight.dtype in HALF:
        _dtype("grads", i, grad, weight.dtype, torch.float32)
    else:
        _dtype("grads", i, grad, weight.dtype, why=", the dtype of its weight")
    _device("grads", i, grad, weight)
    if grad.shape != weight.shape and grad.shape != index.shape:
        raise RuntimeError(
            f"grads[{i}] must be {list(weight.shape)}, the shape of weights[{i}], or {list(index.shape)}, gathered at "
            f"indices[{i}], got {list(grad.shape)}"
        )


def _numbered(argument: str, tensors: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    return [(f"{argument}[{i}]", tensor) for i, tensor in enumerate(tensors)]


def _sorted(argument: str, index: Tensor, limit: int) -> None:
    remedy = "; sort them and drop repetitions, as torch.unique does"
    if index.numel() == 0:
        return
    if (falls := index[1:] <= index[:-1]).any():
        place = int(falls.to(torch.uint8).argmax())
        before, after = index[place : place + 2].tolist()
        raise RuntimeError(f"{argument} must be strictly increasing, got {after} after {before}{remedy}")
    for value in (int(index[0]), int(index[-1])):
        if not 0 <= value < limit:
            raise RuntimeError(f"{argument} must be flat positions within [0, {limit}), got {value}")


def _disjoint(written: list[tuple[str, Tensor]], read: list[tuple[str, Tensor]]) -> None:
    spans = [
        (tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size(), argument, changed)
        for changed, tensors in ((True, written), (False, read))
        for argument, tensor in tensors
        if tensor.numel() and tensor.is_contiguous()
    ]
    reached = {True: (0, ""), False: (0, "")}  # the furthest end so far, of what is changed and of what is read
    for begin, end, argument, changed in sorted(spans, key=lambda span: span[0]):
        for other in (True, False) if changed else (True,):
            if begin < reached[other][0]:
                raise RuntimeError(
                    f"{reached[other][1]} and {argument} share memory, and the operator changes one of them in place; "
                    "pass a copy (clone)"
                )
        reached[changed] = max(reached[changed], (end, argument))
