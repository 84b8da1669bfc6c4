"""What this copy of sfa_ext is made of and what it can use on this machine; `sfa env` prints it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch

from sfa_ext import __version__, ops
from sfa_ext.ops._library import CPU_LIBRARY, CUDA_LIBRARY, cuda_obstacle

# The flags of /proc/cpuinfo that a processor needs for each set the kernels are compiled for.
_ISA_FLAGS = {
    "avx2": {"avx2", "fma", "f16c"},
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx512bf16": {"avx512_bf16"},
    "amx": {"amx_tile", "amx_bf16"},
}


def environment() -> dict[str, Any]:
    """Versions, processor, GPUs, the backend behind each op, optional packages, and advice on what is missing.

    The result holds only strings, numbers, booleans, None, lists and dicts: it can be written as JSON.
    """
    facts: dict[str, Any] = {
        "versions": {
            "sfa_ext": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        },
        "build": _build(),
        "cpu": _cpu(),
        "cuda": _cuda(),
        "ops": ops.backends(),
        "backend_forced": os.environ.get("SFA_BACKEND") or None,
        "packages": _optional_packages(),
    }
    facts["advice"] = _advice(facts)
    return facts


def _build() -> dict[str, Any] | None:
    """How the compiled part was built; None if `_C` is missing, which only happens to a copy that was tampered with."""
    try:
        from sfa_ext import _C
    except ImportError:
        return None
    return {key: list(value) if isinstance(value, tuple) else value for key, value in _C.build_facts().items()}


def _cpu() -> dict[str, Any]:
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", info, re.M)
    line = re.search(r"^flags\s*:\s*(.+)$", info, re.M)
    flags = set(line.group(1).split()) if line else set()
    return {
        "model": model.group(1) if model else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "isas_available": ["baseline", *(name for name, needed in _ISA_FLAGS.items() if needed <= flags)],
        "isa_in_use": _isa_in_use(),
        "isa_forced": os.environ.get("SFA_CPU_ISA") or None,
    }


def _isa_in_use() -> str:
    """The instruction set that the kernels of this process chose; ValueError if SFA_CPU_ISA asks for another."""
    try:
        return torch.ops.sfa.cpu_isa()
    except RuntimeError as error:
        known = ", ".join(["baseline", *_ISA_FLAGS, "torch"])
        raise ValueError(
            f"SFA_CPU_ISA={os.environ.get('SFA_CPU_ISA')!r} cannot be used: it must be one of {known}, and this "
            "processor must have it; unset it to use the widest"
        ) from error


def _cuda() -> dict[str, Any]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    properties = [torch.cuda.get_device_properties(index) for index in range(count)]
    return {
        "torch_cuda": torch.version.cuda,
        "library": CUDA_LIBRARY.is_file(),
        "obstacle": cuda_obstacle(),
        "devices": [
            {
                "name": device.name,
                "capability": f"{device.major}.{device.minor}",
                "memory_gib": round(device.total_memory / 2**30, 1),
            }
            for device in properties
        ],
    }


def _optional_packages() -> dict[str, str | None]:
    """Version of each package of the `vision` extra, None where it is not installed.

    Empty in a source tree that was never installed: the list is the one in the package's own metadata.
    """
    try:
        requirements = importlib.metadata.requires("sfa_ext") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    names = [re.match(r"[\w.-]+", line).group() for line in requirements if re.search(r"extra == .vision.", line)]
    versions: dict[str, str | None] = {}
    for name in sorted(names):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _advice(facts: dict[str, Any]) -> list[str]:
    """One sentence for each thing that is missing: what it is and how to get it."""
    advice = []
    build, packages, cuda = facts["build"], facts["packages"], facts["cuda"]
    if build is None:
        advice.append("sfa_ext._C is missing: build again with 'pip install .' or, in a source tree, 'make build'")
    elif build["version"] != __version__:
        advice.append(
            f"the compiled part is of version {build['version']}, the Python part of {__version__}: "
            "build again with 'pip install .' or, in a source tree, 'make build'"
        )
    missing = [name for name, version in packages.items() if version is None]
    if missing:
        advice.append(
            f"training and the sfa commands need {', '.join(missing)}: run pip install '.[vision]' in the source folder"
        )
    elif not packages:
        advice.append("sfa_ext is not installed, it runs from a source tree: pip install -e '.[vision]'")
    if cuda["obstacle"] and cuda["devices"]:
        advice.append(
            f"the CUDA kernels are not used, since {cuda['obstacle']}: build again on this machine, or with "
            "TORCH_CUDA_ARCH_LIST naming every GPU; for a V100 with CUDA 12, as the README says"
        )
    served = {served["cuda"] for served in facts["ops"].values()} if cuda["devices"] else set()
    if "none" in served:
        advice.append(f"SFA_BACKEND={facts['backend_forced']} asks for kernels that are not there: unset it")
    if "reference" in served and facts["backend_forced"] is None:
        advice.append(
            "some ops run on the GPU as torch operators: SFA_CUDA=on pip install . builds CUDA kernels or says what it "
            "lacks for that; pip install triton brings kernels that need no build"
        )
    return advice


def render(facts: dict[str, Any]) -> str:
    """`facts`, as `environment` returns them, as text for a terminal."""
    build, cpu, cuda = facts["build"] or {}, facts["cpu"], facts["cuda"]
    rows = [(name, version) for name, version in facts["versions"].items()]
    rows += [
        ("built with", f"{build.get('compiler', 'unknown')}, headers of torch {build.get('torch_headers', 'unknown')}"),
        ("runs on torch", f"{build.get('oldest_torch', 'unknown')} and newer"),
        ("processor", f"{cpu['model']}, {cpu['cores']} cores, {cpu['threads']} threads in use"),
        ("instruction set", _describe_isa(build, cpu)),
        ("libsfa_cpu", f"present ({CPU_LIBRARY})"),
        ("libsfa_cuda", _describe_cuda_library(cuda)),
        ("CUDA archs built", _describe_cuda_build(build)),
        ("CUDA of torch", cuda["torch_cuda"] or "none (a CPU build of torch)"),
    ]
    for device in cuda["devices"] or [None]:
        described = "none"
        if device:
            described = f"{device['name']}, compute capability {device['capability']}, {device['memory_gib']} GiB"
        rows.append(("GPU", described))
    forced = facts["backend_forced"]
    rows.append(("backend of GPUs", f"{forced} (by SFA_BACKEND)" if forced else "chosen by what was built"))
    blocks = [_table(rows), "Backend of each op\n" + _backend_table(facts["ops"])]
    if facts["packages"]:
        packages = [(name, version or "not installed") for name, version in facts["packages"].items()]
        blocks.append("Optional packages\n" + _table(packages))
    blocks.append("\n".join(f"To do: {line}" for line in facts["advice"]) or "Nothing is missing.")
    return "\n\n".join(blocks)


def _describe_isa(build: dict[str, Any], cpu: dict[str, Any]) -> str:
    text = f"{cpu['isa_in_use']} in use"
    if cpu["isa_forced"]:
        text += f" (by SFA_CPU_ISA={cpu['isa_forced']})"
    return f"{text}; processor has {', '.join(cpu['isas_available'])}; compiled {', '.join(build.get('cpu_isas', []))}"


def _describe_cuda_library(cuda: dict[str, Any]) -> str:
    if not cuda["library"]:
        return "absent"
    return f"present ({CUDA_LIBRARY})" + (f", not used: {cuda['obstacle']}" if cuda["obstacle"] else "")


def _describe_cuda_build(build: dict[str, Any]) -> str:
    archs = build.get("cuda_archs", [])
    return f"{', '.join(archs)} with {build.get('cuda_compiler', 'unknown')}" if archs else "none"


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


def _backend_table(backends: dict[str, dict[str, str]]) -> str:
    devices = list(next(iter(backends.values())))
    cells = [["", *devices]] + [[op, *(served[device] for device in devices)] for op, served in backends.items()]
    widths = [max(len(row[column]) for row in cells) for column in range(len(devices) + 1)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )
