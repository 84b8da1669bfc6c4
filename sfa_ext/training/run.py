"""A finished run, opened again: its recipe, its model, its task file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from sfa_ext import deltas, tasks
from sfa_ext.backbones import fingerprint, plain_state
from sfa_ext.tasks.inference import Views
from sfa_ext.training.folder import CONFIG, TASK
from sfa_ext.training.model import Classes, Model, build, build_backbone, pick_device
from sfa_ext.training.recipe import Recipe, from_dict, load


def open_run(
    folder: str | Path,
    device: str = "auto",
    dynamic: bool | None = None,
    tta: Sequence[float] | None = None,
    window: int | None = None,
) -> tuple[Recipe, Model, dict[str, Any]]:
    """Recipe, model and meta of the run in `folder`.

    Args:
        folder: of a finished run.
        device: as a recipe names it.
        dynamic: take images of any size; None decides by the data set.
        tta: zooms that predictions are averaged over, each also mirrored; empty for those usual for the task.
        window: pixels of the windows that images are seen in; 0 for those of the training crop.

    Raises FileNotFoundError where there is no finished run, ValueError where its task file is truncated or belongs
    to another backbone.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"run {folder}: no {CONFIG} there; give a folder that `sfa fit` wrote")
    if not (folder / TASK).is_file():
        raise FileNotFoundError(f"run {folder}: no {TASK} yet; the run is not finished, resume it with `sfa fit`")
    recipe = load(folder / CONFIG)
    task = deltas.read(folder / TASK)
    classes = Classes(tuple(task.meta["classes"]), tuple(task.meta["objects"]), task.meta["palette"])
    scales = (1.0,) if tta is None else tuple(tta) or tasks.zooms(recipe.task.name)
    views = Views(scales, mirror=tta is not None, window=recipe.data.crop if window == 0 else window)
    model = build(recipe, classes, pick_device(device), dynamic if views.plain else True)
    try:
        deltas.restore(task, model.adaptation, model.task)
    except ValueError as error:
        raise ValueError(f"{folder / TASK}: {error}") from error
    model.train(False)
    model.views = views
    return recipe, model, task.meta


def task_file(path: str | Path) -> Path:
    """The task file at `path`, which may be the folder of a run. Raises FileNotFoundError."""
    path = Path(path)
    found = path / TASK if path.is_dir() else path
    if not found.is_file():
        raise FileNotFoundError(f"{path}: no task file there; give one, or the folder of a finished run")
    return found


def backbone_of(task: deltas.Task, where: str, checkpoint: str | None = None, device: str = "auto") -> nn.Module:
    """The backbone a task was trained from, bare, for images of any size, as its recipe describes it.

    checkpoint: a file with its weights, instead of where the recipe found them. Raises ValueError where the task
    names no recipe or the weights are others than those it was trained from.
    """
    if task.meta["recipe"] is None:
        raise ValueError(f"{where}: holds no recipe to build its backbone from; use sfa_ext.deltas in Python")
    backbone = build_backbone(from_dict(task.meta["recipe"], where), True, checkpoint).to(pick_device(device)).eval()
    try:
        deltas.check_backbone(task, fingerprint(plain_state(backbone)))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return backbone
