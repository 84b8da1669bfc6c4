"""Checkpoints: whole or not there, the newest few, the one before where one is damaged, on any number of ranks."""

from __future__ import annotations

import processes
import pytest
import torch

from sfa_ext import ranks
from sfa_ext.training.checkpoint import Checkpoints, paths


def write(folder, steps, keep=2, background=False):
    """A checkpoint at each step: "same" on all ranks, "own" 10 times the step plus the rank."""
    with Checkpoints(folder, keep, background) as checkpoints:
        for step in steps:
            same = torch.full((1000,), float(step))
            own = {"own": torch.tensor(10.0 * step + ranks.rank())} if ranks.size() > 1 else {}
            checkpoints.save({"same": same}, own, {"step": step})
            same.fill_(-1)  # training goes on


def read(folder):
    """(step, whether "same" is that step everywhere, "own") of the newest checkpoint."""
    tensors, meta = Checkpoints(folder, 2).newest()
    own = tensors.get("own")
    return meta["step"], bool((tensors["same"] == meta["step"]).all()), None if own is None else own.item()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("background", [False, True])
def test_the_newest_few_stay(tmp_path, background):
    write(tmp_path, [1, 5, 10, 200], keep=2, background=background)
    assert names(tmp_path) == ["step-000000010.safetensors", "step-000000200.safetensors"]
    assert read(tmp_path) == (200, True, None)
    with pytest.raises(ValueError, match="keep: must be 1 checkpoint or more, got 0"):
        Checkpoints(tmp_path, 0)


def test_there_is_nothing_in_an_empty_folder(tmp_path):
    assert Checkpoints(tmp_path / "none", 1).newest() is None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_one_is_set_aside_for_the_one_before(tmp_path, capsys, damage):
    write(tmp_path, [1, 2])
    path = paths(tmp_path)[-1]
    whole = path.read_bytes()
    flipped = bytes([whole[-100] ^ 1])  # a single bit of a number
    path.write_bytes({"cut": whole[:-7], "flip": whole[:-100] + flipped + whole[-99:], "empty": b""}[damage])
    assert read(tmp_path) == (1, True, None)
    said = capsys.readouterr().err
    assert said.startswith("sfa: warning:") and said.count("\n") == 1
    assert "step-000000002.safetensors: cannot be read" in said
    assert said.endswith("going on from the one before, step-000000001.safetensors\n")
    assert names(tmp_path) == ["step-000000001.safetensors", "step-000000002.safetensors.damaged"]
    write(tmp_path, [2], keep=1)  # what comes next is not older than the damaged one
    assert read(tmp_path) == (2, True, None)


def test_where_none_can_be_read_nothing_is_touched(tmp_path):
    write(tmp_path, [1, 2])
    for path in paths(tmp_path):
        path.write_bytes(b"x")
    with pytest.raises(ValueError, match="step-000000002.safetensors: cannot be read"):
        read(tmp_path)
    assert len(paths(tmp_path)) == 2


def test_what_a_killed_process_left_of_a_file_is_removed(tmp_path):
    write(tmp_path, [1])
    (tmp_path / ".step-000000002.safetensors.123").write_bytes(b"half")
    assert read(tmp_path) == (1, True, None)
    assert names(tmp_path) == ["step-000000001.safetensors"]


def test_each_rank_gets_its_own_back_and_other_numbers_of_ranks_the_mean(tmp_path):
    processes.run(2, write, tmp_path, [1, 2, 3])
    assert len(names(tmp_path)) == 6
    assert processes.run(2, read, tmp_path) == [(3, True, 30.0), (3, True, 31.0)]
    for size in (1, 4):
        assert processes.run(size, read, tmp_path) == [(3, True, 30.5)] * size
    (tmp_path / "step-000000003.rank-1.safetensors").unlink()  # as if rank 1 had died before it was written
    assert processes.run(2, read, tmp_path) == [(2, True, 20.0), (2, True, 21.0)]


def write_without_room(folder):
    import resource

    if ranks.rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        write(folder, [2])
    except OSError as error:
        return str(error)


def test_where_one_rank_has_no_room_all_say_so_and_the_last_one_stays(tmp_path):
    processes.run(2, write, tmp_path, [1])
    first, second = processes.run(2, write_without_room, tmp_path)
    assert "could not be written (another rank could not write its part); make room" in first
    assert "File too large" in second and "step-000000002.rank-1.safetensors" in second
    assert processes.run(2, read, tmp_path) == [(1, True, 10.0), (1, True, 11.0)]
