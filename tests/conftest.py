"""What every test shares: the device to run on, fixed seeds, and a thread count that a test cannot leave changed."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator

import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's kernels run on the CPU: nothing else is of interest


def pytest_configure() -> None:
    # The tensors of tests are small: threads that wait for each other cost more than they save, many times more where
    # several workers share the cores. A test that is about threads sets its own number.
    torch.set_num_threads(1)
    if INTERPRETING:
        import triton_interpreter

        triton_interpreter.repair()


DEVICES = ("cpu-triton",) if INTERPRETING else ("cpu", "cuda", "cuda-triton")


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Each device the ops support, a GPU with every backend; what this machine lacks is skipped."""
    from sfa_ext.ops.backends import using

    kind, _, backend = request.param.partition("-")
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    with using(backend) if backend else contextlib.nullcontext():
        yield torch.device(kind)


@pytest.fixture(autouse=True)
def _same_start_for_every_test() -> Iterator[None]:
    random.seed(0)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def pico():
    """A swinv2_pico for 96x96 images in eval mode. Its norms are drawn at random: timm starts them at zero, where every
    block is the identity and an equality test would pass for nothing."""
    from sfa_ext import backbones

    return _with_random_norms(backbones.build("swinv2_pico", size=96, dynamic=False).eval())


@pytest.fixture
def vit():
    """A vit_pico for 96x96 images in eval mode: class token and registers, its norms drawn at random."""
    from sfa_ext import backbones

    return _with_random_norms(backbones.build("vit_pico", size=96, dynamic=False).eval())


@pytest.fixture(params=["pico", "vit"])
def backbone(request: pytest.FixtureRequest):
    """A tiny backbone of each family."""
    return request.getfixturevalue(request.param)


def _with_random_norms(model: torch.nn.Module) -> torch.nn.Module:
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    return model
