"""`sfa compare` with runs that take no time: what is run, skipped, kept, refused; and once with real ones."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from sfa_ext import cli
from sfa_ext.report import comparison
from sfa_ext.studies import compare, records, running, study

# Stands for `sfa fit`: notes that it ran, and leaves facts that follow from the rate and the seed.
FAKE = """
import json, os, pathlib, sys, time
folder, arm, stage, rate, seed, steps = pathlib.Path(sys.argv[1]), *sys.argv[2:4], *map(float, sys.argv[4:])
with open(folder.parent / "ran.txt", "a") as ran:
    ran.write(folder.name + "\\n")
if (folder.parent / ("fail-" + arm)).exists():
    print("Traceback: of no interest")
    sys.exit("sfa: error: optim: nothing learned")
if (folder / "facts.json").exists():
    sys.exit("sfa: error: holds a finished run")
if (folder.parent / "slow").exists():
    (folder / "begun").touch()
    time.sleep(60)
if (folder.parent / ("kill-" + arm)).exists():
    os.kill(os.getpid(), 9)
miou = {"frozen": 0.3, "full": 0.5}[arm] + rate + seed / 1000
figures = {"val": {"miou": miou}} | ({} if stage == "trial" else {"test": {"miou": miou / 2, "miou_objects": miou / 4}})
facts = {"seed": int(seed), "steps": int(steps), "figures": figures, "trainable": 5, "share": 0.05}
facts |= {"task_bytes": 3_000_000, "head_bytes": 1_000_000, "peak_memory": 700_000_000, "step_seconds": 0.25}
(folder / "facts.json").write_text(json.dumps(facts))
"""
STUDY = {
    "title": "Frozen and full",
    "recipe": "scenes-fpn",
    "baseline": "frozen",
    "seeds": [0, 1],
    "rates": [0.001, 0.002],
    "trial_steps": 7,
    "arms": {
        "frozen": {"overrides": ["method.name=frozen"], "rate_key": "optim.head_lr"},
        "full": {"overrides": ["method.name=full"]},
    },
}


def substitute(change):
    """Puts FAKE in the place of `sfa fit`."""

    def command(chosen, run, folder):
        facts = (run.arm, run.stage, str(run.rate), str(run.seed), str(run.recipe.optim.steps))
        return (sys.executable, "-S", "-c", FAKE, str(folder / run.name), *facts)

    change(compare, "command", command)
    change(comparison, "facts", lambda folder: json.loads((folder / "facts.json").read_text()))


@pytest.fixture
def fake(monkeypatch):
    substitute(monkeypatch.setattr)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def load(tmp_path, *overrides, **changes):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
    return study.load(path, overrides)


def ran(out):
    """Names of the runs, without the digits of their recipes."""
    names = (out / "ran.txt").read_text().split() if (out / "ran.txt").exists() else []
    return [name.rpartition("-")[0] for name in names]


def test_trials_first_then_seed_by_seed_and_the_report_says_what_was_measured(fake, tmp_path, out, capsys):
    path = compare.compare(load(tmp_path, "jobs=1"), out)
    trials = [f"{arm}-lr{rate}-seed1000" for rate in (0.001, 0.002) for arm in ("frozen", "full")]
    assert ran(out) == trials + [f"{arm}-lr0.002-seed{seed}" for seed in (0, 1) for arm in ("frozen", "full")]
    lines = path.read_text().splitlines()
    full = next(line for line in lines if line.startswith("| full |"))
    # (0.502 + seed / 1000) / 2 over seeds 0 and 1; 0.302 for frozen: always 10.0 more.
    assert full == "| full | 5.0 | 3.00 | 25.1 ± 0.0 | 12.6 ± 0.0 | +10.0 [+10.0, +10.0] | 2 | 700 | 0.250 |"
    assert "missing" not in path.read_text() and "chosen on the validation split" in path.read_text()
    for name in ("report.csv", "report-differences.png"):
        assert (out / name).stat().st_size > 300
    error = capsys.readouterr().err
    assert "[8/8] full, rate 0.002, seed 1: mIoU 25.1 %" in error and "left" in error


def test_what_is_recorded_is_not_run_again_even_without_its_folders(fake, tmp_path, out):
    first = compare.compare(load(tmp_path), out).read_text()
    other = tmp_path / "elsewhere"
    other.mkdir()
    (other / "records.jsonl").write_bytes((out / "records.jsonl").read_bytes())
    assert compare.compare(load(tmp_path), other).read_text() == first and not ran(other)
    compare.compare(load(tmp_path, "seeds=[0,1,2]"), other)
    assert sorted(ran(other)) == ["frozen-lr0.002-seed2", "full-lr0.002-seed2"]


def test_a_changed_recipe_is_run_again(fake, tmp_path, out):
    compare.compare(load(tmp_path), out)
    count = len(ran(out))
    arms = STUDY["arms"] | {"full": {"overrides": ["method.name=full", "optim.clip=2"]}}
    compare.compare(load(tmp_path, arms=arms), out)
    again = ran(out)[count:]
    assert len(again) == 4 and all(name.startswith("full") for name in again)


def test_a_failed_run_is_named_and_the_others_are_kept(fake, tmp_path, out):
    out.mkdir()
    (out / "fail-full").touch()
    with pytest.raises(
        ValueError, match=r"2 runs failed: full-lr0.001-seed1000-\w{8}: optim: nothing learned \(see .*fit.log"
    ):
        compare.compare(load(tmp_path), out)
    report = (out / "report.md").read_text()
    assert "**Not finished: 4 of 8 runs are missing.**" in report and "| frozen | 5.0 |" in report
    assert sum(name.startswith("frozen") for name in ran(out)) == 4
    (out / "fail-full").unlink()
    compare.compare(load(tmp_path), out)
    assert sum(name.startswith("frozen") for name in ran(out)) == 4
    assert "missing" not in (out / "report.md").read_text()


def test_a_killed_run_is_named_with_its_signal(fake, tmp_path, out):
    out.mkdir()
    (out / "kill-frozen").touch()
    with pytest.raises(ValueError, match=r"frozen-lr0.002-seed1000-\w{8}: killed by signal 9"):
        compare.compare(load(tmp_path), out)


def test_nothing_is_started_after_the_time_limit(fake, tmp_path, out):
    path = compare.compare(load(tmp_path), out, time_limit=0)
    assert not ran(out) and "**Not finished: 8 of 8 runs are missing.**" in path.read_text()


def test_report_only_runs_nothing(fake, tmp_path, out, capsys):
    load(tmp_path)
    command = ["compare", str(tmp_path / "study.yaml"), "--out", str(out)]
    assert cli.main([*command, "seeds=[0]", "--quiet"]) == 0
    count = len(ran(out))
    table = tmp_path / "results" / "table.md"
    assert cli.main([*command, "--report-only", "--report", str(table)]) == 0
    assert len(ran(out)) == count
    assert "**Not finished: 2 of 8 runs are missing.**" in table.read_text() and table.with_suffix(".csv").is_file()
    assert table.read_text() in capsys.readouterr().out
    assert cli.main([*command, "--report", "table.csv"]) == 2
    assert "report: must be a .md file" in capsys.readouterr().err


def test_two_comparisons_in_one_folder_are_refused(fake, tmp_path, out):
    with running.lock(out), pytest.raises(ValueError, match="another comparison, or a run that it started"):
        compare.compare(load(tmp_path), out)
    compare.compare(load(tmp_path, "seeds=[0]"), out)


def test_a_run_that_outlived_its_comparison_still_holds_the_folder(out):
    with running.lock(out) as claim:
        child = running._start(running.Job("sleeper", ("sleep", "60"), out / "log"), claim)
    try:
        with pytest.raises(ValueError, match="a run that it started"), running.lock(out):
            pass
    finally:
        child.kill()
        child.wait()
    with running.lock(out):
        pass


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "kill"])
def test_an_interrupted_comparison_stops_its_runs_and_goes_on_later(fake, tmp_path, out, capsys, sent):
    out.mkdir()
    (out / "slow").touch()
    load(tmp_path)

    def interrupt():
        while len(list(out.glob("*/begun"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), sent)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell ignore it
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        assert cli.main(["compare", str(tmp_path / "study.yaml"), "--out", str(out)]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "sfa: interrupted" in capsys.readouterr().err
    with running.lock(out):  # none of its runs is alive
        assert not records.read(out / "records.jsonl")
    (out / "slow").unlink()
    compare.compare(load(tmp_path), out)
    assert len(records.read(out / "records.jsonl")) == 8


def test_real_runs_end_to_end(tmp_path, monkeypatch, capsys):
    """Two methods, one seed, a few steps."""
    monkeypatch.setenv("SFA_CACHE", str(tmp_path / "scenes"))
    monkeypatch.chdir(tmp_path)
    tiny = ["data.settings.size=64", "data.crop=64", "optim.steps=6", "optim.batch=2", "optim.warmup=1"]
    tiny += [f"data.{split}.count=6" for split in ("train", "val", "test")]
    sfa = ["method.name=sfa-s", "method.settings.rounds=2", "method.settings.interval=2"]
    arms = {"frozen": {"overrides": ["method.name=frozen"], "rate_key": "optim.head_lr"}, "sfa": {"overrides": sfa}}
    Path("study.yaml").write_text(
        yaml.safe_dump(STUDY | {"overrides": tiny, "seeds": [0], "rates": [0.001], "arms": arms})
    )
    assert cli.main(["compare", "study.yaml", "--out", "out"]) == 0
    text = capsys.readouterr().out
    assert "| sfa | 4.7 |" in text and "none was tuned" in text
    found = {record.arm: record for record in records.read(Path("out/records.jsonl")).values()}
    assert found["frozen"].share == 0 and found["sfa"].trainable > 90_000
    for record in found.values():
        assert 0 < record.figures["test"]["miou"] < 1 and record.figures["val"] != record.figures["test"]
        assert 1e8 < record.peak_memory < 1e10 and 0 < record.step_seconds < record.wall
        assert record.task_bytes == next(Path("out").glob(f"{record.arm}-*/task.safetensors")).stat().st_size
        assert 0 < record.head_bytes < record.task_bytes
