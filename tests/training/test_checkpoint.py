"""Checkpoints: whole or not there, the newest few, the one before where one is damaged, on any number of ranks."""

from __future__ import annotations

import processes
import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from sfa_ext import ranks
from sfa_ext.selection.shards import local
from sfa_ext.training.checkpoint import Checkpoints, paths
from sfa_ext.training.checkpoint_folder import read as read_folder
from sfa_ext.training.snapshot import Snapshot

# Each with its kind: as many numbers as the rank's number, one for each rank, and none at all.
OWN = {"mean": "mean", "joined": "joined", "none": "joined"}


def write(folder, steps, keep=2, background=False):
    """A checkpoint at each step: "same" on all ranks; of its own each has 10 times the step plus its number."""
    with Checkpoints(folder, keep, background) as checkpoints:
        for step in steps:
            rank, many = ranks.rank(), ranks.size() > 1
            tensors = {"same": torch.full((1000,), float(step)), "scalar": torch.tensor(step, dtype=torch.int16)}
            if many:
                tensors |= {"mean": torch.tensor(10.0 * step + rank), "joined": torch.full((rank,), 10 * step + rank)}
                tensors |= {"none": torch.empty(0, dtype=torch.bfloat16)}
            checkpoints.save(Snapshot(tensors, OWN if many else {}, {"step": step}))
            tensors["same"].fill_(-1)  # training goes on


def read(folder):
    """(step, whether what is the same is that step everywhere, "mean") of the newest checkpoint."""
    found = Checkpoints(folder, 2).newest()
    step, tensors = found.facts["step"], found.tensors
    same = bool((tensors["same"] == step).all()) and tensors["scalar"].tolist() == step
    mean = tensors.get("mean")
    return step, same, None if mean is None else mean.item()


def read_joined(folder):
    tensors = Checkpoints(folder, 2).newest().tensors
    assert tensors["none"].shape == (0,) and tensors["none"].dtype == torch.bfloat16
    return tensors["joined"].tolist()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("background", [False, True])
def test_the_newest_few_stay(tmp_path, background):
    write(tmp_path, [1, 5, 10, 200], keep=2, background=background)
    assert names(tmp_path) == ["step-000000010", "step-000000200"]
    assert read(tmp_path) == (200, True, None)
    with pytest.raises(ValueError, match="keep: must be 1 checkpoint or more, got 0"):
        Checkpoints(tmp_path, 0)


def test_there_is_nothing_in_an_empty_folder(tmp_path):
    assert Checkpoints(tmp_path / "none", 1).newest() is None


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_one_is_set_aside_for_the_one_before(tmp_path, capsys, damage):
    write(tmp_path, [1, 2])
    (path,) = paths(tmp_path)[-1].glob("*.safetensors")
    whole = path.read_bytes()
    flipped = bytes([whole[-100] ^ 1])  # a single bit of a number
    path.write_bytes({"cut": whole[:-7], "flip": whole[:-100] + flipped + whole[-99:], "empty": b""}[damage])
    assert read(tmp_path) == (1, True, None)
    said = capsys.readouterr().err
    assert said.startswith("sfa: warning:") and said.count("\n") == 1
    assert "step-000000002: cannot be read" in said
    assert said.endswith("going on from the one before, step-000000001\n")
    assert names(tmp_path) == ["step-000000001", "step-000000002.damaged"]
    write(tmp_path, [2], keep=1)  # what comes next is not older than the damaged one
    assert read(tmp_path) == (2, True, None)


def test_where_none_can_be_read_nothing_is_touched(tmp_path):
    write(tmp_path, [1, 2])
    for path in paths(tmp_path):
        (path / "rank-0.json").write_text("{}")
    with pytest.raises(ValueError, match="step-000000002: cannot be read"):
        read(tmp_path)
    assert len(paths(tmp_path)) == 2


def test_what_a_killed_process_left_is_removed(tmp_path):
    write(tmp_path, [1, 2])
    (paths(tmp_path)[-1] / "rank-0.json").unlink()  # which comes last
    assert read(tmp_path) == (1, True, None)
    assert names(tmp_path) == ["step-000000001"]


