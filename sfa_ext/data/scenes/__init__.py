"""The embedded data: rooms with solids, ray-cast with exact labels, so that everything can be tried without a download.

The `source` domain is plain and well lit (pretraining); the `target` domain is textured with real photographs,
cluttered and shadowed (the dense tasks).
"""

from __future__ import annotations

from typing import Any

__all__ = ["Scenes"]


def __getattr__(name: str) -> Any:
    # Rendering needs numpy only; the dataset, which needs torch, is loaded when it is asked for.
    if name == "Scenes":
        from sfa_ext.data.scenes.dataset import Scenes

        return Scenes
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
