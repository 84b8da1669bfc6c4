"""Rendered scenes on disk: one folder of memory-mapped arrays per request, complete or absent, never half of it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import selectors
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sfa_ext.data.errors import DataError
from sfa_ext.data.scenes.render import GENERATOR_VERSION, render_index

_log = logging.getLogger(__name__)
_INDEX = "complete.json"
# Below this many pixels starting a worker process takes longer than rendering.
_WORTH_A_WORKER = 64 * 96 * 96

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Request:
    """The first `count` scenes of a split of a domain, at size x size pixels."""

    domain: str
    split: str
    seed: int
    size: int
    count: int

    @property
    def family(self) -> str:
        """Shared by all requests that are prefixes of one another."""
        return f"v{GENERATOR_VERSION}-{self.domain}-{self.split}-seed{self.seed}-{self.size}px"

    @property
    def name(self) -> str:
        return f"{self.family}-{self.count}"

    def layout(self) -> dict[str, tuple[type, tuple[int, ...]]]:
        """Type and shape of each array."""
        plane = (self.count, self.size, self.size)
        return {
            "image": (np.uint8, (self.count, 3, self.size, self.size)),
            "semantic": (np.uint8, plane),
            "instance": (np.uint8, plane),
            "depth": (np.float32, plane),
        }


def default_folder() -> Path:
    """$SFA_CACHE, else ~/.cache/sfa_ext/scenes."""
    chosen = os.environ.get("SFA_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "sfa_ext" / "scenes"


def prepare(request: Request, folder: Path, workers: int) -> Path:
    """The folder that holds `request` or a longer run of the same scenes, rendered now where there is none.

    Raises:
        DataError: the folder cannot be written, or the disk has no room for the scenes.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / f".{request.family}.lock"):
            _sweep(request, folder)
            return _existing(request, folder) or _render(request, folder, workers)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            need = sum(np.dtype(t).itemsize * int(np.prod(s)) for t, s in request.layout().values()) / 1e6
            raise DataError(
                f"no room for {request.count} scenes ({need:.0f} MB) in {folder}: free some space, point SFA_CACHE to "
                "another disk, or use cache=None to render on the fly"
            ) from error
        raise DataError(
            f"cannot write scenes into {folder} ({error.strerror}): point SFA_CACHE to a folder that can be written, "
            "or use cache=None to render on the fly"
        ) from error


def open_arrays(path: Path) -> Arrays:
    """The arrays of a prepared folder, mapped into memory read-only."""
    return {file.stem: np.load(file, mmap_mode="r", allow_pickle=False) for file in sorted(path.glob("*.npy"))}


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time; the system releases it when the process dies, however it dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("another process renders these scenes (%s); waiting for it", path.parent)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep(request: Request, folder: Path) -> None:
    """Removes what a killed process left; the lock says that none is at work."""
    for left in folder.glob(f".{request.family}-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _existing(request: Request, folder: Path) -> Path | None:
    """The shortest complete cache of at least `count` scenes; a damaged one on the way is removed."""
    found = []
    for path in folder.glob(f"{request.family}-*"):
        count = path.name.rpartition("-")[2]
        if count.isdigit() and int(count) >= request.count:
            found.append((int(count), path))
    for count, path in sorted(found):
        reason = _damage(Request(**{**asdict(request), "count": count}), path)
        if reason is None:
            return path
        _log.warning("the cached scenes in %s are damaged (%s) and will be removed", path, reason)
        doomed = folder / f".{path.name}.tmp"
        os.rename(path, doomed)
        shutil.rmtree(doomed, ignore_errors=True)
    return None


def _damage(request: Request, path: Path) -> str | None:
    """What is wrong with a cache folder, None if nothing is."""
    try:
        sizes = json.loads((path / _INDEX).read_text())
        for name, (dtype, shape) in request.layout().items():
            file = path / f"{name}.npy"
            size = file.stat().st_size
            if size != sizes[file.name]:
                return f"{file.name} has {size} bytes instead of {sizes[file.name]}"
            array = np.load(file, mmap_mode="r", allow_pickle=False)
            if array.dtype != dtype or array.shape != shape:
                return f"{file.name} holds {array.dtype} {array.shape} instead of {np.dtype(dtype)} {shape}"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    return None


def _render(request: Request, folder: Path, workers: int) -> Path:
    temporary, final = folder / f".{request.name}.tmp", folder / request.name
    temporary.mkdir()
    try:
        for name, (dtype, shape) in request.layout().items():
            file = temporary / f"{name}.npy"
            np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape).flush()
            # Without its blocks a mapped file on a full disk kills the writer (SIGBUS) instead of raising an error.
            with file.open("r+b") as handle:
                os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
        if workers > 0 and request.count * request.size**2 >= _WORTH_A_WORKER:
            _in_processes(request, temporary, workers)
        else:
            for _ in tqdm(fill(request, temporary, range(request.count)), total=request.count, **_bar(request)):
                pass
        sizes = {file.name: file.stat().st_size for file in sorted(temporary.glob("*.npy"))}
        with (temporary / _INDEX).open("w") as handle:
            json.dump(sizes, handle)
            handle.flush()
            os.fsync(handle.fileno())
        os.rename(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def fill(request: Request, path: Path, indices: range) -> Iterator[int]:
    """Renders `indices` into the arrays of `path`, yielding each when it is done."""
    arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r+") for name in request.layout()}
    for index in indices:
        rendered = render_index(request.domain, request.split, request.seed, index, request.size)
        for name, array in arrays.items():
            array[index] = getattr(rendered, name)
        yield index
    for array in arrays.values():
        array.flush()


# Workers get a bare package in place of this one: they need numpy only, and importing torch would take seconds.
_BOOT = """
import sys, types
package = types.ModuleType("sfa_ext")
package.__path__ = [sys.argv[1]]
sys.modules["sfa_ext"] = package
from sfa_ext.data.scenes.worker import main
main(sys.argv[2:])
"""


def _in_processes(request: Request, path: Path, workers: int) -> None:
    package = str(Path(__file__).parents[2])
    running: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    try:
        for number in range(workers):
            arguments = [json.dumps(asdict(request)), str(path), str(number), str(workers)]
            with (path / f"worker{number}.log").open("wb") as log:
                running.append(
                    subprocess.Popen(
                        [sys.executable, "-c", _BOOT, package, *arguments],
                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=environment,
                    )
                )  # fmt: skip
        with tqdm(total=request.count, **_bar(request)) as bar:
            _follow(running, bar.update)
        for number, process in enumerate(running):
            if process.wait() != 0:
                lines = (path / f"worker{number}.log").read_text(errors="replace").strip().splitlines()
                reason = lines[-1] if lines else f"exit status {process.returncode}"
                raise DataError(f"a worker process that rendered scenes failed: {reason}")
        for log in path.glob("worker*.log"):
            log.unlink()
    finally:
        for process in running:
            process.kill()
            process.wait()
            process.stdout.close()


def _bar(request: Request) -> dict[str, Any]:
    # Work of less than a second shows no bar, nor does anything that is not a terminal.
    return {"desc": f"rendering {request.name}", "unit": "img", "delay": 1, "disable": None}


def _follow(running: list[subprocess.Popen[bytes]], advance: Callable[[int], Any]) -> None:
    """Reads the byte that a worker writes for each scene, until all have closed their ends."""
    with selectors.DefaultSelector() as selector:
        for process in running:
            selector.register(process.stdout, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                data = os.read(key.fd, 65536)
                if data:
                    advance(len(data))
                else:
                    selector.unregister(key.fileobj)
