"""Commands side by side: some at a time, none started after a deadline, all stopped when this process is."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_PACKAGES = Path(__file__).resolve().parents[2]  # children run this copy of the package, whatever folder they start in
_POLL = 0.1  # seconds between two looks at what runs
_PATIENCE = 5.0  # seconds that a run gets to end by itself


@dataclass(frozen=True)
class Job:
    """A command, and the file that takes what it prints."""

    name: str
    command: tuple[str, ...]
    log: Path


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[int]:
    """Claims a folder; yields the descriptor that holds the claim, which a child that inherits it holds too.

    Raises ValueError where another process has the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield handle
    except BlockingIOError as error:
        raise ValueError(
            f"{folder}: another comparison, or a run that it started, is at work there; wait for its end or take "
            "another folder"
        ) from error
    finally:
        os.close(handle)


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Makes SIGTERM raise KeyboardInterrupt in its body, so that what was started is stopped too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run_all(
    jobs: Sequence[Job], width: int, claim: int, finished: Callable[[Job, int, float], None], deadline: float | None
) -> None:
    """Runs the jobs in their order, `width` at a time, with one thread each.

    claim: the descriptor of `lock`, which every job holds as long as it lives.
    finished: called with a job that ended, its exit status (negative: the signal that killed it) and its seconds.
    deadline: time.monotonic() after which no job is started; None for no end.
    """
    waiting, running = deque(jobs), {}
    try:
        while running or (waiting and _may_start(deadline)):
            while waiting and len(running) < width and _may_start(deadline):
                job = waiting.popleft()
                running[_start(job, claim)] = (job, time.monotonic())
            for process in [p for p in running if p.poll() is not None]:
                job, begun = running.pop(process)
                finished(job, process.returncode, time.monotonic() - begun)
            time.sleep(_POLL)
    finally:
        _stop(list(running))


def _may_start(deadline: float | None) -> bool:
    return deadline is None or time.monotonic() < deadline


def _start(job: Job, claim: int) -> subprocess.Popen:
    job.log.parent.mkdir(parents=True, exist_ok=True)
    path = [str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    with open(job.log, "wb") as log:
        # A session of its own: Ctrl-C reaches this process alone, which then stops its children.
        return subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(claim,),
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)},
        )


def _stop(processes: Sequence[subprocess.Popen]) -> None:
    # Not SIGINT, which the children of a shell's background job ignore.
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
