"""The bank: one backbone, many tasks, switched in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfa_ext.backbones import fingerprint, plain_state
from sfa_ext.data.augment import normalise
from sfa_ext.deltas import file
from sfa_ext.deltas.capture import check_backbone
from sfa_ext.deltas.fitted import FittedTask, exchange, fit
from sfa_ext.deltas.turns import Turns
from sfa_ext.tasks import inference

KEEP = ("device", "host", "disk")


@dataclass
class _Entry:
    """A task of the bank. `fitted` is missing while it waits on disk."""

    meta: dict[str, Any]
    path: Path | None
    head: nn.Module | None
    fitted: FittedTask | None


class TaskBank:
    """Tasks that share one backbone, which is held once. One task at a time is in the backbone, or none.

    Parameters
    ----------
    backbone: the model that the tasks were trained from, not adapted; the bank puts it into eval mode and changes it
        in place. With no task in it, it is bit-identical to what it was.
    keep: where the tensors of tasks wait until they are used: "device" (the backbone's), "host" (pinned where there is
        a GPU; on a CPU the same as "device") or "disk" (read again, and checked again, when used).

    Switching exchanges the selected weights in place and puts the method's modules and the head in their places; A, B,
    A gives A's outputs bit by bit. All methods may be called from many threads: those that want the task that is in
    the backbone run together, and a switch waits until they are done. Code that runs the backbone itself does it
    inside `with bank.task(name)`.
    """

    def __init__(self, backbone: nn.Module, *, keep: str = "device"):
        if keep not in KEEP:
            raise ValueError(f"keep: unknown {keep!r}, known: {', '.join(KEEP)}")
        if getattr(backbone, "_sfa_adaptation", None) is not None:
            raise ValueError("backbone: it is adapted; call detach() on that adaptation first")
        self.backbone = backbone.eval()
        self.keep = keep
        self.fingerprint = fingerprint(plain_state(backbone))
        self._bytes = sum(t.numel() * t.element_size() for t in [*backbone.parameters(), *backbone.buffers()])
        self._tasks: dict[str, _Entry] = {}
        self._resting: str | None = None
        self._turns = Turns(self._change)

    def __contains__(self, name: object) -> bool:
        return name in self._tasks

    def __len__(self) -> int:
        return len(self._tasks)

    @property
    def names(self) -> list[str]:
        """The tasks, in the order they were added."""
        return list(self._tasks)

    @property
    def active(self) -> str | None:
        """The task that is in the backbone at this moment."""
        return self._turns.state

    def add(self, source: str | Path | file.Task, name: str | None = None, *, head: nn.Module | None = None) -> str:
        """Takes up a task file (or a task) and returns the name it goes by.

        name: by default the file's, or for a "task.safetensors" its folder's. head: needed only for a head that is
        none of `sfa_ext.tasks`; it is filled with the task's values.

        Raises FileNotFoundError, or ValueError before anything is changed: for a file that is damaged, of another
        version, backbone, method or head, and for a name that is taken.
        """
        in_memory = isinstance(source, file.Task)
        if in_memory and self.keep == "disk":
            raise ValueError("keep: 'disk' needs the path of a task file, got a task in memory")
        name = name or task_name(source)
        path = None if in_memory else Path(source)
        with self._turns.alone():
            if name in self._tasks:
                raise ValueError(f"there is a task {name!r} already; remove it, or give another name")
            fitted = self._fit(source if in_memory else file.read(path), head, name if in_memory else str(path))
            if self.keep == "host":
                fitted.rest()
            kept = None if self.keep == "disk" else fitted
            self._tasks[name] = _Entry(fitted.meta, path, head, kept)
        return name

    def _fit(self, task: file.Task, head: nn.Module | None, where: str) -> FittedTask:
        try:
            check_backbone(task, self.fingerprint)
            return fit(task, self.backbone, head)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def remove(self, name: str) -> None:
        """Forgets a task; where it is in the backbone, it is taken out first."""
        self._known(name)
        with self._turns.alone(lambda before: None if before == name else before):
            self._tasks.pop(name, None)
            if self._resting == name:
                self._resting = None

    def activate(self, name: str) -> None:
        """Puts the task into the backbone, to stay. Waits for running forwards; milliseconds otherwise."""
        self._known(name)
        with self._turns.use(name):
            self._resting = name

    def deactivate(self) -> None:
        """Takes out the task that is in the backbone, which is then bit-identical to what it was."""
        with self._turns.use(None):
            self._resting = None

    def task(self, name: str, *, stay: bool = False) -> AbstractContextManager[nn.Module | None]:
        """`with bank.task(name) as head:` runs its body with the task in the backbone.

        Afterwards what `activate` chose is put back, or nothing; with `stay` the task stays until another is asked for,
        which saves the next call of the same task two switches. Raises ValueError for an unknown name, listing the
        known ones, and RuntimeError inside the body of another task.
        """
        self._known(name)
        return self._use(name, stay)

    @contextmanager
    def _use(self, name: str, stay: bool) -> Iterator[nn.Module | None]:
        with self._turns.use(name, then=None if stay else lambda: self._resting):
            yield self._tasks[name].fitted.head

    def predict(self, name: str, image: np.ndarray | Tensor, *, stay: bool = False) -> dict[str, Tensor]:
        """What the task's head predicts for an image, uint8 [H, W, 3] of any size, at that size and with batch 1.

        As `sfa_ext.tasks` says, in batches of one. Raises as `task`, and ValueError for a task without
        a head or another kind of image.
        """
        pixels = torch.as_tensor(np.array(image) if isinstance(image, np.ndarray) else image)
        if pixels.dtype != torch.uint8 or pixels.dim() != 3 or pixels.shape[2] != 3 or not pixels.numel():
            raise ValueError(f"image: must be uint8 [H, W, 3], got {pixels.dtype} {list(pixels.shape)}")
        device = next(self.backbone.parameters()).device
        images = normalise(pixels.permute(2, 0, 1).to(device))[None]
        with torch.no_grad(), self.task(name, stay=stay) as head:
            if head is None:
                raise ValueError(f"task {name!r} has no head to predict with")
            dtype = next(self.backbone.parameters()).dtype
            meta = self._tasks[name].meta
            side = (meta["recipe"] or {}).get("data", {}).get("side", "shorter")
            return inference.predict(self.backbone, head, images.to(dtype), meta["crop"], side)

    def meta(self, name: str) -> dict:
        """What the task says of itself: classes, palette, recipe, results (see docs/task-file.md)."""
        self._known(name)
        return self._tasks[name].meta

    def memory(self) -> dict[str, int]:
        """Bytes of the backbone and of each task; a task that waits on disk holds none."""
        held = {n: 0 if e.fitted is None else e.fitted.bytes() for n, e in self._tasks.items()}
        return {"backbone": self._bytes, **held}

    def _known(self, name: str) -> None:
        if name not in self._tasks:
            raise ValueError(f"unknown task {name!r}; known: {', '.join(self._tasks) or 'none, add one first'}")

    def _change(self, old: str | None, new: str | None) -> None:
        if new is not None and new not in self._tasks:
            raise ValueError(f"task {new!r} was removed")
        leaving, coming = (None if n is None else self._tasks[n] for n in (old, new))
        inside = None if leaving is None else leaving.fitted
        if coming is not None and coming.fitted is None:
            task = file.read(coming.path)
            exchange(inside, None)  # a task is fitted to the bare backbone
            try:
                coming.fitted = self._fit(task, coming.head, str(coming.path))
            except ValueError:
                exchange(None, inside)
                raise
            inside = None
        if coming is not None:
            coming.fitted.fetch(next(self.backbone.parameters()).device)
        exchange(inside, None if coming is None else coming.fitted)
        if leaving is not None and self.keep == "disk":
            leaving.fitted = None
        elif leaving is not None and self.keep == "host":
            leaving.fitted.rest()


def task_name(source: str | Path | file.Task) -> str:
    """The name a task file goes by: its own, or its folder's where it is called as a run calls it."""
    if isinstance(source, file.Task):
        raise ValueError("name: give a name for a task that comes from no file")
    path = Path(source)
    return path.resolve().parent.name if path.name == file.TASK_FILE else path.stem
