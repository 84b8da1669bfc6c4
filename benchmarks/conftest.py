"""The option that asks for every shape."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-shapes", action="store_true", help="every SwinV2 stage, batch and width of the adapter")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "adapter_shape" in metafunc.fixturenames:
        from .adapter_cases import shapes

        every = metafunc.config.getoption("--all-shapes")
        metafunc.parametrize("adapter_shape", shapes(every, (1, 4) if every else (1,)), ids=str)
