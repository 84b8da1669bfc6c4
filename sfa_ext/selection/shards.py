"""Tensors that torch's `fully_shard` spread over ranks, each of which holds consecutive rows.

Every function takes plain tensors too, which one process holds whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from sfa_ext import ranks


def is_shard(tensor: Tensor) -> bool:
    """Whether ranks share `tensor`. Asks for no type: importing it takes long, and one process does not need it."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of `tensor`, without autograd; shares its memory."""
    tensor = tensor.detach()
    return tensor.to_local() if is_shard(tensor) else tensor


def shared(tensors: Iterable[Tensor]) -> bool:
    """Whether ranks share `tensors`; False where each process holds them whole.

    Raises ValueError where only some are shared, or cut otherwise than by rows over all ranks.
    """
    kinds = {_by_rows(t) for t in tensors}
    if len(kinds) > 1:
        raise ValueError("weights: some are sharded and others not; shard all of them alike")
    return kinds.pop() if kinds else False


def _by_rows(tensor: Tensor) -> bool:
    if not is_shard(tensor):
        return False
    if [p.is_shard(0) for p in tensor.placements] != [True] or tensor.device_mesh.size() != ranks.size():
        raise ValueError(
            f"weights: sharded as {tensor.placements} over {tensor.device_mesh}; only rows over all {ranks.size()} "
            "ranks are supported, as fully_shard makes them on a mesh of one dimension"
        )
    return True


def span(tensor: Tensor) -> tuple[int, int]:
    """The flat positions of the whole tensor that this rank holds: from the first up to the second."""
    if not is_shard(tensor):
        return 0, tensor.numel()
    mine, rows = local(tensor), len(tensor)
    most = -(-rows // tensor.device_mesh.size())  # as torch.chunk cuts: the last parts may be short or empty
    begin = min(tensor.device_mesh.get_local_rank() * most, rows) * mine.stride(0) if mine.dim() else 0
    return begin, begin + mine.numel()


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """What this rank would hold of `whole` were it shared as `like` is, which has its shape; or holds, if it is."""
    if is_shard(whole):
        return local(whole)
    begin, end = span(like)
    return whole.flatten()[begin:end].view(local(like).shape)


def shared_as(like: Tensor, part: Tensor) -> Tensor:
    """`part`, this rank's of a tensor that is as large as `like` and shared as that is, in the form of a shared one."""
    if not is_shard(like):
        return part
    from torch.distributed.tensor import DTensor

    options = {"run_check": False, "shape": like.shape, "stride": like.stride()}
    return DTensor.from_local(part, like.device_mesh, like.placements, **options)


def copy_(tensor: Tensor, value: Tensor) -> None:
    """Fills what this rank holds of `tensor` from `value`: the whole of it, or shared as `tensor` is."""
    local(tensor).copy_(part_of(value, tensor))


def whole(tensor: Tensor) -> Tensor:
    """All of `tensor`, without autograd. Of a shared one all ranks ask, and the first has it, in host memory."""
    tensor = tensor.detach()
    if not is_shard(tensor):
        return tensor
    full = tensor.full_tensor()
    return full.cpu() if ranks.rank() == 0 else full.new_empty(0)


def within(index: Tensor, tensor: Tensor) -> slice:
    """Which of the sorted flat positions `index` of a whole tensor lie in what this rank holds of it."""
    ends = torch.tensor(span(tensor), dtype=index.dtype, device=index.device)
    return slice(*torch.searchsorted(index, ends).tolist())


def gathered(tensors: Mapping[str, Tensor], is_shared: bool) -> dict[str, Tensor]:
    """Each tensor [n], of any dtype, of all ranks one after the other: on the first rank; on others nothing.

    All ranks call with the same names and dtypes; lengths may differ. Tensors that no ranks share are returned as they
    are.
    """
    if not is_shared:
        return dict(tensors)
    # As bytes, since not every backend knows every dtype; cloned, since a tensor of one number may have any stride.
    raw = [t.clone(memory_format=torch.contiguous_format).view(torch.uint8).cpu() for t in tensors.values()]
    lengths = torch.zeros(ranks.size(), len(raw), dtype=torch.int64)
    lengths[ranks.rank()] = torch.tensor([len(t) for t in raw])
    lengths = ranks.sum_(lengths)
    received = ranks.to_first(torch.cat(raw), lengths.sum(1).tolist())
    parts = [r.split(n.tolist()) for r, n in zip(received, lengths, strict=False)]
    if not parts:
        return {}
    return {n: torch.cat([p[i] for p in parts]).view(t.dtype) for i, (n, t) in enumerate(tensors.items())}
