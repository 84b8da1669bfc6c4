"""BatchNorm over the samples of all ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sfa_ext import ranks


class SharedBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose statistics in training are those of all ranks' samples together.

    torch.nn.SyncBatchNorm computes on GPUs alone; this one runs anywhere, and takes mean and variance in two passes, as
    BatchNorm2d does. All ranks must have samples of one size.
    """

    @classmethod
    def replace(cls, module: nn.Module) -> None:
        """Puts one in place of every BatchNorm2d inside `module`, with the same parameters and buffers."""
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                shared = cls(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
                shared._parameters, shared._buffers = child._parameters, child._buffers
                setattr(module, name, shared.train(child.training))
            else:
                cls.replace(child)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or ranks.size() == 1:
            return super().forward(x)
        wide, count = x.float(), ranks.size() * x.numel() // x.shape[1]
        column = (1, -1, 1, 1)
        mean = _SumOverRanks.apply(wide.sum((0, 2, 3))) / count
        centred = wide - mean.view(column)
        variance = _SumOverRanks.apply(centred.square().sum((0, 2, 3))) / count
        if self.track_running_stats:
            self.num_batches_tracked += 1
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
        scaled = centred * (variance + self.eps).rsqrt().view(column)
        if self.affine:
            scaled = scaled * self.weight.float().view(column) + self.bias.float().view(column)
        return scaled.to(x.dtype)


class _SumOverRanks(torch.autograd.Function):
    """A sum over ranks that is differentiable: every rank's loss depends on every rank's summand."""

    @staticmethod
    def forward(ctx, value: Tensor) -> Tensor:
        return ranks.sum_over(value)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return ranks.sum_over(gradient.contiguous())
