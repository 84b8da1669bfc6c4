"""Separate random streams from one seed, so that runs of different methods can be paired."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derive(seed: int, stream: str, step: int = 0) -> int:
    """A 63-bit seed for `stream` ("head", "order", "augment", "method", "backbone", "loss", ...) at `step`."""
    digest = hashlib.sha256(f"{seed}/{stream}/{step}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextmanager
def stream(seed: int, name: str, step: int = 0) -> Iterator[None]:
    """Runs its body on torch's generators seeded for that stream, and puts their former state back."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(derive(seed, name, step))
        yield
