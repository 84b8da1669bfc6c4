"""Depth: deconvolutions over the coarsest map, a bounded output, the scale-invariant log loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfa_ext import ranks

from .depth_metrics import CROPS, DepthMetric, measured
from .figures import Figure
from .fpn import resized

_STEPS = 3  # deconvolutions: from stride 32 to stride 4


@dataclass(frozen=True)
class DepthSettings:
    """Settings of the depth task. The paper's head is that of Xie et al., "Revealing the Dark Secrets of MIM", 2022."""

    sizes: ClassVar[dict[str, dict]] = {
        "paper": {},
        # A crop of 96 pixels leaves 3 x 3 places of the coarsest map, and edges finer than stride 4.
        "small": {"kernel": 4, "width": 64, "skips": True, "subpixel": 4},
    }

    max_depth: float = field(default=10.0, metadata={"help": "largest depth in metres: the output's bound"})
    min_depth: float = field(default=1e-3, metadata={"help": "evaluation counts true depths between these two, in m"})
    crop: str = field(
        default="none",
        metadata={"help": f"part of the image that evaluation counts: {', '.join(CROPS)}"},
    )
    variance: float = field(default=0.5, metadata={"help": "lambda of the loss; 1 makes it blind to a common factor"})
    width: int = field(default=32, metadata={"help": "channels of each of the three deconvolutions"})
    kernel: int = field(default=2, metadata={"help": "kernel of the deconvolutions of stride 2: 2, or 4 to overlap"})
    skips: bool = field(default=False, metadata={"help": "add the finer maps, projected, after each deconvolution"})
    subpixel: int = field(default=1, metadata={"help": "depths along each side of a place of the finest map"})

    def __post_init__(self) -> None:
        if not 0 < self.min_depth < self.max_depth:
            raise ValueError(f"min_depth and max_depth must rise from 0, got {self.min_depth} and {self.max_depth}")
        if self.crop not in CROPS:
            raise ValueError(f"crop must be one of {', '.join(CROPS)}, got {self.crop!r}")
        if not 0 <= self.variance <= 1:
            raise ValueError(f"variance must lie in [0, 1], got {self.variance}")
        if self.kernel not in (2, 4):
            raise ValueError(f"kernel must be 2 or 4, got {self.kernel}")
        for name in ("width", "subpixel"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


class DepthTask(nn.Module):
    """Three deconvolutions with BatchNorm and ReLU over the coarsest map, an output convolution, max_depth * sigmoid.

    Args:
        settings: see DepthSettings.
        channels: channels of the four maps (strides 4, 8, 16, 32).
        class_names, object_classes: not used; depth needs no classes.

    batch: "depth" float [B, H, W] in metres; what is not above zero and finite is ignored.
    """

    figures = (
        Figure("rmse", "RMSE", "m", higher=False),
        Figure("abs_rel", "AbsRel", "%", higher=False),
        Figure("delta1", "delta < 1.25", "%"),
    )
    needs_classes = False
    zooms = (1.0,)  # mirror images alone, as the benchmarks of depth have it
    needs_instances = False

    def __init__(
        self,
        settings: DepthSettings,
        channels: Sequence[int],
        class_names: Sequence[str] = (),
        object_classes: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.settings = settings
        width, padding = settings.width, (settings.kernel - 2) // 2
        inputs = (channels[-1], *[width] * (_STEPS - 1))
        self.deconvolutions = nn.ModuleList(
            nn.ConvTranspose2d(c, width, settings.kernel, stride=2, padding=padding, bias=False) for c in inputs
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(_STEPS))
        finer = reversed(channels[-1 - _STEPS : -1]) if settings.skips else ()
        self.skips = nn.ModuleList(nn.Conv2d(c, width, 1, bias=False) for c in finer)
        self.output = nn.Conv2d(width, settings.subpixel**2, 3, padding=1)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all weights anew from torch's default generator; every depth starts near half of max_depth."""
        for module in (*self.deconvolutions, *self.skips):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        for norm in self.norms:
            norm.reset_parameters()
        nn.init.normal_(self.output.weight, std=1e-3)
        nn.init.zeros_(self.output.bias)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Float32 logits [B, 1, h, w]; depth is max_depth * sigmoid of them. h, w: `subpixel` times stride 4."""
        if len(maps) != _STEPS + 1:
            raise ValueError(f"maps must be {_STEPS + 1} feature maps, got {len(maps)}")
        x = maps[-1]
        for step, (deconvolution, norm) in enumerate(zip(self.deconvolutions, self.norms, strict=True)):
            x = deconvolution(x)
            if len(self.skips):
                finer = self.skips[step](maps[-2 - step])
                x = finer + (x if x.shape == finer.shape else resized(x, finer.shape[-2:]))
            x = F.relu(norm(x))
        return F.pixel_shuffle(self.output(x).float(), self.settings.subpixel)

    def loss(self, maps: Sequence[Tensor], batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss and its detached term "silog"."""
        truth = batch["depth"]
        log_depth = F.logsigmoid(resized(self(maps), truth.shape[-2:])[:, 0]) + math.log(self.settings.max_depth)
        term = scale_invariant_log(log_depth, truth, self.settings.variance)
        return term, {"silog": term.detach()}

    @torch.no_grad()
    def predict(self, maps: Sequence[Tensor], size: Sequence[int]) -> dict[str, Tensor]:
        """ "depth" float32 [B, H, W] in metres, at `size`."""
        return {"depth": resized(self(maps), size)[:, 0].sigmoid() * self.settings.max_depth}

    def metrics(self) -> DepthMetric:
        """A fresh metric, see DepthMetric."""
        return DepthMetric(self.settings.min_depth, self.settings.max_depth, self.settings.crop)


def scale_invariant_log(log_depth: Tensor, truth: Tensor, variance: float) -> Tensor:
    """sqrt(mean(d^2) - variance * mean(d)^2), d = log_depth - log(truth) over an image's measured pixels, averaged over
    the images that have any; 0 where none has. Eigen et al., "Depth Map Prediction", 2014, Eq. 4, under a root.

    Args:
        log_depth: float [B, H, W], the logarithm of metres.
        truth: float [B, H, W] in metres.
        variance: 0 to 1.
    """
    valid = measured(truth)
    count = valid.sum((1, 2)).clamp(min=1)
    # The log is taken of a harmless 1 where nothing was measured, so that no inf or NaN meets the mask.
    error = torch.where(valid, log_depth - torch.where(valid, truth, 1.0).to(log_depth.dtype).log(), 0.0)
    mean = error.sum((1, 2)) / count
    spread = torch.where(valid, error - mean[:, None, None], 0.0).square().sum((1, 2)) / count
    # The root's slope at 0 is infinite.
    root = (spread + (1 - variance) * mean.square()).clamp(min=1e-10).sqrt()
    counted = valid.any(2).any(1)
    return torch.where(counted, root, 0.0).sum() / ranks.mean_count(counted.sum())