def test_a_step_that_is_there_takes_new_facts_alone(tmp_path):
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(Snapshot({"x": torch.zeros(3)}, {}, {"step": 1, "results": {}}))
        (path,) = paths(tmp_path)
        (shard,) = path.glob("*.safetensors")
        before = shard.stat()
        checkpoints.save(Snapshot({"x": torch.zeros(3)}, {}, {"step": 1, "results": {"val": 0.5}}))
    assert read_folder(path).facts == {"step": 1, "results": {"val": 0.5}}
    assert (shard.stat().st_mtime_ns, shard.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_each_rank_gets_its_own_back_and_other_numbers_of_ranks_what_stands_for_it(tmp_path):
    processes.run(2, write, tmp_path, [1, 2, 3])
    assert names(tmp_path) == ["step-000000002", "step-000000003"]
    assert processes.run(2, read, tmp_path) == [(3, True, 30.0), (3, True, 31.0)]
    assert processes.run(2, read_joined, tmp_path) == [[], [31]]
    for size in (1, 4):
        assert processes.run(size, read, tmp_path) == [(3, True, 30.5)] * size
        assert processes.run(size, read_joined, tmp_path) == [[31]] * size
    (tmp_path / "step-000000003" / "rank-1.json").unlink()  # as if rank 1 had died before it was written
    assert processes.run(2, read, tmp_path) == [(2, True, 20.0), (2, True, 21.0)]
    assert names(tmp_path) == ["step-000000002"]


ROWS = torch.arange(15.0).view(5, 3)


def mesh():
    return init_device_mesh("cpu", (ranks.size(),))


def write_rows(folder):
    rows = distribute_tensor(ROWS, mesh(), [Shard(0)])
    with Checkpoints(folder, 1, background=True) as checkpoints:
        tensors = {"rows": rows, "same": torch.ones(2), "own": torch.tensor([ranks.rank()])}
        checkpoints.save(Snapshot(tensors, {"own": "joined"}, {"step": 1}))
        local(rows).fill_(-1)


def read_rows(folder):
    """What this rank has of the rows, shared again, and whether it can have them whole."""
    checkpoints = Checkpoints(folder, 1)
    shared, whole = (checkpoints.newest(m).tensors for m in (mesh(), None))
    rows, fits = shared["rows"].to_local().tolist(), shared["rows"].shape == ROWS.shape
    own = [t["own"].tolist() for t in (shared, whole)]
    return rows, own, fits and torch.equal(whole["rows"], ROWS)


def test_ranks_write_and_read_their_own_rows_of_what_they_share(tmp_path):
    processes.run(4, write_rows, tmp_path)  # 2, 2, 1 and 0 rows
    held = [safe_open(p, "pt").get_slice("rows").get_shape() for p in sorted(paths(tmp_path)[0].glob("shard-*"))]
    assert held == [[2, 3], [2, 3], [1, 3], [0, 3]]
    for size in (2, 3, 4):
        chunks = [c.tolist() for c in ROWS.chunk(size)]
        chunks += [[]] * (size - len(chunks))
        every = [0, 1, 2, 3]  # also as many ranks have all of it where they do not share
        own = [[[r] if size == 4 else every, every] for r in range(size)]
        assert processes.run(size, read_rows, tmp_path) == [(c, o, True) for c, o in zip(chunks, own, strict=True)]
    target = {"rows": torch.empty(5, 3)}  # anybody can read them with torch's own reader
    dcp.load(target, storage_reader=HuggingFaceStorageReader(str(paths(tmp_path)[0])), no_dist=True)
    assert torch.equal(target["rows"], ROWS)


def test_what_one_rank_alone_finds_damaged_no_rank_takes(tmp_path):
    processes.run(2, write, tmp_path, [1, 2])
    (shard,) = (tmp_path / "step-000000002").glob("shard-00002-*")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert processes.run(2, read, tmp_path) == [(1, True, 10.0), (1, True, 11.0)]
    assert names(tmp_path) == ["step-000000001", "step-000000002.damaged"]


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
    assert "File too large" in second and "step-000000002: the checkpoint" in second
    assert processes.run(2, read, tmp_path) == [(1, True, 10.0), (1, True, 11.0)]
