"""The processes that train one model together, each on its part of every batch, and what they tell each other.

They are torch's default process group where there is one, else this process alone: every function here then returns
what it was given. All ranks have to call the same functions in the same order. Losses and gradients follow one rule: a
rank's loss divides by the *mean* over ranks of what it counts (`mean_over`), and gradients are averaged.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, distributed


class RankLost(ConnectionError):
    """Another rank is gone, or does not answer."""


@dataclass
class Traffic:
    """What this process gave to collectives since it started: messages, and bytes of their contents.

    How many bytes cross the wire is the backend's affair; a ring takes up to twice as many.
    """

    messages: int = 0
    bytes: int = 0


@dataclass
class Progress:
    """How far this process is, for those who look after ranks that hang."""

    step: int = 0  # of training, the one at work
    images: int = 0  # evaluated
    watched: bool = False  # whether it is expected to get on


traffic, progress = Traffic(), Progress()


def size() -> int:
    """How many ranks there are."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this one, from 0."""
    return distributed.get_rank() if size() > 1 else 0


def sum_(value: Tensor) -> Tensor:
    """`value`, in place its sum over all ranks, with the same bits on each of them."""
    if size() > 1:
        with _message(value):
            distributed.all_reduce(value)
    return value


def mean_(tensors: Iterable[Tensor]) -> None:
    """Replaces each tensor by its mean over all ranks; large ones are not copied."""
    if size() > 1:
        for tensor in tensors:
            sum_(tensor.div_(size()))


def sum_over(value: Tensor) -> Tensor:
    """The sum of `value` over all ranks; `value` itself is left as it is."""
    return sum_(value.clone()) if size() > 1 else value


def sums_before(numbers: Sequence[int]) -> list[int]:
    """The sum of each number over the ranks before this one."""
    every = torch.zeros(size(), len(numbers), dtype=torch.int64)
    every[rank()] = torch.tensor(numbers)
    return sum_(every)[: rank()].sum(0).tolist()


def mean_over(value: Tensor) -> Tensor:
    """The mean of `value` (floating) over all ranks; `value` itself is left as it is."""
    return sum_over(value) / size() if size() > 1 else value


def mean_count(count: Tensor) -> Tensor:
    """The mean over ranks of a number of things, of which there is at least one: what a rank's sum is divided by."""
    return mean_over(count).clamp(min=1 / size())


def relative(count: int, like: Tensor) -> float | Tensor:
    """`count` over its mean over all ranks: the factor that makes means over parts the mean over the whole.

    like: a tensor on the device to compute on.
    """
    if size() == 1:
        return 1.0
    return count / mean_over(torch.tensor(float(count), device=like.device)).clamp(min=1e-12)


def means(values: Sequence[float]) -> list[float]:
    """The mean over all ranks of each number."""
    return mean_over(torch.tensor(values, dtype=torch.float64)).tolist() if size() > 1 else list(values)


def all_true(flag: bool) -> bool:
    """Whether `flag` holds on every rank."""
    return flag if size() == 1 else not means([float(not flag)])[0]


def mean_gradients(parameters: Iterable[Tensor]) -> None:
    """Replaces each gradient by its mean over all ranks: one message for each dtype, of these gradients alone.

    A parameter that has no gradient here counts as zero, unless no rank has one for it: then it stays without.
    """
    if size() == 1:
        return
    kinds: dict[Any, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    for alike in kinds.values():
        _mean_flat(alike)


@torch.no_grad()
def _mean_flat(parameters: list[Tensor]) -> None:
    present = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in parameters]
    used = parameters[0].new_tensor([p.grad is not None for p in parameters])
    flat = torch.cat([*(g.flatten() for g in present), used]).div_(size())
    *parts, used = sum_(flat).split([*(g.numel() for g in present), len(used)])
    for parameter, gradient, part, share in zip(parameters, present, parts, used.tolist(), strict=True):
        if share:
            parameter.grad = gradient.copy_(part.view(gradient.shape))


def gathered(data: bytes) -> list[bytes]:
    """The bytes of every rank, in the order of ranks."""
    if size() == 1:
        return [data]
    own = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
    lengths = torch.zeros(size(), dtype=torch.int64)
    lengths[rank()] = len(own)
    lengths = sum_(lengths).tolist()
    padded = torch.zeros(max(lengths), dtype=torch.uint8)
    padded[: len(own)] = own
    parts = [torch.empty_like(padded) for _ in lengths]
    with _message(padded):
        distributed.all_gather(parts, padded)
    return [part[:n].numpy().tobytes() for part, n in zip(parts, lengths, strict=True)]


def to_first(data: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """`data` [n], on the CPU, of every rank, in the order of ranks: on the first one; on others nothing.

    lengths: n of every rank.
    """
    if size() == 1:
        return [data]
    if rank():
        with _message(data):
            distributed.send(data, 0)
        return []
    parts = [data, *(data.new_empty(length) for length in lengths[1:])]
    for sender, part in enumerate(parts[1:], 1):
        distributed.recv(part, sender)
    return parts


def merged(found: dict[int, str]) -> dict[int, str]:
    """What all ranks found, by number."""
    if size() == 1:
        return found
    parts = [json.loads(part) for part in gathered(json.dumps(found).encode())]
    return {int(number): text for part in parts for number, text in part.items()}


@contextlib.contextmanager
def _message(value: Tensor) -> Iterator[None]:
    traffic.messages += 1
    traffic.bytes += value.numel() * value.element_size()
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())[:200]
        raise RankLost(
            f"rank {rank()} lost contact to another rank at step {progress.step} ({text}); the same command goes on "
            "from the last checkpoint"
        ) from error
