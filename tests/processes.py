"""Processes that train together, started from one that has imported everything already."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, wait
from datetime import timedelta
from typing import Any

import torch
from torch import distributed

# Forks of a process that did nothing but import: importing torch, timm and the heads anew takes seconds.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["sfa_ext.training.loop", "sfa_ext.tasks.dense", "sfa_ext.data.scenes"])


def _as_rank(rank: int, size: int, store: str, work: Callable[..., Any], arguments: tuple) -> Any:
    torch.set_num_threads(1)
    if size > 1:
        patience = timedelta(seconds=300)
        distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=patience)
    result = work(*arguments)
    if size > 1:
        distributed.destroy_process_group()
    return result


def run(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `work(*arguments)` returns on each of `size` ranks; both must be importable and picklable."""
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(size, mp_context=_CONTEXT) as pool:
        store = f"file://{folder}/store"
        ranks = [pool.submit(_as_rank, r, size, store, work, arguments) for r in range(size)]
        wait(ranks, timeout=280)
        errors = [e for f in ranks if f.done() and (e := f.exception())]
        # A rank that failed takes the others with it: theirs tells nothing.
        for error in sorted(errors, key=lambda e: isinstance(e, ConnectionError)):
            raise error
        return [f.result(0) for f in ranks]
