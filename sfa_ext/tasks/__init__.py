"""Tasks: a head, its loss, its metric and its inference over the four feature maps of any backbone.

A task is an nn.Module built over maps at strides 4, 8, 16 and 32 that offers
    loss(maps, batch) -> (scalar loss, dict of detached scalars for the log)
    predict(maps, size) -> dict of tensors, among them "semantic" [B, C, H, W] at the asked size
    metrics() -> an object with update(prediction, batch) and compute() -> dict[str, float]
and knows neither the backbone nor the method that adapts it.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

# name: (module, settings class, task class); modules load only when their task is asked for.
_TASKS = {
    "pretrain": ("dense", "PretrainSettings", "PretrainTask"),
}


def names() -> tuple[str, ...]:
    """The names that `build` knows."""
    return tuple(sorted(_TASKS))


def settings_class(name: str) -> type:
    """The settings dataclass of the task called `name`; each field has metadata["help"].

    Raises:
        ValueError: no task has that name.
    """
    return getattr(_module(name), _TASKS[name][1])


def build(
    name: str,
    settings: Any,
    channels: Sequence[int],
    class_names: Sequence[str],
    object_classes: Sequence[int] = (),
) -> nn.Module:
    """The task called `name`, with fresh weights drawn from torch's default generator.

    Args:
        name: one of `names()`.
        settings: the task's settings object, or a mapping of field names to values; None takes the defaults.
        channels: channels of the four maps (strides 4, 8, 16, 32).
        class_names: names of the classes in the order of the label values (0, 1, ...; 255 is ignored).
        object_classes: label values that count as objects in "miou_objects".

    Raises:
        ValueError: unknown name or setting (the known ones are listed), or a value out of range.
    """
    kind = settings_class(name)
    if len(channels) != 4:
        raise ValueError(f"channels must name the four maps at strides 4, 8, 16, 32, got {tuple(channels)}")
    if not class_names:
        raise ValueError("class_names is empty: a task needs at least one class")
    if settings is None or isinstance(settings, Mapping):
        settings = _settings(name, kind, settings or {})
    elif not isinstance(settings, kind):
        raise ValueError(f"settings of task '{name}' must be a {kind.__name__} or a mapping, got {type(settings)}")
    return getattr(_module(name), _TASKS[name][2])(settings, channels, class_names, object_classes)


def _module(name: str):
    if name not in _TASKS:
        raise ValueError(f"unknown task '{name}'; known: {', '.join(names())}")
    return importlib.import_module(f".{_TASKS[name][0]}", __name__)


def _settings(name: str, kind: type, values: Mapping[str, Any]) -> Any:
    known = [f.name for f in dataclasses.fields(kind)]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"unknown setting {', '.join(unknown)} of task '{name}'; known: {', '.join(known)}")
    return kind(**values)
