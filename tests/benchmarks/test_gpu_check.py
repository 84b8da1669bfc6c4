"""`make gpu-check`, tried on the CPU with tiny shapes: what it runs, what it writes, and how it ends early."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_check
from benchmarks.gpu_cases import Case
from benchmarks.gpu_report import Report, render

ROOT = Path(__file__).parent.parent.parent
TIMING = {"ms": 2.0, "low": 1.0, "high": 3.0, "host_us": 40.0, "repeats": 30}


def test_the_whole_flow_writes_its_table(tmp_path):
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--dry-run", "--seconds", "250", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = tmp_path.glob("*.json")
    data = json.loads(written.read_text())
    assert data["finished"] and not data["skipped"], data["skipped"]
    assert [(s["name"], s["status"]) for s in data["steps"]] == [("tests of the ops", "ok"), ("measuring", "ok")]
    assert "2 passed" in data["steps"][0]["detail"]
    assert set(data["ceilings"]) == {"copy", "bfloat16", "float16", "float32"} and min(data["ceilings"].values()) > 0
    sections = {row["section"]: row["times"] for row in data["rows"]}
    phases = {"forward", "norm", "forward+backward", "norm forward+backward"}
    ops = {"accumulate_scores_", "select_topk", "sparse_adamw_", "swap_values_"}
    assert set(sections) == {*phases, *ops, "whole forward"}
    assert set(sections["whole forward"]) == {"native", "reference", "without adapters"}
    assert all(t["ms"] > 0 for row in data["rows"] for t in row["times"].values())
    assert all(row["floor_ms"] > 0 for row in data["rows"] if row["section"] != "whole forward")
    page = written.with_suffix(".md").read_text()
    assert page == render(data) and all(f"\n## {name}\n" in page for name in sections)
    assert "complete" in page and "not complete" not in page


def test_what_the_time_did_not_allow_is_named(tmp_path):
    report = Report(tmp_path / "card", {"device": "card"})
    report.save()
    command = [sys.executable, "-m", "benchmarks.gpu_bench", str(tmp_path / "card"), "--device", "cpu", "--small"]
    subprocess.run([*command, "--seconds", "0"], cwd=ROOT, check=True, timeout=200)
    data = json.loads((tmp_path / "card.json").read_text())
    assert data["finished"] and data["rows"] == [] and "select_topk: 10 %, first round" in data["skipped"]
    assert "- select_topk: 10 %, first round" in (tmp_path / "card.md").read_text()


@pytest.mark.parametrize(
    ("command", "seconds", "good", "status", "detail"),
    [
        (["sh", "-c", "echo fine"], 50, True, "ok", ""),
        (["sh", "-c", "echo 'no | compiler'; exit 3"], 50, False, "failed (3)", "no / compiler"),
        (["sh", "-c", "echo half; sleep 60 & wait"], 5.5, False, "cut off", "half"),
        (["no-such-program"], 50, True, "skipped", "no-such-program is not on the PATH"),
        (["true"], 1, False, "skipped", "no time was left"),
    ],
    ids=["ok", "failed", "cut-off", "missing", "no-time"],
)
def test_how_a_step_ends_is_written_down(tmp_path, command, seconds, good, status, detail):
    report = Report(tmp_path / "card", {"device": "card"})
    assert gpu_check.run(gpu_check.Step("build", command, 1), seconds, report) is good
    (step,) = json.loads((tmp_path / "card.json").read_text())["steps"]
    assert (step["status"], step["detail"]) == (status, detail)
    assert step["seconds"] < 30


def test_it_starts_before_anything_was_built():
    code = "import sys, benchmarks.gpu_check; print('sfa_ext' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_program_that_this_machine_does_not_let_work_is_skipped_and_named(tmp_path):
    report = Report(tmp_path / "card", {"device": "card"})
    for said, good in (("Device not supported", True), ("Invalid __global__ read", False)):
        step = gpu_check.Step("compute-sanitizer", ["sh", "-c", f"echo {said}; exit 1"], 1, unable="Device not support")
        assert gpu_check.run(step, 50, report) is good
    skipped, failed = json.loads((tmp_path / "card.json").read_text())["steps"]
    assert (skipped["status"], skipped["detail"]) == ("skipped", "sh says: Device not support")
    assert failed["status"] == "failed (1)"


def test_the_build_says_whether_it_made_cuda_kernels():
    step = gpu_check.Step("build", ["true"], 1)
    said = "sfa_ext: CUDA kernels are not built: no nvcc was found"
    assert gpu_check._summary(step, 0, f"warning\n{said}\n[9/9] linked\n") == said


def test_the_sanitizer_sees_every_compiled_kernel():
    """By the names of tests, which are there without a GPU too."""
    (step,) = (step for step in gpu_check.steps(dry_run=False) if step.name == "compute-sanitizer")
    pytest_options = step.command[step.command.index("-m") :]
    command = [sys.executable, *pytest_options, "--collect-only", "-qq"]  # against one -v
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    chosen = [line for line in done.stdout.splitlines() if "::" in line]
    files = {Path(line.partition("::")[0]).stem.removeprefix("test_") for line in chosen}
    ops = {"accumulate_scores", "select_topk", "sparse_adamw", "swap_values"}
    assert files == {"fused_adapter", "fused_adapter_norm", "cuda_plans", *ops}
    assert 40 < len(chosen) < 100 and not any("triton" in line or "reference" in line for line in chosen)


@pytest.mark.parametrize("cut_off", ["tests of the ops", "measuring"])
def test_a_check_that_was_cut_off_has_not_succeeded(cut_off, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "_run", lambda step, seconds: (None if step.name == cut_off else 0, ""))
    monkeypatch.setattr(gpu_check, "slug", lambda name: "card")
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--dry-run", "--out", str(tmp_path)])
    assert gpu_check.main() == 1
    steps = {step["name"]: step["status"] for step in json.loads((tmp_path / "card.json").read_text())["steps"]}
    assert steps[cut_off] == "cut off" and list(steps.values()).count("ok") == 1


def test_tests_that_failed_are_named():
    output = "tests/ops/test_a.py::test_b PASSED [ 5%]\n[gw0] [ 9%] FAILED tests/ops/test_a.py::test_c\n"
    step = gpu_check.Step("tests", [sys.executable, "-m", "pytest"], 1)
    assert gpu_check._summary(step, 1, output) == "1 passed, 1 failed; failed: tests/ops/test_a.py::test_c"


def test_without_a_gpu_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path)])
    assert gpu_check.main() == 2 and "no GPU" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_floors_come_from_the_measured_ceilings():
    ceilings = {"copy": 2e12, "bfloat16": 5e14}
    memory = Case("forward", "", (), "bfloat16", ((4_000_000_000, 10**11),), dict)
    assert memory.floor_ms(ceilings) == (2.0, "memory")
    both = Case("forward+backward", "", (), "bfloat16", ((4_000_000_000, 10**11), (2_000_000_000, 10**12)), dict)
    assert both.floor_ms(ceilings) == (4.0, "memory")  # the second pass is bound by its operations
    assert Case("forward", "", (), "bfloat16", ((10, 10**12),), dict).floor_ms(ceilings) == (2.0, "math")


def test_a_page_compares_ours_with_the_others():
    times = {"triton": TIMING, "eager": {**TIMING, "ms": 5.0}, "compile": None}
    row = {"section": "forward", "label": "N=1", "dtype": "bfloat16", "floor_ms": 1.0, "bound": "memory"}
    data = {"facts": {"device": "card"}, "finished": False, "steps": [], "ceilings": {"copy": 3e12}, "skipped": []}
    page = render({**data, "rows": [{**row, "times": times}]})
    assert "| N=1 | 1.00 (memory) | 2.00 (2.0) | 5.00 (5.0) |  | 40 |" in page
    assert "eager takes 2.50 times as long as triton" in page and "not complete" in page
