"""Tables by which one launch works on many tensors: a row of integers (addresses, lengths) for each, in memory of the
device, and for each program the tensor and the part of it that are its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton.language as tl
from torch import Tensor

_ELEMENT = {
    torch.float32: tl.float32,
    torch.float64: tl.float64,
    torch.bfloat16: tl.bfloat16,
    torch.float16: tl.float16,
    torch.int32: tl.int32,
    torch.int64: tl.int64,
}
_recorded: list[Tensor] = []  # what recorded graphs copy from, whenever they run


@dataclass(frozen=True)
class Table:
    """`rows` [tensors, columns], of which column 0 is a tensor's length and column 1 its first chunk, and
    `owners` [chunks], the tensor that a chunk belongs to. Both int64."""

    rows: Tensor
    owners: Tensor

    @property
    def chunks(self) -> int:
        return len(self.owners)


def make(lengths: Sequence[int], columns: Sequence[Sequence[int]], chunk: int, device: torch.device) -> Table:
    """The table of tensors of these lengths, `chunk` elements to a program; `columns` follow the first two."""
    counts = torch.tensor([-(-length // chunk) for length in lengths])
    first = counts.cumsum(0) - counts
    rows = torch.stack([torch.tensor(lengths), first, *map(torch.tensor, columns)], 1)
    owners = torch.repeat_interleave(torch.arange(len(lengths)), counts)
    both = to_device(torch.cat([rows.flatten(), owners]), device)
    return Table(both[: rows.numel()].view(rows.shape), both[rows.numel() :])


def to_device(host: Tensor, device: torch.device) -> Tensor:
    """A copy on `device` for which nobody waits."""
    if device.type == "cpu":
        return host
    host = host.pin_memory()
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _recorded.append(host)
    return host.to(device, non_blocking=True)


def addresses(tensors: Sequence[Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def element(dtype: torch.dtype) -> tl.dtype:
    """What Triton calls a dtype."""
    return _ELEMENT[dtype]
