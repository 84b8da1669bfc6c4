"""Processes that train together, started from one that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from datetime import timedelta
from pathlib import Path
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
    with ProcessPoolExecutor(size, mp_context=_CONTEXT) as pool:
        store = f"tcp://127.0.0.1:{_free_port()}"
        ranks = [pool.submit(_as_rank, r, size, store, work, arguments) for r in range(size)]
        wait(ranks, timeout=280)
        errors = [e for f in ranks if f.done() and (e := f.exception())]
        # A rank that failed takes the others with it: theirs tells nothing.
        for error in sorted(errors, key=lambda e: isinstance(e, ConnectionError)):
            raise error
        return [f.result(0) for f in ranks]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Ranks:
    """`sfa ARGUMENTS` as several ranks, each with the environment that torchrun would give it.

    prepare: called in every rank before the command, such as to make it hang. Of what torchrun does beside, `wait`
    does the ending of ranks that are left behind.
    """

    def __init__(self, size: int, arguments: Sequence[str], folder: Path, prepare: Callable[[], None] | None = None):
        port = _free_port()
        self.said = [folder / f"rank-{rank}.txt" for rank in range(size)]
        self.processes = []
        for rank, said in enumerate(self.said):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
            place = {"MASTER_ADDR": "127.0.0.1"} | {name: str(value) for name, value in place.items()}
            target = (place, [*map(str, arguments)], str(said), prepare)
            self.processes.append(_CONTEXT.Process(target=_command, args=target))
        for process in self.processes:
            process.start()

    def kill(self, rank: int, number: int = signal.SIGKILL) -> None:
        if self.processes[rank].exitcode is None:
            os.kill(self.processes[rank].pid, number)

    def wait(self, patience: float = 240) -> list[int]:
        """Exit statuses. Once one rank failed the others have 20 seconds to leave, then they are killed."""
        end = time.monotonic() + patience
        while any(p.exitcode is None for p in self.processes) and time.monotonic() < end:
            if any(p.exitcode for p in self.processes):
                end = min(end, time.monotonic() + 20)
            time.sleep(0.02)
        for rank, process in enumerate(self.processes):
            self.kill(rank)
            process.join()
        return [p.exitcode for p in self.processes]

    def texts(self) -> list[str]:
        """What each rank said."""
        return [path.read_text() if path.is_file() else "" for path in self.said]


def _command(place: dict[str, str], arguments: list[str], said: str, prepare: Callable[[], None] | None) -> None:
    from sfa_ext.cli import main

    os.environ.update(place)
    file = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    torch.set_num_threads(1)
    if prepare is not None:
        prepare()
    sys.exit(main(arguments))
