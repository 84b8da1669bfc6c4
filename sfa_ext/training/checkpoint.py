"""Checkpoints from which a run goes on with the same bits, on as many ranks as before or on others.

Everything that all ranks have alike is one file, which the first rank writes: step-NUMBER.safetensors. While scores are
each rank's own (`Search.has_own_scores`), every rank adds a file of them, step-NUMBER.rank-R.safetensors; as many ranks
take them up bit by bit, another number of ranks takes their mean. A checkpoint counts once all of its files are whole;
each is written atomically and carries a checksum. (Not torch.distributed.checkpoint: its own file format is pickled.)
"""

from __future__ import annotations

import json
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sfa_ext import ranks
from sfa_ext.files import read_tensors, write_tensors
from sfa_ext.selection.shards import part_of, shared_as, whole
from sfa_ext.training.model import Model

_DAMAGED = ".damaged"  # added to the name of a checkpoint that could not be read


def paths(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first."""
    return sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith(".") and ".rank-" not in p.name)


class Checkpoints:
    """The checkpoints of a run, the newest `keep` of them; a context that waits for the last one at its end.

    background: tensors are copied, and written while training goes on; what goes wrong is said at the next save.
    """

    def __init__(self, folder: Path, keep: int, background: bool = False):
        if keep < 1:
            raise ValueError(f"keep: must be 1 checkpoint or more, got {keep}")
        self.folder, self.keep, self.background = folder, keep, background
        self._pool: ThreadPoolExecutor | None = None
        self._pending: list[tuple[Path, Future[None]]] = []
        if ranks.rank() == 0:
            for partial in folder.glob(".step-*"):  # of a process that was killed while it wrote
                partial.unlink(missing_ok=True)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type | None, *_: Any) -> None:
        if kind is None:
            self.settle()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def save(self, state: dict[str, Tensor], own: dict[str, Tensor], meta: dict[str, Any], agreed: bool = True) -> None:
        """Writes what all ranks have alike, what this rank has of its `own`, and `meta` with the "step".

        agreed: every rank saves now; else this one alone does, since the others may be gone.

        Raises OSError where a file could not be written; checkpoints that were there stay.
        """
        if agreed:
            self.settle()
        name, parts = f"step-{meta['step']:09d}", ranks.size() if own else 0
        if own:
            self._later(self.folder / f"{name}.rank-{ranks.rank()}.safetensors", own, {"step": meta["step"]})
        if ranks.rank() == 0:
            self._later(self.folder / f"{name}.safetensors", state, meta | {"parts": parts})
        if not agreed or not self.background:
            self.settle(agreed)

    def _later(self, path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
        copied = {n: t.detach().to("cpu", copy=self.background) for n, t in tensors.items()}
        self._pool = self._pool or ThreadPoolExecutor(1)
        self._pending.append((path, self._pool.submit(write_tensors, path, copied, meta)))

    def settle(self, agreed: bool = True) -> None:
        """Waits until the last checkpoint is written, on all ranks, and removes those that are too old."""
        pending, self._pending = self._pending, []
        failed = [(path, error) for path, future in pending if (error := future.exception()) is not None]
        path, error = failed[0] if failed else (self.folder, None)
        if error is not None and not isinstance(error, OSError):
            raise error
        if not (ranks.all_true(error is None) if agreed else error is None):
            reason = "another rank could not write its part" if error is None else error.strerror or str(error)
            raise OSError(
                f"{path}: the checkpoint could not be written ({reason}); make room there, then the same command goes "
                "on from the last whole one"
            ) from error
        if agreed and ranks.rank() == 0:
            self._remove_old()

    def _remove_old(self) -> None:
        for old in paths(self.folder)[: -self.keep]:
            for path in (old, *self.folder.glob(f"{old.stem}.rank-*")):
                path.unlink(missing_ok=True)

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and meta of the newest checkpoint that is whole; None where there is none at all.

        Those that cannot be read are told to standard error, and set aside under another name once an older one could.

        Raises ValueError where there are checkpoints, but none can be read.
        """
        listed = json.dumps([p.name for p in paths(self.folder)]).encode() if ranks.rank() == 0 else b""
        broken: list[Path] = []
        first: ValueError | None = None
        for path in (self.folder / name for name in reversed(json.loads(ranks.gathered(listed)[0]))):
            try:
                found, error = _read(path), None
            except (ValueError, OSError) as e:
                found, error = None, e
            if ranks.all_true(error is None):
                self._set_aside(broken, path, first)
                return found
            broken.append(path)
            first = first or ValueError(str(error or f"{path}: another rank cannot read its part"))
        if first is not None:
            raise first
        return None

    def _set_aside(self, broken: list[Path], instead: Path, error: ValueError | None) -> None:
        if broken and ranks.rank() == 0:
            tqdm.write(f"sfa: warning: {error}; going on from the one before, {instead.name}", file=sys.stderr)
            for path in broken:
                path.rename(path.with_name(path.name + _DAMAGED))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, meta = read_tensors(path)
    if parts := meta.get("parts", 0):
        every = [path.with_name(f"{path.stem}.rank-{r}.safetensors") for r in range(parts)]
        if parts == ranks.size():
            tensors |= read_tensors(every[ranks.rank()])[0]
        else:
            tensors |= _mean(every)
    return tensors, meta


def _mean(files: list[Path]) -> dict[str, Tensor]:
    total = read_tensors(files[0])[0]
    for path in files[1:]:
        for name, tensor in read_tensors(path)[0].items():
            total[name] += tensor
    return {name: tensor / len(files) for name, tensor in total.items()}


def collect(
    model: Model, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """What `restore` needs: tensors that all ranks have alike, tensors of this rank alone, and meta.

    Of a backbone that ranks share, the first one has everything, whole, so that any number of ranks may go on with it.
    """
    tensors = {f"model/{n}": t for n, t in model.state().items()}
    tensors |= {f"method/{n}": t for n, t in model.adaptation.optimizer_state(optimizer).items()}
    tensors |= {f"adamw/{n}": t for n, t in _adamw_state(optimizer).items()}
    tensors = {n: whole(t) for n, t in tensors.items()}
    own = {name: tensors.pop(name) for name in [f"method/{n}" for n in model.adaptation.own_state()]}
    return tensors, own, {"scaler": scaler.state_dict(), "fingerprint": model.adaptation.fingerprint}


def restore(
    tensors: dict[str, Tensor],
    meta: dict[str, Any],
    model: Model,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> None:
    """Takes up what `collect` gave. Raises ValueError where it does not fit the run."""
    if (here := model.adaptation.fingerprint) != meta["fingerprint"]:
        raise ValueError(f"checkpoint: was made with another backbone ({meta['fingerprint'][:12]}, here {here[:12]})")
    part = lambda key: {n.removeprefix(key): t for n, t in tensors.items() if n.startswith(key)}  # noqa: E731
    model.load_state(part("model/"))
    model.adaptation.load_optimizer_state(optimizer, part("method/"))
    _load_adamw_state(optimizer, part("adamw/"))
    scaler.load_state_dict(meta["scaler"])


def _adamw(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer | None:
    return optimizer.whole if hasattr(optimizer, "whole") else optimizer


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _adamw_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    inner = _adamw(optimizer)
    if inner is None:
        return {}
    kept = ((i, inner.state.get(p, {})) for i, p in enumerate(_parameters(inner)))
    return {f"{i}/{name}": torch.as_tensor(value) for i, state in kept for name, value in state.items()}


def _load_adamw_state(optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    inner = _adamw(optimizer)
    for key, value in state.items():
        position, name = key.split("/")
        parameter = _parameters(inner)[int(position)]
        part = value if name == "step" else part_of(value, parameter).to(parameter.device, copy=True)
        inner.state[parameter][name] = part if name == "step" else shared_as(parameter, part)
