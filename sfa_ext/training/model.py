"""A recipe's parts put together: backbone, method, task head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sfa_ext import backbones, tasks
from sfa_ext.methods import Adaptation, adapt, resolve
from sfa_ext.tasks import inference
from sfa_ext.tasks.inference import Views
from sfa_ext.training.recipe import Recipe
from sfa_ext.training.seeds import derive, stream


@dataclass
class Classes:
    """What a task must know of its data set."""

    names: tuple[str, ...]
    objects: tuple[int, ...]
    palette: list[list[int]]

    @staticmethod
    def of(dataset: Any) -> Classes:
        return Classes(
            tuple(dataset.class_names), tuple(dataset.object_classes), [list(map(int, c)) for c in dataset.palette]
        )


@dataclass
class Model:
    """An adapted backbone and its head."""

    backbone: nn.Module
    adaptation: Adaptation
    task: nn.Module
    classes: Classes
    crop: int
    side: str  # of an image that the crop is as long as, see `data.augment.reference_length`
    dynamic: bool  # whether the backbone takes images of any size
    views: Views = Views()  # noqa: RUF009  (frozen); how `predict` looks at images

    def train(self, mode: bool = True) -> None:
        self.backbone.train(mode)
        self.task.train(mode)

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        """As `tasks.inference.predict`, at the scale of the training crop."""
        return inference.predict(self.backbone, self.task, images, self.crop, self.side, self.views)

    def state(self) -> dict[str, Tensor]:
        """All that differs from the bare backbone: the method's tensors and the head, as a flat dict."""
        head = {f"head/{name}": t for name, t in self.task.state_dict().items()}
        return {f"method/{name}": t for name, t in self.adaptation.state().items()} | head

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes what `state` returned. Raises ValueError naming what does not fit."""
        head = {n.removeprefix("head/"): t for n, t in state.items() if n.startswith("head/")}
        own = self.task.state_dict()
        differ = sorted(
            {n for n in own.keys() ^ head.keys()} | {n for n in own if n in head and own[n].shape != head[n].shape}
        )
        if differ:
            raise ValueError(f"state: the head's {differ[0]!r} is missing, new or of another shape")
        self.adaptation.load_state({n.removeprefix("method/"): t for n, t in state.items() if n.startswith("method/")})
        self.task.load_state_dict(head)


def pick_device(name: str) -> torch.device:
    """The device a recipe names. Raises ValueError for one that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name!r} is not available here; use cpu or auto") from error
    return device


def build_backbone(recipe: Recipe, dynamic: bool, checkpoint: str | Path | None = None) -> nn.Module:
    """The bare backbone of a recipe, with the weights in `checkpoint` instead of its own where that is given."""
    part = recipe.backbone
    with stream(recipe.seed, "backbone"):
        backbone = backbones.build(
            part.name,
            size=recipe.data.crop,
            pretrained=part.pretrained,
            checkpoint=checkpoint or part.checkpoint,
            drop_path=part.drop_path,
            dynamic=dynamic,
        )
    return backbones.accelerate(backbone) if part.accelerate else backbone


def build(recipe: Recipe, classes: Classes, device: torch.device, dynamic: bool | None = None) -> Model:
    """The model of a recipe at step 0. Backbone, method and head draw from random streams of their own.

    dynamic: take images of any size; None decides by the data set (scenes are all as large as the crop).
    """
    dynamic = recipe.data.name != "scenes" if dynamic is None else dynamic
    backbone = build_backbone(recipe, dynamic).to(device)
    method = resolve(recipe.method.name, backbone, recipe.method.settings)
    adaptation = adapt(backbone, method, seed=derive(recipe.seed, "method"))
    channels = backbone.feature_info.channels()
    with stream(recipe.seed, "head"):
        task = tasks.build(recipe.task.name, recipe.task.settings, channels, classes.names, classes.objects).to(device)
    return Model(backbone, adaptation, task, classes, recipe.data.crop, recipe.data.side, dynamic)
