"""Dense pretraining: per-pixel classes, depth and image labels from light heads that leave the work to the backbone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfa_ext import ranks

from .depth_metrics import measured
from .figures import Figure
from .fpn import FpnSettings, FpnTask, pixel_cross_entropy, resized
from .metrics import SEGMENTATION_FIGURES, RunningMean, SegmentationMetric


@dataclass(frozen=True)
class PretrainSettings(FpnSettings):
    """Settings of the pretraining task."""

    image_classes: int = field(default=0, metadata={"help": "classes of batch['label']; 0 trains no classifier"})
    depth_weight: float = field(default=0.5, metadata={"help": "weight of the L1 on log depth; 0 trains no depth"})
    label_weight: float = field(default=1.0, metadata={"help": "weight of the image-level cross entropy"})
    label_smoothing: float = field(default=0.1, metadata={"help": "label smoothing of the image-level cross entropy"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_classes < 0:
            raise ValueError(f"image_classes must be 0 or more, got {self.image_classes}")
        if self.depth_weight < 0 or self.label_weight < 0:
            raise ValueError(
                f"weights must be 0 or more, got depth_weight {self.depth_weight} and label_weight {self.label_weight}"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing}")


class PretrainTask(FpnTask):
    """Per-pixel cross entropy + depth_weight * L1(log depth) + label_weight * image cross entropy.

    Args:
        settings: see PretrainSettings.
        channels: channels of the four maps (strides 4, 8, 16, 32).
        class_names: names of the pixel classes in the order of the label values.
        object_classes: label values that count as objects in the metrics.

    batch: "semantic" int64 [B, H, W], 255 = ignore; with depth "depth" float [B, H, W] or [B, 1, H, W] in metres,
    entries that are not above zero and finite are ignored; with image_classes "label" int64 [B], negative = unlabelled.
    """

    figures = (*SEGMENTATION_FIGURES, Figure("depth_rmse", "depth RMSE", "m", higher=False))

    def __init__(
        self,
        settings: PretrainSettings,
        channels: Sequence[int],
        class_names: Sequence[str],
        object_classes: Sequence[int] = (),
    ) -> None:
        super().__init__(settings, channels, class_names, object_classes)
        self.depth = nn.Conv2d(settings.width, 1, 1) if settings.depth_weight else None
        self.classifier = nn.Linear(channels[-1], settings.image_classes) if settings.image_classes else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all weights anew from torch's default generator; depth starts near e metres (log depth 1)."""
        super().reset_parameters()
        if getattr(self, "depth", None) is not None:
            nn.init.ones_(self.depth.bias)

    def forward(self, maps: Sequence[Tensor]) -> dict[str, Tensor]:
        """Float32 "semantic" [B, C, h, w] and "log_depth" [B, 1, h, w] at the finest map's size, "label" [B, n]."""
        fused = self.pyramid(maps)
        out = {"semantic": self.semantic(fused).float()}
        if self.depth is not None:
            out["log_depth"] = self.depth(fused).float()
        if self.classifier is not None:
            out["label"] = self.classifier(maps[-1].mean((2, 3))).float()
        return out

    def loss(self, maps: Sequence[Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss and its detached terms "semantic", "depth", "label"."""
        out = self(maps)
        size = batch["semantic"].shape[-2:]
        terms = {"semantic": pixel_cross_entropy(out["semantic"], batch["semantic"])}
        total = terms["semantic"]
        if self.depth is not None:
            terms["depth"] = _log_depth_l1(resized(out["log_depth"], size)[:, 0], _depth_of(batch))
            total = total + self.settings.depth_weight * terms["depth"]
        if self.classifier is not None:
            terms["label"] = _label_cross_entropy(out["label"], batch["label"], self.settings.label_smoothing)
            total = total + self.settings.label_weight * terms["label"]
        return total, {name: term.detach() for name, term in terms.items()}

    @torch.no_grad()
    def predict(self, maps: Sequence[Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
        """Probabilities "semantic" [B, C, H, W] and "label" [B, n], "depth" [B, H, W] in metres; maps at `size`."""
        out = self(maps)
        found = {"semantic": resized(out["semantic"], size).softmax(1)}
        if "log_depth" in out:
            found["depth"] = resized(out["log_depth"], size)[:, 0].exp()
        if "label" in out:
            found["label"] = out["label"].softmax(1)
        return found

    def metrics(self) -> PretrainMetric:
        """A fresh metric: pixel IoU figures, "depth_rmse" in metres, "accuracy" of the image labels in 0..1."""
        return PretrainMetric(self.class_names, self.object_classes)


class PretrainMetric:
    """SegmentationMetric's figures plus depth RMSE (metres, over valid pixels) and accuracy of image labels."""

    def __init__(self, class_names: Sequence[str], object_classes: Sequence[int] = ()) -> None:
        self.pixels = SegmentationMetric(class_names, object_classes)
        self.squared_error, self.correct = RunningMean(), RunningMean()

    def update(self, prediction: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> None:
        """Counts one batch; depth and labels where the prediction has them."""
        self.pixels.update(prediction, batch)
        if "depth" in prediction:
            truth = _depth_of(batch).to(prediction["depth"].device)
            valid = measured(truth)
            self.squared_error.add((prediction["depth"][valid] - truth[valid]).square())
        if "label" in prediction:
            guess = prediction["label"].argmax(1)
            truth = batch["label"].to(guess.device)
            self.correct.add((guess == truth)[truth >= 0])

    def compute(self) -> dict[str, float]:
        """Figures over all batches so far; a figure with nothing counted is left out."""
        figures = self.pixels.compute()
        mean_square, accuracy = self.squared_error.value(), self.correct.value()
        if mean_square is not None:
            figures["depth_rmse"] = math.sqrt(mean_square)
        if accuracy is not None:
            figures["accuracy"] = accuracy
        return figures


def _label_cross_entropy(scores: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    labelled = labels >= 0
    target = labels.masked_fill(~labelled, -1)
    total = F.cross_entropy(scores, target, ignore_index=-1, reduction="sum", label_smoothing=smoothing)
    return total / ranks.mean_count(labelled.sum())


def _depth_of(batch: Mapping[str, Tensor]) -> Tensor:
    depth = batch["depth"]
    return depth[:, 0] if depth.dim() == 4 else depth


def _log_depth_l1(log_depth: Tensor, truth: Tensor) -> Tensor:
    valid = measured(truth)
    # The log is taken of a harmless 1 where nothing was measured, so that no inf or NaN meets the mask.
    error = (log_depth - torch.where(valid, truth, 1.0).float().log()).abs()
    return torch.where(valid, error, 0.0).sum() / ranks.mean_count(valid.sum())
