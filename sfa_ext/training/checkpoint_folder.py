"""One checkpoint on disk: a folder in the safetensors format of torch.distributed.checkpoint.

Every rank writes what it alone has, and the first one what all have alike, without a word between them; then, with a
checksum of these files, the *seal* of its part: rank-R.json. A checkpoint is whole once all seals are there. Reading,
torch finds for each rank the rows it needs, whichever ranks wrote them.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from sfa_ext import ranks
from sfa_ext.files import write_text
from sfa_ext.selection.shards import is_shard
from sfa_ext.training.snapshot import Snapshot

# Ranks save and load each for itself, on purpose.
warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)

_OWN = "rank-"  # of names of what each rank has of its own
_FIRST = "rank-0.json"  # the seal that also holds the facts, and tells how many seals there are


def is_whole(folder: Path) -> bool:
    """Whether every rank wrote its part to the end. What it wrote may have been damaged since."""
    if not (folder / _FIRST).is_file():
        return False
    try:
        parts = _unsealed(folder, 0)["parts"]
    except ValueError:
        return True  # and damaged
    return all((folder / _seal(r)).is_file() for r in range(parts))


def spoil(folder: Path) -> None:
    """Makes a checkpoint one that is not whole, before its files are removed."""
    (folder / _FIRST).unlink(missing_ok=True)


def write(folder: Path, snapshot: Snapshot, stage: bool = False) -> Callable[[], None]:
    """Prepares this rank's part in `folder`, new or empty; the function that is returned writes it.

    stage: the tensors may change before it is called, so they are copied now. It raises OSError.
    """
    first, shared = ranks.rank() == 0, [n for n, t in snapshot.tensors.items() if is_shard(t)]
    mine = {n: t for n, t in snapshot.tensors.items() if first or n in snapshot.own or is_shard(t)}
    mine = {_own_name(n, ranks.rank()) if n in snapshot.own else n: t for n, t in mine.items()}
    if not mine:
        return lambda: None
    facts = {
        "parts": ranks.size() if shared or snapshot.own else 1,
        "shared": shared,
        "own": snapshot.own,
        "facts": copy.deepcopy(snapshot.facts),  # a run changes them while they are written
    }
    return functools.partial(_write, folder, _staged(mine) if stage else mine, facts if first else {}, ranks.rank())


def _write(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any], rank: int) -> None:
    from torch.distributed.checkpoint import CheckpointException, save

    folder.mkdir(parents=True, exist_ok=True)
    try:
        save(tensors, storage_writer=_writer(folder, rank), planner=_planner(), no_dist=True)
    except CheckpointException as error:
        raise _cause(error) from error
    files = {p.name: _checksum(p) for p in sorted(folder.glob(f"shard-{rank + 1:05d}-*"))}
    _write_seal(folder, rank, {"files": files} | facts)


def write_facts(folder: Path, facts: dict[str, Any]) -> None:
    """Replaces the facts of a whole checkpoint, in one moment. Its tensors stay."""
    _write_seal(folder, 0, _unsealed(folder, 0) | {"facts": facts})


def read(folder: Path, mesh: Any = None) -> Snapshot:
    """The snapshot in `folder`. All ranks read, and each checks its share of the files.

    mesh: of torch's DeviceMesh, all ranks in one dimension: tensors that ranks shared come as such then, and each rank
        reads its own rows. Without it every rank has them whole.

    A rank has its own tensors back bit by bit where as many ranks read as wrote, and share as those did. Raises
    ValueError where the folder is truncated, altered or foreign.
    """
    from torch.distributed.checkpoint import CheckpointException

    try:
        seal = _unsealed(folder, 0)
        for part in range(ranks.rank(), seal["parts"], ranks.size()):
            for name, checksum in _unsealed(folder, part)["files"].items():
                if _checksum(folder / name) != checksum:
                    raise KeyError(f"the checksum of {name} is another")
        return Snapshot(_load(folder, seal, mesh), seal["own"], seal["facts"])
    except (SafetensorError, KeyError, ValueError, OSError, CheckpointException) as error:
        reason = error if not isinstance(error, CheckpointException) else _cause(error)
        raise ValueError(f"{folder}: cannot be read, it is truncated, altered or not of sfa_ext ({reason})") from error


def _load(folder: Path, seal: dict[str, Any], mesh: Any) -> dict[str, Tensor]:
    from torch.distributed.checkpoint import load
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    reader, own, writers = HuggingFaceStorageReader(str(folder)), seal["own"], range(seal["parts"])
    sizes = reader.read_metadata().state_dict_metadata
    alike = ranks.size() == len(writers) and (mesh is not None) == bool(seal["shared"])
    from_ranks = [ranks.rank()] if alike else writers
    stored = {name: [_own_name(name, r) for r in from_ranks] for name in own}
    stored |= {name: [name] for name in sizes if not name.startswith(_OWN)}
    as_shared = set(seal["shared"]) if mesh is not None else ()
    loaded = {n: _empty(sizes[n], mesh if n in as_shared else None) for names in stored.values() for n in names}
    load(loaded, storage_reader=reader, no_dist=True)
    merge = {"mean": lambda parts: sum(parts) / len(parts), "joined": torch.cat}
    return {
        name: loaded[names[0]] if len(names) == 1 else merge[own[name]]([loaded[n] for n in names])
        for name, names in stored.items()
    }


def _empty(metadata: Any, mesh: Any) -> Tensor:
    size, dtype = metadata.size, metadata.properties.dtype
    if mesh is None:
        return torch.empty(size, dtype=dtype)
    from torch.distributed import tensor

    return tensor.empty(*size, dtype=dtype, device_mesh=mesh, placements=[tensor.Shard(0)])


def _staged(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    stager = DefaultStager(StagingOptions(*[False] * 4))  # no shared or pinned memory, no thread: a copy
    try:
        return stager.stage(tensors)
    finally:
        stager.close()


def _writer(folder: Path, rank: int) -> Any:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    class Writer(HuggingFaceStorageWriter):
        def prepare_global_plan(self, plans: list[Any]) -> list[Any]:
            return [dataclasses.replace(plan, storage_data={"shard_index": rank + 1}) for plan in plans]

    return Writer(str(folder), save_distributed=True)


def _planner() -> Any:
    from torch.distributed.checkpoint import DefaultSavePlanner, Metadata

    class Planner(DefaultSavePlanner):
        def create_global_plan(self, all_plans: list[Any]) -> tuple[list[Any], Any]:
            """Without the check that the plans cover each tensor, which those of one rank cannot."""
            self.global_plan, self.metadata = all_plans, Metadata({})
            return all_plans, self.metadata

    return Planner()


def _own_name(name: str, rank: int) -> str:
    return f"{_OWN}{rank}/{name}"


def _seal(rank: int) -> str:
    return f"rank-{rank}.json"


def _write_seal(folder: Path, rank: int, facts: dict[str, Any]) -> None:
    write_text(folder / _seal(rank), json.dumps({"sha256": _digest(facts)} | facts))


def _unsealed(folder: Path, rank: int) -> dict[str, Any]:
    """What a seal holds. Raises FileNotFoundError, or ValueError where it is damaged."""
    facts = json.loads((folder / _seal(rank)).read_text(encoding="utf-8"))
    if not isinstance(facts, dict) or facts.pop("sha256", None) != _digest(facts):
        raise ValueError(f"the checksum of {_seal(rank)} is another")
    return facts


def _digest(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _cause(error: BaseException) -> BaseException:
    """What went wrong inside torch.distributed.checkpoint, which wraps it."""
    return next((cause for cause, _ in error.failures.values()), error)
