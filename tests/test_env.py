"""`sfa env`: what this copy is made of and what it can use."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import schemas
import torch

import sfa_ext
from sfa_ext import env

FACTS = env.environment()


def in_new_process(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, **variables}
    return subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=environ, capture_output=True, text=True)


def test_facts_survive_json() -> None:
    assert json.loads(json.dumps(FACTS)) == FACTS


def test_versions_are_those_in_use() -> None:
    assert FACTS["versions"]["torch"] == torch.__version__
    assert FACTS["versions"]["sfa_ext"] == FACTS["build"]["version"] == sfa_ext.__version__


def test_instruction_set_in_use_was_compiled_and_is_there() -> None:
    isa = FACTS["cpu"]["isa_in_use"].partition(",")[0]
    assert isa in FACTS["build"]["cpu_isas"]
    assert isa in FACTS["cpu"]["isas_available"]


def test_every_op_has_a_line_that_names_its_backend() -> None:
    ops = schemas.operators()
    assert set(FACTS["ops"]) == ops
    text = env.render(FACTS)
    for op in ops:
        assert re.search(rf"^{op} +{FACTS['ops'][op]['cpu']} ", text, re.M), text


def test_text_says_whether_there_are_cuda_kernels() -> None:
    state = "present" if FACTS["cuda"]["library"] else "absent"
    assert re.search(rf"^libsfa_cuda +{state}", env.render(FACTS), re.M)


def test_missing_packages_are_named_with_the_remedy() -> None:
    """In a process that finds torch and this package, but timm nowhere."""
    code = """
import importlib.metadata as metadata
found = metadata.version
def version(name):
    if name == "timm":
        raise metadata.PackageNotFoundError(name)
    return found(name)
metadata.version = version
from sfa_ext import env
print(env.render(env.environment()))
"""
    text = in_new_process(code).stdout
    assert re.search(r"^timm +not installed$", text, re.M)
    assert re.search(r"^To do: .*need timm: run pip install .*\[vision\]", text, re.M)


def test_a_forced_instruction_set_is_used_and_shown() -> None:
    text = in_new_process(
        "from sfa_ext import env; print(env.render(env.environment()))", SFA_CPU_ISA="baseline"
    ).stdout
    assert "baseline in use (by SFA_CPU_ISA=baseline)" in text


@pytest.mark.parametrize("wish", ["sse9", "AVX2"])
def test_an_unknown_instruction_set_is_refused(wish: str) -> None:
    result = in_new_process("from sfa_ext import env; env.environment()", SFA_CPU_ISA=wish)
    assert f"ValueError: SFA_CPU_ISA='{wish}' cannot be used: it must be one of baseline, avx2" in result.stderr


def test_only_torch_is_needed() -> None:
    """No package of the vision extra is imported to report on them."""
    code = "import sys; from sfa_ext import env; env.environment(); print('timm' in sys.modules)"
    assert in_new_process(code).stdout.split() == ["False"]


def test_a_command_without_its_packages_names_the_remedy() -> None:
    code = "import sys; sys.modules['timm'] = None; from sfa_ext import cli; sys.exit(cli.main(['params', 'scenes']))"
    result = in_new_process(code)
    assert result.returncode == 2
    assert re.fullmatch(r"sfa: error: this command needs timm.*pip install '\.\[vision\]'.*\n", result.stderr)


def test_the_example_for_kernel_users_runs() -> None:
    text = (Path(__file__).parent.parent / "README.md").read_text()
    example = re.search(r"## For kernel users\n+```python\n(.*?)```", text, re.S).group(1)
    result = in_new_process(example + "print(x.grad.shape, sum(map(len, best)))")
    assert result.stdout.split("\n")[0] == "torch.Size([4, 1024, 512]) 6", result.stderr
