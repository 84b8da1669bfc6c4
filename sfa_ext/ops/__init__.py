"""The fused operators, callable as `torch.ops.sfa.*`. Needs torch and the compiled libraries, nothing else."""

from __future__ import annotations

from . import _library  # noqa: F401  loads the compiled libraries before anything registers against them
