"""Selective Feature Adapter: fused adapter kernels (`torch.ops.sfa`) and training for dense vision transformers.

`import sfa_ext` loads torch and the ops, nothing else; the names below load what they need when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from sfa_ext import ops

__version__ = "0.1.0"

_LAZY = {
    "adapt": "sfa_ext.methods",
    "SFA": "sfa_ext.methods",
    "Frozen": "sfa_ext.methods",
    "Full": "sfa_ext.methods",
    "SSF": "sfa_ext.methods",
    "VPT": "sfa_ext.methods",
    "LoRA": "sfa_ext.methods",
    "AdaptFormer": "sfa_ext.methods",
    "Mona": "sfa_ext.methods",
    "SparseAdamW": "sfa_ext.optim",
    "environment": "sfa_ext.env",
}

__all__ = ["__version__", "ops", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'sfa_ext' has no attribute {name!r}; it has: {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
