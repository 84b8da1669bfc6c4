"""Builds and runs programs that try kernels of csrc/ on their own, some with faults injected on purpose."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WARNINGS = ("-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")

# file ("cuda/adapter.cuh" or, beside the program, "self_test.cuh"), old text, new text
Replacement = tuple[str, str, str]


@functools.cache
def compiler() -> str:
    path = shutil.which(os.environ.get("CXX", "").split(" ")[0] or "c++") or shutil.which("g++")
    if path is None:
        pytest.skip("no C++ compiler to compile the kernels for the emulator")
    return path


def build(
    main: Path,
    kernels: Sequence[str],
    flags: Sequence[str],
    *,
    sanitize: bool = False,
    replace: tuple[Replacement, ...] = (),
) -> Path:
    """Compiles `main`, a .cpp file, with the headers beside it and those in the folders `kernels` of csrc/.

    flags: of the compiler. sanitize: with AddressSanitizer and UndefinedBehaviorSanitizer. replace: faults to inject;
    each old text must stand in its file exactly once. What was built before from the same text is used again.
    """
    csrc, program = ROOT / "csrc", main.stem
    sources = {
        str(path.relative_to(folder)): path.read_text()
        for folder, pattern in (*((csrc, f"{name}/*.*h") for name in kernels), (main.parent, "*.[ch]*"))
        for path in sorted(folder.glob(pattern))
    }
    for name, old, new in replace:
        assert sources[name].count(old) == 1, f"{name} must hold {old!r} once, not {sources[name].count(old)} times"
        sources[name] = sources[name].replace(old, new)
    sources = {name: sources[name] for name in _included(main.name, sources)}
    flags = ["-std=c++20", "-O1", *WARNINGS, *flags, *(("-g1", *SANITIZE) if sanitize else ())]
    if replace:  # a fault may leave something unused
        flags.append("-Wno-error")
    key = hashlib.sha256("\0".join([compiler(), program, *flags, *sources, *sources.values()]).encode()).hexdigest()
    folder = ROOT / "build" / main.parent.name / f"{program}-{key[:16]}"
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
