"""Linear layers on CPUs by oneDNN, called as torch calls it in compiled models, where that is faster than torch's own.

oneDNN adds the bias and applies GELU to numbers that are still in registers, which spares two passes over the widest
maps of a block. bfloat16 products it computes for torch anyway. Those of float32 torch gives to MKL, which is the
slower one on processors of other makers than its own (2 to 28 % over the layers of SwinV2-Base on an AMD EPYC with
AVX-512). These calls have no gradient; where one is needed, or torch.compile or autocast decide, all is as it was.
"""

from __future__ import annotations

import functools
import platform
from pathlib import Path

import torch
from timm.layers import Mlp
from timm.layers.activations import GELU
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook


class FastMlp(Mlp):
    """timm's MLP of a block, its activation in one call with the layer before it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.drop2(apply(self.fc2, self.norm(self.drop1(self._hidden(x)))))

    def _hidden(self, x: Tensor) -> Tensor:
        approximate = _approximation(self.act)
        if approximate is None or not _plain(self.fc1):
            return self.act(apply(self.fc1, x))
        return linear(x, self.fc1.weight, self.fc1.bias, approximate)


def accelerate_mlp(mlp: nn.Module) -> None:
    """Gives timm's MLP its fast form, in place; one of another class stays as it is."""
    if type(mlp) is Mlp:
        mlp.__class__ = FastMlp


def decelerate_mlp(mlp: nn.Module) -> None:
    """Undoes `accelerate_mlp`."""
    if type(mlp) is FastMlp:
        mlp.__class__ = Mlp


def apply(layer: nn.Module, x: Tensor) -> Tensor:
    """layer(x), with its hooks where it has any."""
    return linear(x, layer.weight, layer.bias) if _plain(layer) else layer(x)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: str | None = None) -> Tensor:
    """F.linear(x, weight, bias), then F.gelu with that `approximate` where it is given."""
    if _by_onednn(x, weight, bias):
        activation = ("none", [], "") if gelu is None else ("gelu", [], gelu)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, *activation)
    y = F.linear(x, weight, bias)
    return y if gelu is None else F.gelu(y, approximate=gelu)


def _plain(layer: nn.Module) -> bool:
    """Whether calling the layer does nothing else than F.linear."""
    return type(layer) is nn.Linear and not _hooked(layer)


def _approximation(activation: nn.Module) -> str | None:
    """F.gelu's `approximate` where the activation is a GELU without hooks, else None."""
    known = type(activation) in (nn.GELU, GELU) and not _hooked(activation)
    return getattr(activation, "approximate", "none") if known else None


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks or _has_any_global_hook())


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    tensors = [x, weight] if bias is None else [x, weight, bias]
    if torch.compiler.is_compiling() or not all(type(t) in (Tensor, nn.Parameter) and t.is_cpu for t in tensors):
        return False
    needs_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    alike = all(t.dtype == x.dtype for t in tensors) and x.numel() > 0
    free = alike and not needs_gradient and not torch.is_autocast_enabled("cpu") and torch.backends.mkldnn.enabled
    return free and _faster(x.dtype)


@functools.cache
def _faster(dtype: torch.dtype) -> bool:
    """Whether oneDNN is what should compute products of that dtype on this processor."""
    if platform.machine() not in ("x86_64", "AMD64") or not torch.backends.mkldnn.is_available():
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 and torch.backends.mkl.is_available() and not _made_by_intel()


def _made_by_intel() -> bool:
    described = Path("/proc/cpuinfo")
    return not described.is_file() or "GenuineIntel" in described.read_text()
