"""The demo: four methods on embedded scenes under one seed, and a report a person can read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sfa_ext import data
from sfa_ext.report import comparison, plots
from sfa_ext.report import run as run_report
from sfa_ext.report.gallery import gallery
from sfa_ext.training import predict, recipe
from sfa_ext.training.loop import Fit
from sfa_ext.training.run import open_run

METHODS = ("frozen", "sfa-s", "sfa-b", "full")
RECIPE = "scenes-fpn"
# Overrides of the recipe, and those of the methods that select: minutes, and a minute, on two cores.
LONG = ["optim.steps=320", "data.train.count=3000", "data.val.count=200", "data.test.count=500"]
LONG_ROUNDS = ["method.settings.interval=20"]
QUICK = ["optim.steps=60", "optim.warmup=6", "data.train.count=800", "data.val.count=64", "data.test.count=160"]
QUICK_ROUNDS = ["method.settings.interval=5"]
EXAMPLES = 4


def demo(folder: Path, quick: bool = False) -> Path:
    """Fits METHODS on RECIPE (runs already finished are kept) and writes report.md; returns its path."""
    runs = []
    for method in METHODS:
        overrides = [f"method.name={method}", *(QUICK if quick else LONG)]
        if method.startswith("sfa"):
            overrides += QUICK_ROUNDS if quick else LONG_ROUNDS
        chosen = recipe.load(RECIPE, overrides)
        runs.append(folder / method)
        Fit(chosen, runs[-1]).run()
        run_report.write(runs[-1])
    examples(runs, folder / "examples.png")
    selected = {run.name: found for run in runs if (found := run_report.selected_by_weight(run))}
    plots.selection(selected, folder / "selection.png")
    title = "Selective Feature Adapter on embedded scenes" + (", quick" if quick else "")
    optim = chosen.optim
    intro = [f"{chosen.backbone.name} on {chosen.data.name}, {optim.steps} steps of {optim.batch} images, one seed."]
    extra = ["![images, truth and predictions](examples.png)", "Where the selected weights are:"]
    extra += ["![share of selected weights by block](selection.png)"]
    compared = comparison.of_runs({run.name: run for run in runs}, METHODS[0])
    return comparison.write(folder / "report.md", title, intro, compared, extra=extra)


def examples(runs: Sequence[Path], path: Path) -> None:
    """Draws the first validation images, their truth, and what each run predicts."""
    settings = recipe.load(runs[0]).data
    dataset = data.build(settings.name, **settings.settings, **settings.val)
    samples = [dataset[i] for i in range(EXAMPLES)]
    images = [np.asarray(s["image"].permute(1, 2, 0)) for s in samples]
    columns = {"truth": [np.asarray(s["semantic"]) for s in samples]}
    for run in runs:
        _, model, meta = open_run(run)
        columns[meta["recipe"]["method"]["name"]] = [predict.label_map(model, image) for image in images]
    gallery(images, columns, dataset.class_names, model.classes.palette).save(path)
