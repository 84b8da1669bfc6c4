"""Builds and runs the emulator's test programs; cuda_emulator.h says how to write one."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "cuda_emulator"
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")

Replacement = tuple[str, str, str]  # file, such as "cuda/adapter.cuh" or "self_test.cuh", old text, new text


@functools.cache
def compiler() -> str:
    path = shutil.which(os.environ.get("CXX", "").split(" ")[0] or "c++") or shutil.which("g++")
    if path is None:
        pytest.skip("no C++ compiler to compile the kernels for the emulator")
    return path


def build(program: str, *, arch: int = 800, sanitize: bool = False, replace: tuple[Replacement, ...] = ()) -> Path:
    """Compiles `program`.cpp of this folder with the kernels of csrc/cuda and returns the executable.

    arch: the generation the kernels believe to run on, as __CUDA_ARCH__ says it. sanitize: with AddressSanitizer and
    UndefinedBehaviorSanitizer. replace: faults to inject; each old text must stand in its file exactly once. What was
    built before from the same text is used again.
    """
    sources = {
        str(path.relative_to(folder)): path.read_text()
        for folder, pattern in ((ROOT / "csrc", "cuda/*.*h"), (ROOT / "csrc", "common/*.h"), (HERE, "*.[ch]*"))
        for path in sorted(folder.glob(pattern))
    }
    for name, old, new in replace:
        assert sources[name].count(old) == 1, f"{name} must hold {old!r} once, not {sources[name].count(old)} times"
        sources[name] = sources[name].replace(old, new)
    sources = {name: sources[name] for name in _included(f"{program}.cpp", sources)}
    flags = ["-std=c++20", "-O1", *WARNINGS, f"-DSFA_EMULATED_ARCH={arch}", *(("-g1", *SANITIZE) if sanitize else ())]
    if replace:  # a fault may leave something unused
        flags.append("-Wno-error")
    key = hashlib.sha256("\0".join([compiler(), program, *flags, *sources, *sources.values()]).encode()).hexdigest()
    folder = BUILD / f"{program}-{key[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / program).is_file():
            for name, text in sources.items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(text)
            command = [compiler(), *flags, f"-I{folder}", str(folder / f"{program}.cpp"), "-o", str(folder / ".new")]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr[-4000:]
            (folder / ".new").rename(folder / program)
    return folder / program


def _included(name: str, sources: dict[str, str]) -> list[str]:
    """`name` and what it includes, directly or not."""
    found, left = set(), [name]
    while left:
        name = left.pop()
        if name not in sources or name in found:
            continue
        found.add(name)
        for include in re.findall(r'#include ["<]([^">]+)[">]', sources[name]):
            left += [include, str(Path(name).parent / include)]
    return sorted(found)


def run(executable: Path, *arguments: str) -> subprocess.CompletedProcess:
    """Runs it; a fault that makes it hang is a failure after a minute of the processor's time."""
    environment = os.environ | {"ASAN_OPTIONS": "detect_stack_use_after_return=0:detect_leaks=0"}
    return subprocess.run(
        [executable, *arguments],
        capture_output=True,
        text=True,
        timeout=800,
        env=environment,
        errors="replace",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (60, 60)),
    )


def expect_pass(executable: Path, *arguments: str) -> None:
    done = run(executable, *arguments)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def expect_fault(executable: Path, *arguments: str) -> None:
    """The program must notice: by a failed check, or ended by the emulator or a sanitizer."""
    done = run(executable, *arguments)
    assert done.returncode != 0, "the injected fault was not noticed"
