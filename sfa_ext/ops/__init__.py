"""The fused operators, callable as `torch.ops.sfa.*`. Needs torch and the compiled libraries, nothing else."""

from __future__ import annotations

from . import adapter, attention, selection  # noqa: F401  they register the Python half of the operators
from .backends import backends

__all__ = ["backends"]
