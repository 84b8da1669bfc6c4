"""What ends a run before its time: signals, ranks that hang, losses that are not finite."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

from torch.distributed import Store

from sfa_ext import ranks


class Stopped(KeyboardInterrupt):
    """A signal asked the run to stop, and it saved before it did. `status` is what the process should leave with."""

    def __init__(self, by: StopSignal, text: str = ""):
        super().__init__(f"stopped by {by.number.name}{text}")
        self.status = 128 + by.number


class Diverged(ValueError):
    """Losses or gradients were not finite for many steps in a row."""


class StopSignal:
    """While entered, SIGTERM and Ctrl-C only set `requested`: the loop saves and leaves at the end of its step.

    A second Ctrl-C does not wait for that. What ignores a signal, as jobs in the background of a shell do, goes on so.
    """

    requested = False
    number = signal.SIGTERM  # the one that came; on a rank that only heard of it from another, this one

    def __enter__(self) -> StopSignal:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handler
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: Any) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested, self.number = True, signal.Signals(number)


@contextlib.contextmanager
def watched(store: Store, timeout: float) -> Iterator[None]:
    """Ends this process where no rank got any further for `timeout` seconds, with a line that names who hangs.

    store: of the process group; ranks leave there how far they are. Waiting for a message that does not come cannot be
    broken off from Python, therefore a thread looks after it, and ends the process with status 1.
    """
    end = threading.Event()
    thread = threading.Thread(target=_watch, args=(store, timeout, end), daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def _watch(store: Store, timeout: float, end: threading.Event) -> None:
    mine, since, beat, before = None, time.monotonic(), 0, None
    pause = min(timeout / 5, 10.0)
    while not end.wait(pause):
        beat += 1
        place = [ranks.progress.step, ranks.traffic.messages, ranks.progress.images]
        try:
            store.set(f"beat/{ranks.rank()}", json.dumps([beat, *place]))
            if place != mine or not ranks.progress.watched:
                mine, since, before = place, time.monotonic(), None
                continue
            if time.monotonic() - since < timeout:
                continue
            beats = [json.loads(b) for b in store.multi_get([f"beat/{r}" for r in range(ranks.size())])]
        except RuntimeError:  # the store is gone, and with it the first rank or torchrun
            return
        if before is None or beat < before[0] + 2:
            before = before or (beat, beats)  # two beats later it shows who does not even beat any more
        elif any(now[1:] != then[1:] for now, then in zip(beats, before[1], strict=True)):
            since, before = time.monotonic(), None  # somebody works: this rank only waits
        else:
            _give_up(store, culprits(before[1], beats), beats, timeout, 4 * pause)


def culprits(before: Sequence[Sequence[int]], now: Sequence[Sequence[int]]) -> list[int]:
    """The ranks that the others wait for. Beats are [number, step, messages, images] of each rank.

    Those whose number stands still are stopped as a whole; else it is those that sent fewest messages.
    """
    still = [rank for rank, (b, n) in enumerate(zip(before, now, strict=True)) if b[0] == n[0]]
    fewest = min(n[2] for n in now)
    return still or [rank for rank, n in enumerate(now) if n[2] == fewest]


def _give_up(store: Store, hanging: list[int], beats: Sequence[Sequence[int]], timeout: float, grace: float) -> None:
    others = [rank for rank in range(len(beats)) if rank not in hanging]
    if ranks.rank() == (others or hanging)[0]:
        names, step = ", ".join(map(str, hanging)), max(n[1] for n in beats)  # of one that is stopped it is out of date
        print(
            f"sfa: error: rank {names} hangs at step {step}: it did nothing for {timeout:g} s "
            "(timeout), and the others wait for it; the same command goes on from the last checkpoint",
            file=sys.stderr,
            flush=True,
        )
        with contextlib.suppress(RuntimeError):
            store.set("hang/told", "")
    if ranks.rank() in hanging:
        with contextlib.suppress(RuntimeError):  # left before, it would look to the others like one that crashed
            store.wait(["hang/told"], timedelta(seconds=timeout + grace))
        faulthandler.dump_traceback()
    else:
        time.sleep(grace)  # the store may be this process's, and those that hang find out by it that they do
    os._exit(1)
