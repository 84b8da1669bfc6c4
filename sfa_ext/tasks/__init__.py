"""Tasks: a head, its loss, its metric and its inference over the four feature maps of any backbone.

A task is an nn.Module built over maps at strides 4, 8, 16 and 32 that offers
    loss(maps, batch) -> (scalar loss, dict of detached scalars for the log)
    predict(maps, size) -> dict of tensors at the asked size: "semantic" scores [B, C, H, W], "depth" [B, H, W] in m,
        or of lists with an entry an image: "boxes" [n, 4], "labels", "scores" [n], "shapes" [n, h, w] in the boxes
    metrics() -> an object with update(prediction, batch) and compute() -> dict[str, float]
    figures -> the figures of its metric that tables show, of its class; the first is its headline, which runs are
        compared and chosen by
and knows neither the backbone nor the method that adapts it. `sfa_ext.data` says what a batch holds. A task that can do
without classes has needs_classes = False, one that reads no boxes, labels and masks has needs_instances = False, one
whose test-time augmentation is not usually that of multi-scale mIoU has zooms of its own.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .figures import Figure

MULTI_SCALE = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of multi-scale mIoU
PYRAMID_WIDTH = 256  # channels of each map of a feature pyramid, at most (ViTDet)

# name: (module, settings class, task class); modules load only when their task is asked for.
_TASKS = {
    "depth": ("depth", "DepthSettings", "DepthTask"),
    "fpn": ("fpn", "FpnSettings", "FpnTask"),
    "maskrcnn": ("maskrcnn", "MaskRcnnSettings", "MaskRcnn"),
    "mask2former": ("segmentation", "Mask2FormerSettings", "SemanticSegmentation"),
    "pretrain": ("dense", "PretrainSettings", "PretrainTask"),
    "uper": ("uper", "UperSettings", "UperTask"),
}


def names() -> tuple[str, ...]:
    """The names that `build` knows."""
    return tuple(sorted(_TASKS))


def figures(name: str) -> tuple[Figure, ...]:
    """The figures that tables show of the task called `name`; the first is its headline.

    Raises:
        ValueError: no task has that name.
    """
    return _task_class(name).figures


def needs_instances(name: str) -> bool:
    """Whether the task called `name` reads boxes, labels and masks. Raises ValueError: no task has that name."""
    return getattr(_task_class(name), "needs_instances", True)


def zooms(name: str) -> tuple[float, ...]:
    """The usual zooms of test-time augmentation for the task called `name`, 1 being the scale of training.

    Raises:
        ValueError: no task has that name.
    """
    return getattr(_task_class(name), "zooms", MULTI_SCALE)


def settings_class(name: str) -> type:
    """The settings dataclass of the task called `name`; each field has metadata["help"].

    Raises:
        ValueError: no task has that name.
    """
    return getattr(_module(name), _TASKS[name][1])


def settings(name: str, values: Mapping[str, Any] | None = None) -> Any:
    """The settings object of the task called `name` with `values` in place of its defaults.

    A task that comes in sizes takes "size" among the values: the defaults are then those of that size.

    Raises:
        ValueError: unknown name, setting or size (the known ones are listed), or a value out of range.
    """
    kind = settings_class(name)
    values = dict(values or {})
    sizes = getattr(kind, "sizes", {})
    known = [*(["size"] if sizes else []), *(f.name for f in dataclasses.fields(kind))]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"unknown setting {', '.join(unknown)} of task '{name}'; known: {', '.join(known)}")
    if "size" in values and sizes:
        size = values.pop("size")
        if size not in sizes:
            raise ValueError(f"unknown size '{size}' of task '{name}'; known: {', '.join(sizes)}")
        values = sizes[size] | values
    return kind(**values)


def build(
    name: str,
    values: Any,
    channels: Sequence[int],
    class_names: Sequence[str],
    object_classes: Sequence[int] = (),
) -> nn.Module:
    """The task called `name`, with fresh weights drawn from torch's default generator.

    Args:
        name: one of `names()`.
        values: the task's settings object, or what `settings` takes: a mapping, or None for the defaults.
        channels: channels of the four maps (strides 4, 8, 16, 32), or of the one map of a plain ViT, from which a
            feature pyramid then makes four.
        class_names: names of the classes in the order of the label values (0, 1, ...; 255 is ignored).
        object_classes: label values that count as objects in "miou_objects".

    Raises:
        ValueError: unknown name, setting or size (the known ones are listed), or a value out of range.
    """
    kind = settings_class(name)
    if len(channels) not in (1, 4):
        raise ValueError(f"channels must name one map, or four at strides 4, 8, 16, 32, got {tuple(channels)}")
    make = _task_class(name)
    fewest = 1 if getattr(make, "needs_classes", True) else 0
    if not fewest <= len(class_names) <= 255:
        raise ValueError(
            f"class_names must name {fewest} to 255 classes (label 255 is ignored), got {len(class_names)}"
        )
    if values is None or isinstance(values, Mapping):
        values = settings(name, values)
    elif not isinstance(values, kind):
        raise ValueError(f"settings of task '{name}' must be a {kind.__name__} or a mapping, got {type(values)}")
    if len(channels) == 4:
        return make(values, channels, class_names, object_classes)
    from .pyramid import OverPyramid

    width = min(channels[0], PYRAMID_WIDTH)
    return OverPyramid(channels[0], width, make(values, [width] * 4, class_names, object_classes))


def _task_class(name: str) -> Any:
    return getattr(_module(name), _TASKS[name][2])


def _module(name: str):
    if name not in _TASKS:
        raise ValueError(f"unknown task '{name}'; known: {', '.join(names())}")
    return importlib.import_module(f".{_TASKS[name][0]}", __name__)
