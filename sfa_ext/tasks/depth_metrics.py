"""Depth metrics as the benchmarks of NYUv2 and KITTI define them."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from .metrics import RunningMean

# Parts of an image that are counted: top, bottom, left, right as fractions of height and width, rounded down.
CROPS = {
    "none": (0, 1, 0, 1),
    "nyu": (45 / 480, 471 / 480, 41 / 640, 601 / 640),  # Eigen et al. 2014, of 480 x 640 pixels
    "eigen": (0.3324324, 0.91351351, 0.0359477, 0.96405229),  # KITTI, Eigen et al. 2014
    "garg": (0.40810811, 0.99189189, 0.03594771, 0.96405229),  # KITTI, Garg et al. 2016
}


def measured(depth: Tensor) -> Tensor:
    """Where a depth map holds a depth: above zero and finite."""
    return (depth > 0) & depth.isfinite()


def cropped(depth: Tensor, crop: str) -> Tensor:
    """The part of maps [..., H, W] that `crop`, one of CROPS, counts."""
    height, width = depth.shape[-2:]
    top, bottom, left, right = CROPS[crop]
    # A hair more, or 45 / 480 of 480 rows could be 44.
    rows = slice(int(top * height + 1e-6), int(bottom * height + 1e-6))
    columns = slice(int(left * width + 1e-6), int(right * width + 1e-6))
    return depth[..., rows, columns]


_IMAGE_FIGURES = ("rmse_image", "abs_rel", "sq_rel", "rmse_log", "log10", "delta1", "delta2", "delta3")


class DepthMetric:
    """Errors of predicted depth over the pixels whose true depth lies strictly between min_depth and max_depth.

    "rmse" (m) is over all pixels of all images; all others are means over images of an image's own figure, as the
    benchmarks report them: "rmse_image" (m), "abs_rel" = mean |p - t| / t, "sq_rel" = mean (p - t)^2 / t (m),
    "rmse_log", "log10" = mean |log10 p - log10 t|, and "delta1" to "delta3", the share of pixels with
    max(p / t, t / p) < 1.25^k.

    Args:
        min_depth, max_depth: metres; predictions are clamped to them.
        crop: one of CROPS, the part of each image that is counted.
    """

    def __init__(self, min_depth: float, max_depth: float, crop: str = "none") -> None:
        self.min_depth, self.max_depth, self.crop = min_depth, max_depth, crop
        self._pixels = RunningMean()
        self._images = {name: RunningMean() for name in _IMAGE_FIGURES}

    def update(self, prediction: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> None:
        """Counts one batch: prediction["depth"] and batch["depth"], [B, H, W] in metres. Images without a true depth
        do not count. Raises ValueError where the sizes differ."""
        found = prediction["depth"]
        truth = batch["depth"].to(found.device)
        if found.shape != truth.shape:
            raise ValueError(
                f"batch['depth'] {tuple(truth.shape)} and prediction['depth'] {tuple(found.shape)} differ in size; ask "
                "predict() for the size of the labels"
            )
        found, truth = (cropped(d, self.crop).double() for d in (found, truth))
        found = found.clamp(self.min_depth, self.max_depth)
        for p, t in zip(found, truth, strict=True):
            valid = (t > self.min_depth) & (t < self.max_depth)
            if valid.any():
                self._pixels.add((p[valid] - t[valid]).square())
                for name, value in _image_figures(p[valid], t[valid]).items():
                    self._images[name].add(value)

    def compute(self) -> dict[str, float]:
        """The figures over all batches so far. Raises ValueError where no pixel was counted."""
        mean_square = self._pixels.value()
        if mean_square is None:
            raise ValueError(
                f"no pixel has a true depth between {self.min_depth} and {self.max_depth} m in the part that is counted"
            )
        return {"rmse": math.sqrt(mean_square)} | {name: mean.value() for name, mean in self._images.items()}


def _image_figures(p: Tensor, t: Tensor) -> dict[str, Tensor]:
    """The figures of one image from its counted pixels, float64 [n]."""
    error, logs, ratio = p - t, p.log() - t.log(), torch.maximum(p / t, t / p)
    return {
        "rmse_image": error.square().mean().sqrt(),
        "abs_rel": (error.abs() / t).mean(),
        "sq_rel": (error.square() / t).mean(),
        "rmse_log": logs.square().mean().sqrt(),
        "log10": logs.abs().mean() / math.log(10),
        **{f"delta{k}": (ratio < 1.25**k).double().mean() for k in (1, 2, 3)},
    }
