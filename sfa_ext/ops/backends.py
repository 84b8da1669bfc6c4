"""Which implementation of each operator runs on which device, and how SFA_BACKEND chooses among them.

CPUs have compiled kernels. A GPU is served by the compiled CUDA kernels where they were built, else by Triton, else by
torch's own operators ("reference"); the environment variable SFA_BACKEND=cuda, triton or reference forces one of these.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ._library import LIBRARY, has_kernel

OPERATORS = (
    "fused_adapter",
    "fused_adapter_keep",
    "fused_adapter_backward",
    "fused_adapter_norm",
    "fused_adapter_norm_keep",
    "fused_adapter_norm_backward",
    "accumulate_scores_",
    "select_topk",
    "sparse_adamw_",
    "swap_values_",
)
# On GPUs torch's own operators are the best there is for these, whatever SFA_BACKEND says.
BY_TORCH = ("window_attention", "window_attention_backward")
CHOICES = ("cuda", "triton", "reference")
GPUS = ("cuda", "xpu")  # device types that Triton knows; torch calls AMD's GPUs "cuda" too
OLDEST_CAPABILITY = (8, 0)  # Triton makes no tensor-core code for older GPUs of NVIDIA

_portable: dict[str, Callable[..., Any]] = {}  # what serves a device without a compiled kernel, by operator
_forced: list[str] = []  # by `using`, the innermost last


def backends() -> dict[str, dict[str, str]]:
    """Operator to device to what serves it: "native" with the instruction set (CPU), "cuda" (compiled kernels),
    "triton", "reference" (torch's own operators), or "none" where SFA_BACKEND asks for what is not there.

    "other" stands for every other device. Raises ValueError if SFA_BACKEND is none of CHOICES.
    """
    return {op: {device: _serves(op, device) for device in ("cpu", *GPUS, "other")} for op in (*OPERATORS, *BY_TORCH)}


def choice() -> str | None:
    """What SFA_BACKEND asks for; None where sfa_ext chooses. Raises ValueError if it is none of CHOICES."""
    wish = _forced[-1] if _forced else os.environ.get("SFA_BACKEND") or None
    if wish is not None and wish not in CHOICES:
        raise ValueError(
            f"SFA_BACKEND must be one of {', '.join(CHOICES)}, got {wish!r}; unset it to let sfa_ext choose"
        )
    return wish


def register_portable(op: str, reference: Callable[..., Any], check: Callable[..., None] | None = None) -> None:
    """Serves `op` with Triton or `reference`, torch's own operators, on every device that has no compiled kernel.

    check: raises where arguments are wrong, as compiled kernels do; None where `reference` and Triton's do it.
    """

    def portable(*args: Any) -> Any:
        if check is not None:
            check(*args)
        device = _device(args)
        if device is None or _without_compiled(op, device) == "reference":
            return reference(*args)
        kernels = importlib.import_module(".triton", __package__)
        with _current(device):
            return getattr(kernels, op)(*args)

    _portable[op] = portable
    LIBRARY.impl(op, portable, "CompositeExplicitAutograd")


@contextlib.contextmanager
def using(backend: str) -> Iterator[None]:
    """Within it "triton" or "reference" serves every GPU, whatever was built and SFA_BACKEND says, and every CPU where
    Triton's interpreter is on: for tests and benchmarks, which compare backends in one process."""
    overrides = torch.library.Library("sfa", "IMPL")
    _forced.append(backend)
    try:
        choice()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Oo]verriding a previously registered kernel")
            for key in ("CUDA", "XPU", *["CPU"] * _interpreting()):
                for op in OPERATORS:
                    if has_kernel(op, key):
                        overrides.impl(op, _portable[op], key)
        yield
    finally:
        _forced.pop()
        overrides._destroy()


def _serves(op: str, device: str) -> str:
    wish = choice()
    if device == "cpu":
        return f"native {torch.ops.sfa.cpu_isa()}"
    if op in BY_TORCH:
        return "reference"
    if device in GPUS and has_kernel(op, device.upper()):
        return "cuda"
    try:
        return _without_compiled(op, torch.device(device)) if device in GPUS else "reference"
    except ValueError:
        assert wish is not None
        return "none"


def _without_compiled(op: str, device: torch.device) -> str:
    """What serves a device without a compiled kernel of `op`, triton or reference. Raises ValueError where SFA_BACKEND
    asks for what cannot."""
    wish = choice()
    interpreted = device.type == "cpu" and _interpreting()
    if wish == "reference" or not (device.type in GPUS or interpreted):
        return "reference"
    if wish == "cuda":
        raise ValueError(
            f"SFA_BACKEND=cuda cannot serve {op} on {device.type}: this copy of sfa_ext holds no compiled kernel for "
            "it; build it where nvcc is found, or unset SFA_BACKEND"
        )
    obstacle = None if interpreted else _obstacle(device.type, device.index)
    if obstacle and wish == "triton":
        raise ValueError(f"SFA_BACKEND=triton cannot serve {op} on {device}: {obstacle}; unset SFA_BACKEND")
    return "reference" if obstacle else "triton"


@functools.cache
def _obstacle(kind: str, index: int | None) -> str | None:
    """Why Triton cannot serve a GPU, None where it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    if kind == "cuda" and torch.version.hip is None and torch.cuda.is_available():
        capability = torch.cuda.get_device_capability(index)
        if capability < OLDEST_CAPABILITY:
            found, oldest = (".".join(map(str, c)) for c in (capability, OLDEST_CAPABILITY))
            return f"this GPU has compute capability {found}, Triton needs {oldest}"
    return None


def _interpreting() -> bool:
    """Whether Triton runs in its interpreter, on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _device(args: tuple[Any, ...]) -> torch.device | None:
    """Where the first tensor among `args` is; None if there is none."""
    for arg in args:
        for value in arg if isinstance(arg, (list, tuple)) else (arg,):
            if isinstance(value, torch.Tensor):
                return value.device
    return None


def _current(device: torch.device) -> contextlib.AbstractContextManager:
    """Makes `device` the one that Triton launches on."""
    if device.type == "cpu":
        return contextlib.nullcontext()
    return torch.xpu.device(device) if device.type == "xpu" else torch.cuda.device(device)
