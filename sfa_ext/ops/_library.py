"""Loads the compiled operator libraries and holds the Python half of the `sfa` operator namespace."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import gpus

FOLDER = Path(__file__).resolve().parent.parent / "_lib"
CPU_LIBRARY = FOLDER / "libsfa_cpu.so"
CUDA_LIBRARY = FOLDER / "libsfa_cuda.so"


def load() -> None:
    """Loads libsfa_cpu (all schemas, CPU kernels) and libsfa_cuda where it was built, runs on this machine's driver and
    every GPU and SFA_BACKEND does not ask for another backend; SFA_BACKEND=cuda loads it beside any torch with CUDA.

    Raises ImportError if libsfa_cpu is missing or does not load.
    """
    if not CPU_LIBRARY.is_file():
        raise ImportError(
            f"the compiled operators are missing: {CPU_LIBRARY} does not exist. "
            "Build them with `pip install .` (or `make build` in a source tree)."
        )
    _load(CPU_LIBRARY)
    if not CUDA_LIBRARY.is_file():
        return
    wish = os.environ.get("SFA_BACKEND")
    if wish == "cuda" and torch.version.cuda is not None or not wish and cuda_obstacle() is None:
        _load(CUDA_LIBRARY)


def cuda_obstacle() -> str | None:
    """Why the compiled CUDA kernels cannot be used here; None where they can, and where none were built."""
    if not CUDA_LIBRARY.is_file():
        return None
    from sfa_ext import _C

    facts = _C.build_facts()
    return gpus.obstacle(torch.version.cuda, facts["cuda_archs"], facts["cuda_compiler"])


def _load(path: Path) -> None:
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"{path} does not load with torch {torch.__version__}: {error}. Rebuild it with `pip install .`."
        ) from error


load()

# Python kernels (checks, autograd, autocast, reference) register here; the schemas belong to the C++ library.
LIBRARY = torch.library.Library("sfa", "FRAGMENT")


def has_kernel(op: str, key: str) -> bool:
    """Whether operator `op` ("fused_adapter") has a kernel of its own for the dispatch key ("CUDA")."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"sfa::{op}", key)


class below_autograd:
    """Context in which calling an operator goes past its Autograd kernel to the backend's, which checks its arguments.

    explain: called where the kernel refused; raises a RuntimeError that says in full what was wrong, if it was the
        arguments. Kernels are terse, and before torch 2.13 their words are lost on the way through the stable ABI, as
        is the type of torch's own errors. One that says that a GPU is out of memory is raised again as
        torch.OutOfMemoryError, for callers that then try less.
    """

    def __init__(self, explain: Callable[[], None] | None = None):
        self._explain = explain

    def __enter__(self) -> None:
        self._guard = torch._C._AutoDispatchBelowAutograd()
        self._guard.__enter__()

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        self._guard.__exit__(kind, error, traceback)
        if kind is not RuntimeError:  # others are torch's own, raised while tracing
            return
        if "out of memory" in str(error):
            raise torch.OutOfMemoryError(str(error)) from error
        if self._explain is not None:
            self._explain()


def tracks(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd wants the derivative by any of the tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def register_autocast(op: str, kernel: Callable[..., Any]) -> None:
    """Registers `kernel(dtype, *args)`, which runs with autocast off, for autocast on CPU and CUDA."""
    both = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
        torch._C.DispatchKey.AutocastCUDA
    )
    for device in ("cpu", "cuda"):

        def run(*args: Any, device: str = device) -> Any:
            with torch._C._ExcludeDispatchKeyGuard(both):
                return kernel(torch.get_autocast_dtype(device), *args)

        LIBRARY.impl(op, run, f"Autocast{device.upper()}")
