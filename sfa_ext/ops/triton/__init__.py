"""The operators as Triton kernels, for GPUs without compiled ones. Importing it imports Triton."""

from __future__ import annotations

from .adapter import (
    fused_adapter,
    fused_adapter_backward,
    fused_adapter_keep,
    fused_adapter_norm,
    fused_adapter_norm_backward,
    fused_adapter_norm_keep,
)
from .selection import accumulate_scores_, sparse_adamw_, swap_values_
from .topk import select_topk

__all__ = [
    "accumulate_scores_",
    "fused_adapter",
    "fused_adapter_backward",
    "fused_adapter_keep",
    "fused_adapter_norm",
    "fused_adapter_norm_backward",
    "fused_adapter_norm_keep",
    "select_topk",
    "sparse_adamw_",
    "swap_values_",
]
