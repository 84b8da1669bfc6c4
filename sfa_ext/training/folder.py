"""A run's folder: what it holds, and whose it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sfa_ext import ranks
from sfa_ext.deltas import TASK_FILE
from sfa_ext.files import write_text
from sfa_ext.training.recipe import WITHOUT_EFFECT, Recipe, from_dict

CONFIG = "config.yaml"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoint"
TASK = TASK_FILE


def claim(folder: Path, recipe: Recipe) -> None:
    """Writes the recipe into the folder. Raises ValueError where it holds a run of another one that has begun."""
    path = folder / CONFIG
    if ranks.rank() == 0 and not (path.is_file() and _begun(folder)):
        write_text(path, yaml.safe_dump(recipe.as_dict(), sort_keys=False))
    ranks.all_true(True)  # one writes, all look afterwards
    # Through the recipe: a key that came with a later version is at its default in an older run.
    before = from_dict(yaml.safe_load(path.read_text(encoding="utf-8")), str(path)).as_dict()
    if changed := differences(before, recipe.as_dict()):
        raise ValueError(f"{folder}: holds a run of another recipe ({changed[0]}); choose another folder")


def _begun(folder: Path) -> bool:
    """Whether a run got as far as its first step, beyond what its recipe alone can make fail."""
    return any((folder / name).exists() for name in (METRICS, CHECKPOINTS, TASK))


def differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Where two recipes differ, as "key: old -> new"; settings that do not change the result are left out."""
    if where in WITHOUT_EFFECT:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted({*before, *now})
        parts = [differences(before.get(k), now.get(k), f"{where}.{k}" if where else k) for k in keys]
        return [d for part in parts for d in part]
    return [] if before == now else [f"{where}: {before} -> {now}"]
