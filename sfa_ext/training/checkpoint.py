"""The checkpoints of a run, from which it goes on with the same bits, on as many ranks as before or on others."""

from __future__ import annotations

import copy
import functools
import json
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sfa_ext import ranks
from sfa_ext.training.checkpoint_folder import is_whole, read, spoil, write, write_facts
from sfa_ext.training.snapshot import Snapshot

_DAMAGED = ".damaged"  # added to the name of a checkpoint that could not be read


def paths(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, the oldest first."""
    return [p for p in _all(folder) if is_whole(p)]


def _all(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.suffix != _DAMAGED and p.is_dir())


class Checkpoints:
    """The checkpoints of a run, the newest `keep` of them; a context that waits for the last one at its end.

    background: tensors are copied, and written while training goes on; what goes wrong is said at the next save.
    """

    def __init__(self, folder: Path, keep: int, background: bool = False):
        if keep < 1:
            raise ValueError(f"keep: must be 1 checkpoint or more, got {keep}")
        self.folder, self.keep, self.background = folder, keep, background
        self._pool: ThreadPoolExecutor | None = None
        self._pending: tuple[Path, Future[None]] | None = None
        self._there: Path | None = None  # the last that was written, or read, whole

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        if kind is None:
            self.settle()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def save(self, snapshot: Snapshot, agreed: bool = True) -> None:
        """Writes this rank's part of a checkpoint, named after the "step" among the snapshot's facts.

        A step's tensors do not change: where they are there already, only the facts are written.

        agreed: every rank saves now; else this one alone does, since the others may be gone.

        Raises OSError where a file could not be written; checkpoints that were there stay.
        """
        if agreed:
            self.settle()
        path = self.folder / f"step-{snapshot.facts['step']:09d}"
        if path != self._there:
            self._later(path, write(path, snapshot, stage=self.background))
        elif ranks.rank() == 0:
            self._later(path, functools.partial(write_facts, path, copy.deepcopy(snapshot.facts)))
        if not agreed or not self.background:
            self.settle(agreed)

    def _later(self, path: Path, work: Callable[[], None]) -> None:
        self._pool = self._pool or ThreadPoolExecutor(1)
        self._pending = path, self._pool.submit(work)

    def settle(self, agreed: bool = True) -> None:
        """Waits until the last checkpoint is written, on all ranks, and removes those that are too old."""
        pending, self._pending = self._pending, None
        path, error = (self.folder, None) if pending is None else (pending[0], pending[1].exception())
        if error is not None and not isinstance(error, OSError):
            raise error
        if not (ranks.all_true(error is None) if agreed else error is None):
            if path != self._there:
                _remove(path)
            reason = "another rank could not write its part" if error is None else error.strerror or str(error)
            raise OSError(
                f"{path}: the checkpoint could not be written ({reason}); make room there, then the same command goes "
                "on from the last whole one"
            ) from error
        if pending is not None:
            self._there = path
        if agreed and ranks.rank() == 0:
            for old in paths(self.folder)[: -self.keep]:
                _remove(old)

    def newest(self, mesh: Any = None) -> Snapshot | None:
        """The newest checkpoint that can be read; None where there is none at all. All ranks ask.

        What a process left that was killed while it wrote is removed. Those that cannot be read are told to standard
        error, and set aside under another name once an older one could. mesh: as for `checkpoint_folder.read`.

        Raises ValueError where there are checkpoints, but none can be read.
        """
        broken: list[Path] = []
        first: ValueError | None = None
        for path in reversed(self._whole()):
            try:
                found, error = read(path, mesh), None
            except ValueError as e:
                found, error = None, e
            if ranks.all_true(error is None):
                self._set_aside(broken, path, first)
                self._there = path
                return found
            broken.append(path)
            first = first or ValueError(str(error or f"{path}: another rank cannot read its part"))
        if first is not None:
            raise first
        return None

    def _whole(self) -> list[Path]:
        """As the first rank finds them."""
        names: list[str] = []
        if ranks.rank() == 0:
            names = [p.name for p in paths(self.folder)]
            for partial in _all(self.folder):
                if partial.name not in names:
                    _remove(partial)
        return [self.folder / name for name in json.loads(ranks.gathered(json.dumps(names).encode())[0])]

    def _set_aside(self, broken: list[Path], instead: Path, error: ValueError | None) -> None:
        if broken and ranks.rank() == 0:
            tqdm.write(f"sfa: warning: {error}; going on from the one before, {instead.name}", file=sys.stderr)
            for path in broken:
                path.rename(path.with_name(path.name + _DAMAGED))


def _remove(folder: Path) -> None:
    spoil(folder)  # first, so that nobody takes what is left for a damaged one
    shutil.rmtree(folder, ignore_errors=True)
