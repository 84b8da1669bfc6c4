"""Files that need no task file beside them: merged checkpoints, exported modules, folded backbones."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor, nn

from sfa_ext import tasks
from sfa_ext.backbones import plain_state, save_weights
from sfa_ext.deltas import file
from sfa_ext.deltas.bank import TaskBank, task_name
from sfa_ext.deltas.file import Task
from sfa_ext.deltas.merge import fold, merge, rebase
from sfa_ext.files import write_bytes
from sfa_ext.tasks.inference import STRIDE

Build = Callable[[Task], nn.Module]  # makes the bare backbone of a task


def write_checkpoint(path: Path, build: Build, out: str | Path) -> str:
    """Writes backbone and task as one .safetensors that timm loads; returns a line that says so. Raises as `merge`."""
    task = file.read(path)
    try:
        merged = merge(task, build(task))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    write_bytes(Path(out), save(merged, metadata={"fingerprint": task.meta["fingerprint"]}))
    return f"{out}: {len(merged)} tensors by timm's names; timm.models.load_checkpoint(model, '{out}', strict=False)"


class _Whole(nn.Module):
    def __init__(self, backbone: nn.Module, head: nn.Module | None, size: int):
        super().__init__()
        self.backbone, self.head, self.size = backbone, head, size

    def forward(self, images: Tensor) -> list[Tensor] | dict[str, Tensor]:
        maps = self.backbone(images)
        return list(maps) if self.head is None else self.head.predict(maps, (self.size, self.size))


def write_module(path: Path, build: Build, out: str | Path) -> str:
    """Writes backbone, method and head as one torch.export program; returns a line that says so.

    The program maps normalised images [1, 3, S, S], S being the training crop, to what the head predicts (or to the
    maps, without a head), and needs torch alone: the package's own operators are written out in torch's.

    Raises ValueError for a head that finds instances: how many depends on the image, and a program's shapes are fixed.
    """
    task = file.read(path)
    head = task.meta["head"]
    if head is not None and tasks.needs_instances(head["name"]):
        raise ValueError(
            f"{path}: the head {head['name']!r} finds any number of instances; a module's shapes are fixed"
        )
    bank = TaskBank(build(task))
    name = bank.add(task, task_name(path))
    size = -(-(task.meta["crop"] or 256) // STRIDE) * STRIDE
    images = torch.zeros(1, 3, size, size)
    with torch.no_grad(), bank.task(name) as head:
        program = torch.export.export(_Whole(bank.backbone, head, size).eval(), (images,), strict=False)
        program = program.run_decompositions(_written_out())
        written = io.BytesIO()
        torch.export.save(program, written)
    write_bytes(Path(out), written.getvalue())
    return f"{out}: torch.export.load('{out}').module()(images), images normalised, [1, 3, {size}, {size}]"


def _written_out() -> dict:
    def adapter(x, w_down, b_down, w_up, b_up):
        hidden = torch.relu(nn.functional.linear(x, w_down, b_down))
        return x + nn.functional.linear(hidden, w_up, b_up)

    return torch.export.default_decompositions() | {torch.ops.sfa.fused_adapter.default: adapter}


def write_folded(path: Path, others: Sequence[Path], build: Build, out: str | Path) -> Iterator[str]:
    """Writes OUT/backbone.safetensors with the task's selected values in it, the task on that backbone, and `others`.

    Yields a line for each file. All is computed before anything is written. Raises as `fold` and `rebase`.
    """
    out = Path(out)
    task = file.read(path)
    backbone = build(task)
    bare = {n: t.detach().clone() for n, t in plain_state(backbone).items()}
    written: dict[str, Task] = {}
    for source in (path, *others):
        name = task_name(source)
        if name in written:
            raise ValueError(f"{source}: another task goes by the name {name!r} too; rename the file")
        try:
            if source == path:
                written[name] = fold(task, backbone)
            else:
                written[name] = rebase(file.read(source), task, bare, next(iter(written.values())).meta["fingerprint"])
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
    checkpoint = out / "backbone.safetensors"
    save_weights(backbone, checkpoint, {"folded": task_name(path)})
    yield f"{checkpoint}: the backbone with {task_name(path)} in it"
    for name, each in written.items():
        recipe = each.meta["recipe"]
        if recipe is not None:
            weights = recipe["backbone"] | {"checkpoint": str(checkpoint.resolve()), "pretrained": False}
            each.meta["recipe"] = recipe | {"backbone": weights}
        file.write(out / f"{name}.safetensors", each)
        yield f"{out / f'{name}.safetensors'}: {name} on that backbone"
