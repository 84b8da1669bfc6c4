"""Batches as a function of the step: training can stop and go on anywhere, and runs can be paired."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sfa_ext.data.augment import IGNORE, Sample, eval_transform
from sfa_ext.data.errors import DataError

Batch = dict[str, Any]
# Padding of samples that are smaller than the largest of their batch. In a normalised image 0 is the mean colour.
_PADDING = {"image": 0.0, "semantic": IGNORE, "depth": 0.0}
_ATTEMPTS = 100  # samples tried in place of one that cannot be read


def collate(samples: Sequence[Sample]) -> Batch:
    """One batch of samples of any sizes.

    "image" float32 [B, 3, H, W], "semantic" int64 [B, H, W], "depth" float32 [B, H, W], padded on the right and below
    (with the mean colour, 255 and 0) to the largest height and width; "label" int64 [B]; everything else a list.

    Raises:
        ValueError: samples that do not all have the same keys.
    """
    for sample in samples:
        if sample.keys() != samples[0].keys():
            missing = ", ".join(sorted(sample.keys() ^ samples[0].keys()))
            raise ValueError(f"the samples of a batch must have the same keys; {missing} is only in some of them")
    batch: Batch = {name: [sample[name] for sample in samples] for name in samples[0]}
    height, width = (max(sample["image"].shape[side] for sample in samples) for side in (-2, -1))
    for name in _PADDING.keys() & batch.keys():
        batch[name] = torch.stack([_padded(value, height, width, _PADDING[name]) for value in batch[name]])
    if "semantic" in batch:
        batch["semantic"] = batch["semantic"].long()
    if "label" in batch:
        batch["label"] = torch.tensor(batch["label"], dtype=torch.int64)
    return batch


def _padded(value: Tensor, height: int, width: int, fill: float) -> Tensor:
    value = value.as_subclass(Tensor)
    right, below = width - value.shape[-1], height - value.shape[-2]
    return F.pad(value, (0, right, 0, below), value=fill) if right or below else value


class StepBatches(Dataset):
    """Item `t` is the training batch of step `t`, a pure function of the data set, the two seeds and `t`.

    With (rank, ranks) other than (0, 1) it is that rank's part of the batch, `batch_size / ranks` samples in a row: the
    parts of all ranks together are the batch, sample by sample.

    The data set is read in one random order after another, batches running across their borders. Sample number p of the
    run (p = t * batch_size + its place in the batch) is augmented with random numbers drawn from (augment_seed, p), so
    the two streams are independent of each other and of everything else in the process.

    A sample that raises DataError is replaced by another one, drawn from (order_seed, p) too. The batch then has an
    entry "unreadable" that says, by position in the data set, what is wrong with those that were met.
    """

    def __init__(
        self,
        dataset: Any,
        transform: Callable[[Sample], Sample],
        batch_size: int,
        order_seed: int,
        augment_seed: int,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        if batch_size % ranks:
            raise ValueError(f"optim.batch: {batch_size} images cannot be split evenly over {ranks} ranks")
        if len(dataset) == 0:
            raise ValueError("cannot train on an empty data set")
        self.dataset, self.transform, self.batch_size = dataset, transform, batch_size
        self.order_seed, self.augment_seed = order_seed, augment_seed
        self.share = batch_size // ranks
        self.first = rank * self.share
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def __getitem__(self, step: int) -> Batch:
        first = step * self.batch_size + self.first
        unreadable: dict[int, str] = {}
        with torch.random.fork_rng(devices=[]):
            samples = [self._sample(position, unreadable) for position in range(first, first + self.share)]
        batch = collate(samples)
        return batch | {"unreadable": unreadable} if unreadable else batch

    def _sample(self, position: int, unreadable: dict[int, str]) -> Sample:
        for attempt in range(_ATTEMPTS):
            index = self._substitute(position, attempt) if attempt else self.index(position)
            if index in unreadable:
                continue
            try:
                sample = self.dataset[index]
            except DataError as error:
                unreadable[index] = str(error)
                continue
            seed = np.random.SeedSequence((self.augment_seed, position)).generate_state(1, np.uint64)[0]
            # Not torch.manual_seed, which would also seed the accelerators of this process.
            torch.default_generator.manual_seed(int(seed >> np.uint64(1)))
            return self.transform(sample)
        raise DataError(f"no sample can be read, {len(unreadable)} were tried; the last: {[*unreadable.values()][-1]}")

    def _substitute(self, position: int, attempt: int) -> int:
        draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.order_seed, position, attempt))))
        return int(draw.integers(len(self.dataset)))

    def index(self, position: int) -> int:
        """Which item of the data set is number `position` of the run."""
        epoch, place = divmod(position, len(self.dataset))
        if self._order[0] != epoch:
            draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence((self.order_seed, epoch))))
            self._order = (epoch, draw.permutation(len(self.dataset)))
        return int(self._order[1][place])


class _StepsFrom(Sampler[int]):
    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


def loader(
    dataset: Any,
    transform: Callable[[Sample], Sample],
    *,
    batch_size: int,
    order_seed: int,
    augment_seed: int,
    start: int = 0,
    workers: int = 0,
    rank: int = 0,
    ranks: int = 1,
) -> Iterable[Batch]:
    """Training batches of steps `start`, `start` + 1, ... without end, the same for any number of worker processes.

    Args:
        dataset: samples by number.
        transform: makes a training sample of one, drawing from torch's CPU generator.
        batch_size: samples in a batch, over all ranks.
        order_seed: decides the order of the samples.
        augment_seed: decides the transforms' random numbers.
        start: first step.
        workers: processes that prepare batches; 0 prepares them in this one.
        rank, ranks: which of how many equal parts of each batch.
    """
    steps = StepBatches(dataset, transform, batch_size, order_seed, augment_seed, rank, ranks)
    # A generator of its own: DataLoader would draw from torch's global one otherwise.
    return DataLoader(
        steps,
        batch_size=None,
        sampler=_StepsFrom(start),
        num_workers=workers,
        generator=torch.Generator(),
        worker_init_fn=_outlast_signals,
    )


def _outlast_signals(worker: int) -> None:
    """A process group is told to stop as a whole; the process that trains decides when, and ends its workers then."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class _Transformed(Dataset):
    """Transformed samples, or what is wrong with one, by its position."""

    def __init__(self, dataset: Any, transform: Callable[[Sample], Sample]) -> None:
        self.dataset, self.transform = dataset, transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        try:
            sample = self.dataset[index]
        except DataError as error:
            return {"unreadable": {index: str(error)}}
        return self.transform(sample)


def _collate_readable(samples: Sequence[Sample]) -> Batch:
    unreadable = {i: text for sample in samples for i, text in sample.get("unreadable", {}).items()}
    readable = [sample for sample in samples if "unreadable" not in sample]
    batch = collate(readable) if readable else {}
    return batch | {"unreadable": unreadable} if unreadable else batch


def eval_loader(dataset: Any, batch_size: int, workers: int = 0, rank: int = 0, ranks: int = 1) -> DataLoader:
    """All samples once, in their order, normalised and at their own size (padded to the largest of each batch).

    With (rank, ranks) other than (0, 1) the samples of that rank alone: a stretch of the data set. Stretches may differ
    by one sample, and be empty.

    Samples that raise DataError are left out. Their batch has an entry "unreadable" that says, by position in the data
    set, what is wrong with them, and nothing else where it has no other samples.
    """
    count = len(dataset)
    return DataLoader(
        _Transformed(dataset, eval_transform()),
        sampler=range(rank * count // ranks, (rank + 1) * count // ranks),
        batch_size=batch_size,
        num_workers=workers,
        collate_fn=_collate_readable,
        generator=torch.Generator(),
        worker_init_fn=_outlast_signals,
    )
