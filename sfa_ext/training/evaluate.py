"""Figures of a model on a data set."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sfa_ext import data, ranks
from sfa_ext.data.loading import eval_loader
from sfa_ext.data.unreadable import SHARE, Unreadable
from sfa_ext.files import write_text
from sfa_ext.training.faults import Stopped, StopSignal
from sfa_ext.training.model import Model
from sfa_ext.training.run import open_run
from sfa_ext.training.sharding import in_step


@torch.no_grad()
def evaluate(
    model: Model,
    dataset: Any,
    device: torch.device,
    batch: int,
    precision: str = "fp32",
    quiet: bool = True,
    bad_share: float = SHARE,
    warn: Callable[[str], None] | None = None,
    workers: int = 0,
    stop: StopSignal | None = None,
) -> dict[str, float]:
    """The task's metrics over the whole of `dataset`, at the images' own size.

    Samples that cannot be read are told to `warn` (default: to standard error), left out, and counted as "unreadable"
    among the figures. `workers` processes read. Raises DataError where more than `bad_share` of all cannot be read.

    Several ranks take a stretch of the data set each, `batch` images at a time over all of them, and return the same
    figures, those of the whole. Raises Stopped between two batches where `stop` is requested.
    """
    unreadable = Unreadable(len(dataset), bad_share)
    metric, found = model.task.metrics(), {}

    def tell(samples: dict[str, Any]) -> None:
        unreadable.take(samples)
        for message in unreadable.news():
            (warn or _warn)(f"{message}; left out of the figures")

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    model.train(False)
    # Images of many sizes go one by one: padding to the largest of a batch would change what the network sees.
    size = 1 if model.dynamic else max(1, batch // ranks.size())
    batches = eval_loader(dataset, size, workers, ranks.rank(), ranks.size())
    with in_step(model):
        for samples in tqdm(batches, disable=quiet or ranks.rank() > 0 or None, desc="eval"):
            if stop is not None and stop.requested:
                raise Stopped(stop)
            ranks.progress.images += size
            found |= samples.get("unreadable", {})
            tell(samples)
            if not samples:
                continue
            with torch.autocast(device.type, dtype, enabled=precision != "fp32"):
                prediction = model.predict(samples["image"].to(device))
            metric.update(prediction, samples)
    model.train(True)
    tell({"unreadable": ranks.merged(found)})
    return metric.compute() | ({"unreadable": len(unreadable)} if unreadable else {})


def _warn(message: str) -> None:
    tqdm.write(f"sfa: warning: {message}", file=sys.stderr)


def evaluate_run(
    folder: str | Path,
    split: str = "val",
    device: str = "auto",
    tta: Sequence[float] | None = None,
    window: int | None = None,
) -> dict[str, float]:
    """Figures of a finished run on its "val" or "test" split, which also go into RUN/eval-SPLIT.txt as a table.

    tta, window: see `open_run`. Raises ValueError where the recipe has no such split.
    """
    recipe, model, _ = open_run(folder, device, tta=tta, window=window)
    settings = getattr(recipe.data, split)
    if settings is None:
        raise ValueError(f"split: the recipe of {folder} names no {split} split")
    dataset = data.build(recipe.data.name, **recipe.data.settings, **settings)
    where = next(model.task.parameters()).device
    part, optim = recipe.data, recipe.optim
    reading = {"bad_share": part.bad_share, "workers": part.workers}
    figures = evaluate(model, dataset, where, optim.batch, optim.precision, quiet=False, **reading)
    write_text(Path(folder) / f"eval-{split}.txt", f"{split}, {model.views.text}\n\n{table(figures)}\n")
    return figures


def table(figures: dict[str, float]) -> str:
    """Overall figures, then one line a class, where the task has figures by class ("KIND/CLASS", fractions)."""
    whole = [f"{name:<16} {value:.4f}" for name, value in figures.items() if "/" not in name]
    kinds: dict[str, None] = {}
    classes: dict[str, dict[str, float]] = {}
    for kind, name, value in ((*name.split("/", 1), value) for name, value in figures.items() if "/" in name):
        kinds[kind] = None
        classes.setdefault(name, {})[kind] = value
    if not classes:
        return "\n".join(whole)
    heading = f"{'class, %':<24}" + "".join(f"{kind:>10}" for kind in kinds)
    rows = (
        f"{name:<24}" + "".join(f"{100 * row[k]:10.2f}" if k in row else f"{'-':>10}" for k in kinds)
        for name, row in classes.items()
    )
    return "\n".join([*whole, "", heading, *rows])
