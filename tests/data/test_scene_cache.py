"""The cache of rendered scenes is whole or absent, whatever happens to the process, the file or the disk."""

import errno
import multiprocessing.reduction
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from sfa_ext.data import DataError
from sfa_ext.data.scenes import Scenes, cache

# Enough for worker processes to be started.
MANY, SIZE = 150, 64
RENDER = """
import pathlib, sys
from sfa_ext.data.scenes.cache import Request, prepare
prepare(Request("source", "train", 0, 64, int(sys.argv[2])), pathlib.Path(sys.argv[1]), 2)
"""


def make(folder, count=6, size=24, **settings):
    return Scenes("train", "source", count=count, size=size, cache=folder, **settings)


def same_as_fresh(dataset, indices):
    request = dataset.request
    fresh = Scenes(request.split, request.domain, request.count, request.size, request.seed, cache=None)
    for index in indices:
        a, b = dataset[index], fresh[index]
        for name in ("image", "semantic", "depth", "masks"):
            assert torch.equal(a[name], b[name]), (index, name)


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def leftovers(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".tmp")]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_any_number_of_processes_renders_the_same(tmp_path, workers):
    dataset = make(tmp_path, MANY, SIZE, workers=workers)
    same_as_fresh(dataset, [0, 1, 2, 74, MANY - 1])
    assert not leftovers(tmp_path)


def test_a_second_request_reads_what_the_first_rendered(tmp_path):
    make(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    same_as_fresh(make(tmp_path), range(6))
    same_as_fresh(make(tmp_path, count=3), range(3))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")} == before


def test_the_environment_chooses_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SFA_CACHE", str(tmp_path / "here"))
    make("auto")
    assert len(visible(tmp_path / "here")) == 1


@pytest.mark.parametrize("damage", ["truncated", "missing array", "no index", "other shape", "index of nonsense"])
def test_a_damaged_cache_is_noticed_and_made_again(tmp_path, damage, caplog):
    make(tmp_path)
    folder = tmp_path / visible(tmp_path)[0]
    if damage == "truncated":
        os.truncate(folder / "image.npy", 500)
    elif damage == "missing array":
        (folder / "depth.npy").unlink()
    elif damage == "no index":
        (folder / "complete.json").unlink()
    elif damage == "index of nonsense":
        (folder / "complete.json").write_text("[1")
    else:
        shutil.copy(folder / "semantic.npy", folder / "instance.npy")
        data = bytearray((folder / "semantic.npy").read_bytes())
        at = data.index(b"(6, 24, 24)")
        data[at : at + 11] = b"(6, 12, 48)"
        (folder / "semantic.npy").write_bytes(data)
    same_as_fresh(make(tmp_path), range(6))
    assert "damaged" in caplog.text and str(folder) in caplog.text
    assert not leftovers(tmp_path)


def test_killed_while_rendering_it_leaves_nothing_that_looks_whole(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", RENDER, str(tmp_path), "20000"], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*.tmp/worker1.log")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert visible(tmp_path) == [] and leftovers(tmp_path)
    same_as_fresh(make(tmp_path, MANY, SIZE), [0, 1, MANY - 1])
    assert len(visible(tmp_path)) == 1 and not leftovers(tmp_path)


def test_two_processes_at_once_make_one_cache(tmp_path):
    running = [
        subprocess.Popen([sys.executable, "-c", RENDER, str(tmp_path), str(MANY)], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=100)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], errors
    assert len(visible(tmp_path)) == 1
    same_as_fresh(make(tmp_path, MANY, SIZE), [0, MANY - 1])


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    make(tmp_path)
    good = visible(tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(DataError, match=rf"no room for 9 scenes \(0 MB\) in {tmp_path}.*SFA_CACHE") as caught:
        make(tmp_path, count=9)
    assert "\n" not in str(caught.value)
    assert visible(tmp_path) == good and not leftovers(tmp_path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=f"cannot write scenes into {tmp_path}/file/cache .*SFA_CACHE"):
        make(tmp_path / "file" / "cache")


def test_a_failing_worker_is_reported_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_BOOT", "raise MemoryError('out of memory')")
    with pytest.raises(DataError, match="worker process that rendered scenes failed: MemoryError: out of memory"):
        make(tmp_path, MANY, SIZE)
    assert visible(tmp_path) == [] and not leftovers(tmp_path)


def test_a_cached_data_set_travels_to_a_worker_as_a_path(tmp_path):
    dataset = make(tmp_path, MANY, SIZE)
    dataset[0]
    assert len(multiprocessing.reduction.ForkingPickler.dumps(dataset)) < 5000
