"""Training by several ranks: starting them on this machine, and joining those that torchrun started."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import timedelta

import torch
from torch import distributed

from sfa_ext.training.faults import watched


@contextlib.contextmanager
def joined(device: str, timeout: float) -> Iterator[bool]:
    """Joins the ranks that torchrun started, if it did; tells whether this one is the first, which alone speaks.

    Tensors of CPUs travel by gloo, those of GPUs by NCCL. A rank takes the GPU of its number on its machine.

    device, timeout: as a recipe has them. Raises ValueError where the machine has no GPU for each of its ranks, or the
    timeout is not above zero.
    """
    if timeout <= 0:
        raise ValueError(f"timeout: must be above 0 seconds, got {timeout}")
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield True
        return
    backend = "gloo"
    if device != "cpu" and torch.cuda.is_available():
        _take_gpu(device)
        backend = "cpu:gloo,cuda:nccl"
    store, rank, size = next(distributed.rendezvous("env://"))
    # The watch knows who hangs, torch only that somebody does: the watch has to be first.
    patience = timedelta(seconds=2 * timeout + 60)
    group = {"store": distributed.PrefixStore("group", store), "rank": rank, "world_size": size, "timeout": patience}
    distributed.init_process_group(backend, **group)
    with watched(distributed.PrefixStore("watch", store.clone()), timeout):
        yield rank == 0
    distributed.destroy_process_group()  # not after an error: the others may be gone


def _take_gpu(device: str) -> None:
    local, here = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if device not in ("auto", "cuda"):
        raise ValueError(f"device: {device!r} would be shared by all ranks; use cuda, each rank then takes its own GPU")
    if local >= here:
        raise ValueError(f"device: rank {local} of this machine has no GPU of its own, there are {here}; start fewer")
    torch.cuda.set_device(local)


def launch(arguments: Sequence[str], count: int) -> int:
    """Runs `sfa ARGUMENTS` as `count` ranks on this machine by torchrun; returns the exit status.

    Raises ValueError for a count below 1.
    """
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    if count < 1:
        raise ValueError(f"nproc: must be 1 or more, got {count}")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    try:
        torchrun.main(["--standalone", f"--nproc-per-node={count}", "-m", "sfa_ext", *arguments])
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        killed = f"was killed by {failure.signal_name()}; the same command goes on from the last checkpoint"
        how = killed if failure.exitcode < 0 else f"left with status {failure.exitcode}, it says above why"
        print(f"sfa: rank {rank} {how}", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 1
    return 0
