from __future__ import annotations

import pytest
import torch


@pytest.fixture
def images():
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(9))
