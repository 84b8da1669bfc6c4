"""How long a call takes on a GPU: the time between two events, with cold caches and the host out of the way."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

FLUSH_BYTES = 512 * 2**20  # several times any GPU's cache
REPEATS = 30


@dataclass(frozen=True)
class Timing:
    """Milliseconds on the device: median, lowest and highest; and microseconds that the host takes to launch."""

    ms: float
    low: float
    high: float
    host_us: float
    repeats: int


class Clock:
    """Times calls on `device`: a GPU by events, a CPU by its clock. `repeats`: at most so often."""

    def __init__(self, device: torch.device, repeats: int = REPEATS):
        self._device, self._repeats = device, repeats
        self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=device) if device.type == "cuda" else None

    def measure(self, call: Callable[[], object], seconds: float = 0.3) -> Timing:
        """Calls at least three times, after two calls that warm up, and for about `seconds`."""
        for _ in range(2):
            call()
        self._wait()
        start = time.perf_counter()
        for _ in range(3):
            call()
        host = (time.perf_counter() - start) / 3
        self._wait()
        each = (time.perf_counter() - start) / 3
        repeats = min(self._repeats, max(3, int(seconds / (each + 1e-3))))
        times = self._on_gpu(call, repeats, host) if self._flush is not None else self._on_cpu(call, repeats)
        return Timing(statistics.median(times), min(times), max(times), host * 1e6, repeats)

    def _on_gpu(self, call: Callable[[], object], repeats: int, host: float) -> list[float]:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
        # The GPU sleeps until the host has launched everything, or launches would be timed in place of kernels.
        cycles = int(min(host * 1.5 + 1e-4, 0.1) * 2e9)
        for begin, end in events:
            self._flush.zero_()
            torch.cuda._sleep(cycles)
            begin.record()
            call()
            end.record()
        self._wait()
        return [begin.elapsed_time(end) for begin, end in events]

    def _on_cpu(self, call: Callable[[], object], repeats: int) -> list[float]:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
        return times

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def ceilings(clock: Clock, device: torch.device, small: bool) -> dict[str, float]:
    """What the device reaches at best, measured: bytes per second of a large copy, read and written counted, and
    operations per second of a large matrix product in each dtype, on random numbers."""
    side, size = (64, 2**16) if small else (8192, 2**30)
    a, b = (torch.randint(0, 127, (size,), dtype=torch.int8, device=device) for _ in range(2))
    found = {"copy": 2 * size / clock.measure(partial(a.copy_, b)).ms * 1e3}
    for name in ("bfloat16", "float16", "float32"):
        a, b = (torch.randn(side, side, device=device).to(getattr(torch, name)) for _ in range(2))
        found[name] = 2 * side**3 / clock.measure(partial(torch.matmul, a, b)).ms * 1e3
    return found
