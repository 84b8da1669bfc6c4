"""The fused operators, callable as `torch.ops.sfa.*`. Needs torch and the compiled libraries, nothing else."""

from __future__ import annotations

from . import adapter  # noqa: F401  registers the Python half of its operators
from .backends import backends

__all__ = ["backends"]
