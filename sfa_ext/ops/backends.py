"""Which implementation of each operator runs on which device."""

from __future__ import annotations

import torch

from ._library import has_kernel

OPERATORS = (
    "fused_adapter",
    "fused_adapter_keep",
    "fused_adapter_backward",
    "fused_adapter_norm",
    "fused_adapter_norm_keep",
    "fused_adapter_norm_backward",
    "accumulate_scores_",
    "select_topk",
    "sparse_adamw_",
    "swap_values_",
)


def backends() -> dict[str, dict[str, str]]:
    """Operator to device to what serves it: "native" with the instruction set, "reference" (torch's own ops) or "none".

    "other" stands for every device that is neither a CPU nor a CUDA GPU.
    """
    return {op: {device: _serves(op, device) for device in ("cpu", "cuda", "other")} for op in OPERATORS}


def _serves(op: str, device: str) -> str:
    if device != "other" and has_kernel(op, device.upper()):
        return f"native {torch.ops.sfa.cpu_isa()}" if device == "cpu" else "native"
    return "reference" if has_kernel(op, "CompositeExplicitAutograd") else "none"
