"""Pretraining: a fit from scratch on a source domain, whose backbone becomes a checkpoint."""

from __future__ import annotations

from pathlib import Path

from sfa_ext.backbones import save_weights
from sfa_ext.files import write_text
from sfa_ext.training.loop import Fit
from sfa_ext.training.recipe import Recipe


def pretrain(recipe: Recipe, folder: str | Path, quiet: bool = False) -> tuple[Path, str]:
    """Runs (or resumes) the recipe and writes FOLDER/NAME.safetensors; returns its path and sha256.

    Raises ValueError where the recipe does not train the whole backbone.
    """
    if recipe.method.name != "full":
        raise ValueError(f"method: pretraining needs method.name=full, got {recipe.method.name!r}")
    fit = Fit(recipe, folder, quiet)
    results = fit.run()
    return export(fit, Path(folder), results)


def export(fit: Fit, folder: Path, results: dict[str, dict[str, float]]) -> tuple[Path, str]:
    """Writes the backbone as it is now, with its figures beside it, and a .sha256 file."""
    path = folder / f"{fit.recipe.backbone.name}.safetensors"
    figures = {k: f"{v:.4f}" for k, v in results.get("val", {}).items() if "/" not in k}
    metadata = {"steps": str(fit.step), "seed": str(fit.recipe.seed), "data": fit.recipe.data.name} | figures
    digest = save_weights(fit.model.backbone, path, metadata)
    write_text(path.with_suffix(".sha256"), f"{digest}  {path.name}\n")
    return path, digest
