"""What torch knows of our operators."""

from __future__ import annotations

import torch

_ABOUT_KERNELS = {"cpu_isa", "allow_tf32", "allow_short_floats"}  # they tell and ask, and compute nothing


def operators() -> set[str]:
    """Names of the operators that compute something, so that a backend has to serve them."""
    names = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("sfa::")}
    return {name.removeprefix("sfa::") for name in names} - _ABOUT_KERNELS
