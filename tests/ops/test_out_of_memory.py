"""An operator that finds no memory says so, as torch's own do."""

from __future__ import annotations

import pytest
import torch
from torch.torch_version import TorchVersion

import sfa_ext  # noqa: F401  registers torch.ops.sfa
from sfa_ext import _C
from sfa_ext.ops._library import below_autograd

WEIGHTS = (torch.zeros(4, 8), None, torch.zeros(8, 4), None)


def test_more_than_there_is(device: torch.device) -> None:
    if min(torch.__version__, TorchVersion(_C.build_facts()["torch_headers"])) < "2.13":
        pytest.skip("before torch 2.13, its headers included, an error's text does not cross the stable ABI")
    x = torch.zeros(1, 8, device=device).expand(2**45, 8)
    with pytest.raises(torch.OutOfMemoryError if device.type == "cuda" else RuntimeError, match="tr[iy].* to allocate"):
        torch.ops.sfa.fused_adapter(x, *(w if w is None else w.to(device) for w in WEIGHTS))


def test_the_type_of_the_error_is_restored() -> None:
    text = "CUDA out of memory. Tried to allocate 2.00 GiB (originally from torch_call_dispatcher)"
    with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 2.00 GiB"), below_autograd():
        raise RuntimeError(text)
    for other in (RuntimeError("an illegal memory access"), ValueError(text), torch.OutOfMemoryError(text)):
        with pytest.raises(type(other)) as raised, below_autograd():
            raise other
        assert raised.value is other
