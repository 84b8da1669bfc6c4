"""What the kernels for CUDA and for AMX ask before they compute products of float32."""

from __future__ import annotations

import pytest
import torch

import sfa_ext  # noqa: F401  registers torch.ops.sfa


@pytest.mark.parametrize(("precision", "allowed"), [("highest", False), ("high", True), ("medium", True)])
def test_it_is_what_torch_is_set_to(precision: str, allowed: bool) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        assert torch.ops.sfa.allow_tf32() is allowed
        assert torch.ops.sfa.allow_short_floats() is allowed
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_older_setting_counts_as_well() -> None:
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        for allowed in (True, False):
            matmul.allow_tf32 = allowed
            assert torch.ops.sfa.allow_tf32() is allowed
    finally:
        matmul.allow_tf32 = before
