"""A finished run, opened again: its recipe, its model, its task file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sfa_ext.files import read_tensors
from sfa_ext.training.folder import CONFIG, TASK
from sfa_ext.training.model import Classes, Model, build, pick_device
from sfa_ext.training.recipe import Recipe, load


def open_run(
    folder: str | Path, device: str = "auto", dynamic: bool | None = None
) -> tuple[Recipe, Model, dict[str, Any]]:
    """Recipe, model and meta of the run in `folder`; with `dynamic` the model takes images of any size.

    Raises FileNotFoundError where there is no finished run, ValueError where its task file is truncated or belongs
    to another backbone.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"run {folder}: no {CONFIG} there; give a folder that `sfa fit` wrote")
    if not (folder / TASK).is_file():
        raise FileNotFoundError(f"run {folder}: no {TASK} yet; the run is not finished, resume it with `sfa fit`")
    recipe = load(folder / CONFIG)
    tensors, meta = read_tensors(folder / TASK)
    classes = Classes(tuple(meta["classes"]), tuple(meta["objects"]), meta["palette"])
    model = build(recipe, classes, pick_device(device), dynamic)
    if (here := model.adaptation.fingerprint) != meta["fingerprint"]:
        raise ValueError(
            f"{folder / TASK}: belongs to another backbone "
            f"(fingerprint {meta['fingerprint'][:12]}, {recipe.backbone.name} here has {here[:12]})"
        )
    model.load_state({n: t.to(next(model.task.parameters()).device) for n, t in tensors.items()})
    model.train(False)
    return recipe, model, meta
