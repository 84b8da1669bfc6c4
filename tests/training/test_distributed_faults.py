"""Ranks that die, hang, run out of room or lose their numbers: what they say, and that nothing is lost."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import processes
import pytest
import torch
from processes import Ranks

from sfa_ext import deltas, ranks
from sfa_ext.training import checkpoint, checkpoint_folder, distributed, log, recipe, snapshot
from sfa_ext.training.faults import Diverged, Stopped, culprits
from sfa_ext.training.folder import CHECKPOINTS, TASK
from sfa_ext.training.loop import Fit

# The search lasts to the last step: up to there every rank has scores of its own.
LONG = [
    "method.settings={budget: 0.05, rounds: 3, interval: 4}",
    "optim.steps=12",
    "optim.batch=4",
    "save_every=2",
    "eval_every=5",
]


def start(job, folder, *overrides, size=2, prepare=None):
    """`sfa fit` as several ranks; what they say is in the folder's parent."""
    said = folder.with_name(f"{folder.name}-said-{time.monotonic_ns()}")
    said.mkdir()
    return Ranks(size, ["fit", job, "--quiet", "--out", folder, *LONG, *overrides], said, prepare)


def finish(job, folder, *overrides, size=2):
    group = start(job, folder, *overrides, size=size)
    assert group.wait() == [0] * size, group.texts()


def last_step(folder):
    """Number of the newest checkpoint, 0 where there is none."""
    return max((int(p.name.removeprefix("step-")) for p in checkpoint.paths(folder / CHECKPOINTS)), default=0)


def until_step(group, folder, step):
    while last_step(folder) < step and all(p.exitcode is None for p in group.processes):
        time.sleep(0.01)


def same_end(a, b):
    """The same bits in checkpoint and task file, but for what training took and how checkpoints were written."""
    first, second = (checkpoint_folder.read(checkpoint.paths(f / CHECKPOINTS)[-1]).tensors for f in (a, b))
    tasks = [deltas.read(f / TASK) for f in (a, b)]
    tasks[0].meta |= {name: tasks[1].meta[name] for name in ("seconds", "step_seconds", "peak_memory")}
    tasks[0].meta["recipe"]["save_async"] = tasks[1].meta["recipe"]["save_async"]
    alike = first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)
    return alike and deltas.to_bytes(tasks[0]) == deltas.to_bytes(tasks[1])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, scene_cache, job_text):
    """A run of two ranks that nothing disturbed, and the seconds it took."""
    folder = tmp_path_factory.mktemp("unbroken")
    (folder / "job.yaml").write_text(job_text)
    before, os.environ["SFA_CACHE"] = os.environ.get("SFA_CACHE"), str(scene_cache)
    begun = time.monotonic()
    finish(folder / "job.yaml", folder / "run")
    seconds = time.monotonic() - begun
    os.environ.pop("SFA_CACHE") if before is None else os.environ.update(SFA_CACHE=before)
    return folder / "run", seconds


@pytest.mark.timeout(7200 if os.environ.get("SFA_LONG") == "1" else 300)
def test_a_rank_killed_at_any_moment_loses_nothing(job, tmp_path, unbroken):
    whole, seconds = unbroken
    moments = 20 if os.environ.get("SFA_LONG") == "1" else 2
    draw = random.Random(4)
    runs, killed = 0, 0
    while killed < moments:
        folder = tmp_path / f"run{runs}"
        runs += 1
        while killed < moments and not (folder / TASK).is_file():
            background = draw.choice(["true", "false"])
            group = start(job, folder, f"save_async={background}")
            if killed % 2 == 0:  # half of the moments while it trains for certain
                until_step(group, folder, last_step(folder) + 2)
            time.sleep(draw.uniform(0, seconds / 3))
            victim = draw.randrange(2)
            group.kill(victim)
            statuses = group.wait()
            killed += 1
            if statuses[victim] == -signal.SIGKILL and last_step(folder) > 0 and statuses[1 - victim] > 0:
                assert f"rank {1 - victim} lost contact to another rank at step" in group.texts()[1 - victim]
        finish(job, folder)
        assert same_end(folder, whole)


def before_step(step, rank, action):
    """Makes that rank do `action` in place of its step number `step` (from 0)."""
    whole = Fit._one_step

    def one_step(self, batches):
        if self.step == step and rank_here() == rank:
            action()
        return whole(self, batches)

    Fit._one_step = one_step


def rank_here():
    return int(os.environ.get("RANK", 0))


def die_in_step_8():
    before_step(7, 0, lambda: os.kill(os.getpid(), signal.SIGKILL))


def state_of(job, folder):
    """Weights and moments that a run goes on with, and its step; not the scores, which other ranks share otherwise."""
    fit = Fit(recipe.load(job, LONG), folder, quiet=True)
    tensors = snapshot.collect(fit.model, fit.optimizer, fit.scaler).tensors
    return fit.step, {n: t.tolist() for n, t in tensors.items() if "/scores/" not in n and "head/" not in n}


def last_loss(folder):
    return [line["loss"] for line in log.read(folder) if line["kind"] == "train"][-1]


def test_two_ranks_go_on_as_one_or_as_four(job, tmp_path, unbroken):
    group = start(job, tmp_path / "2", prepare=die_in_step_8)
    assert group.wait() == [-signal.SIGKILL, 2]
    said = group.texts()[1].splitlines()
    assert said[-1].startswith("sfa: error: rank 1 lost contact to another rank at step 8 (")
    assert said[-1].endswith("; the same command goes on from the last checkpoint")
    expected, _ = processes.run(2, state_of, str(job), str(tmp_path / "2"))
    assert expected[0] == 6
    for size in (1, 4):
        folder = shutil.copytree(tmp_path / "2", tmp_path / str(size))
        for own in processes.run(size, state_of, str(job), str(folder)):
            assert own == expected
        finish(job, folder, size=size)
        assert last_loss(folder) == pytest.approx(last_loss(unbroken[0]), rel=1e-5)


def sleep_in_step_8():
    before_step(7, 1, lambda: time.sleep(600))


def sleep_in_step_8_and_notice_it_first():
    sleep_in_step_8()
    if rank_here() == 0:
        whole = distributed.watched
        distributed.watched = lambda store, timeout: whole(store, timeout + 1)


def stop_in_step_8():
    before_step(7, 1, lambda: os.kill(os.getpid(), signal.SIGSTOP))


@pytest.mark.parametrize("prepare", [sleep_in_step_8, sleep_in_step_8_and_notice_it_first, stop_in_step_8])
def test_a_rank_that_hangs_is_named_with_its_step(job, tmp_path, prepare):
    group = start(job, tmp_path / "run", "timeout=3", prepare=prepare)
    statuses = group.wait()
    first, second = group.texts()
    seconds = 4 if prepare is sleep_in_step_8_and_notice_it_first else 3
    assert first.splitlines()[-1] == (
        f"sfa: error: rank 1 hangs at step 8: it did nothing for {seconds} s (timeout), and the others wait for it; "
        "the same command goes on from the last checkpoint"
    )
    assert statuses[0] == 1
    if prepare is not stop_in_step_8:  # one that is stopped as a whole cannot say where it is
        assert statuses[1] == 1 and "in one_step" not in first and "in one_step" in second


def test_those_the_others_wait_for_are_told_by_their_beats():
    # number of the beat, step, messages, images
    assert culprits([[5, 8, 40, 0], [5, 8, 39, 0]], [[9, 8, 40, 0], [9, 8, 39, 0]]) == [1]
    assert culprits([[5, 8, 40, 0], [5, 8, 40, 0], [5, 8, 40, 0]], [[9, 8, 40, 0], [5, 8, 40, 0], [9, 8, 40, 0]]) == [1]


def terminate_both_in_step_8():
    before_step(7, rank_here(), lambda: os.kill(os.getpid(), signal.SIGTERM))


def terminate_one_in_step_8():
    before_step(7, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))


@pytest.mark.parametrize("prepare", [terminate_both_in_step_8, terminate_one_in_step_8])
def test_sigterm_saves_and_leaves_and_the_run_ends_with_the_same_bits(job, tmp_path, unbroken, prepare):
    group = start(job, tmp_path / "run", prepare=prepare)
    assert group.wait() == [143, 143]
    first, second = group.texts()
    assert first.splitlines()[-1] == "sfa: stopped by SIGTERM at step 8, saved; the same command goes on from there"
    assert "SIGTERM" not in second and last_step(tmp_path / "run") == 8
    if prepare is terminate_one_in_step_8:
        finish(job, tmp_path / "run")
        assert same_end(tmp_path / "run", unbroken[0])


def fit(job, folder, *overrides):
    return Fit(recipe.load(job, [*LONG, *overrides]), folder, quiet=True)


def terminate(*_):
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("place", ["step", "evaluation"])
def test_one_process_saves_on_sigterm_too(job, tmp_path, monkeypatch, place):
    two = "optim.batch=2"  # three samples to evaluate are two batches
    fit(job, tmp_path / "whole", two).run()
    run = fit(job, tmp_path / "run", two)
    with monkeypatch.context() as patch, pytest.raises(Stopped, match=r"stopped by SIGTERM at step 5, saved"):
        if place == "step":
            whole, step = run._one_step, lambda batches: (terminate() if run.step == 4 else None, whole(batches))[1]
            patch.setattr(run, "_one_step", step)
        else:  # the first one comes after step 5
            whole = run.model.predict
            patch.setattr(run.model, "predict", lambda images: (terminate(), whole(images))[1])
        run.run()
    assert last_step(tmp_path / "run") == 5
    fit(job, tmp_path / "run", two).run()
    assert same_end(tmp_path / "run", tmp_path / "whole")


def diverge(job, folder):
    """What two ranks say where the second one's loss is NaN from step 3 on."""
    run = fit(job, folder, "optim.stop_after=3")
    loss = run.model.task.loss

    def spoiled(maps, batch):
        value, terms = loss(maps, batch)
        return (value * float("nan") if run.step >= 2 and ranks.rank() == 1 else value), terms

    run.model.task.loss = spoiled
    before = {n: t.clone() for n, t in run.model.state().items()}
    try:
        run.run()
    except Diverged as error:
        names = next(iter(run._batches()))["name"]
        finite = all(t.isfinite().all() for t in run.model.state().values() if t.is_floating_point())
        return str(error), names, finite, run.skipped, len(before)


def test_losses_that_stay_nan_stop_the_run_and_name_the_images(job, tmp_path):
    (text, _, finite, skipped, _), (same, names, *_) = processes.run(2, diverge, str(job), str(tmp_path / "run"))
    assert text == same and finite and skipped == 3
    assert text == (
        "step 5: loss (nan) or gradient were not finite in 3 steps in a row (optim.stop_after); lower optim.lr or look "
        f"at the data, its images: {', '.join(names)}"
    )
    warned = [line for line in log.read(tmp_path / "run") if line["kind"] == "skipped"]
    assert [line["step"] for line in warned] == [3, 4] and "its images: " in warned[0]["message"]


def test_a_step_that_is_fine_starts_the_count_anew(job, tmp_path, monkeypatch):
    run = fit(job, tmp_path / "run", "optim.stop_after=2")
    loss = run.model.task.loss
    spoiled = lambda maps, batch: (loss(maps, batch)[0] * (float("nan") if run.step % 2 else 1.0), {})  # noqa: E731
    monkeypatch.setattr(run.model.task, "loss", spoiled)
    run.run()
    assert run.skipped == 6


def run_without_room(job, folder):
    """Error of a run whose disk is full from its second checkpoint on."""
    import resource

    run = fit(job, folder)
    save, saved = run.checkpoints.save, []

    def full(*arguments):
        if saved:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        saved.append(save(*arguments))

    run.checkpoints.save = full
    try:
        run.run()
    except OSError as error:
        return str(error)


def test_a_full_disk_ends_all_ranks_with_a_line_and_keeps_the_checkpoint(job, tmp_path, unbroken):
    folder = tmp_path / "run"
    for line in processes.run(2, run_without_room, str(job), str(folder)):
        assert "the checkpoint could not be written" in line and "the same command goes on" in line
    assert [p.name for p in (folder / CHECKPOINTS).iterdir()] == ["step-000000002"]
    finish(job, folder)
    assert same_end(folder, unbroken[0])


@pytest.mark.timeout(600)  # the ranks import everything anew
def test_torchrun_and_nproc_train_and_end_with_one_line_each(job, tmp_path):
    command = [sys.executable, "-m", "sfa_ext", "fit", job, "--quiet", "--out", tmp_path / "run", *LONG, "--nproc", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    bad = subprocess.run([*command, "optim.batch=3"], capture_output=True, text=True, env=environment)
    assert bad.returncode == 2
    assert "sfa: error: optim.batch: 3 images cannot be split evenly over 2 ranks" in bad.stderr
    assert bad.stderr.splitlines()[-1].startswith("sfa: rank ") and "Traceback" not in bad.stderr
    shutil.rmtree(tmp_path / "run")
    good = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert good.returncode == 0, good.stderr
    assert good.stdout.count("report: ") == 1 and (tmp_path / "run" / "report.md").is_file()


def alive(mark):
    """Processes with `mark` in their environment, once those that are leaving had ten seconds for it."""
    end = time.monotonic() + 10
    while (found := [*marked(mark)]) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def marked(mark):
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it is gone, or another user's
            if mark.encode() in (process / "environ").read_bytes():
                yield process.name


@pytest.mark.timeout(900)  # two launchers with two ranks each import everything anew
def test_a_live_launcher_saves_when_it_is_told_to_stop_and_leaves_nobody_behind(job, tmp_path):
    fit = ["-m", "sfa_ext", "fit", job, "--quiet", "--out", tmp_path / "run", *LONG, "optim.steps=2000"]
    fit += ["data.workers=1", "eval_every=0"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    reached = 0
    for launcher, number in (([*fit, "--nproc", "2"], signal.SIGINT), ([*torchrun, *fit], signal.SIGTERM)):
        mark = f"LAUNCHED_AT={time.monotonic_ns()}"
        process = subprocess.Popen(
            [sys.executable, *map(str, launcher)],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"} | dict([mark.split("=")]),
            start_new_session=True,
            # A shell starts background jobs with SIGINT ignored, and a child inherits that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        while last_step(tmp_path / "run") <= reached and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        said = process.communicate()[1]
        # torchrun gives ranks 30 seconds; its own status after a signal is 1, and it shows where it was.
        assert process.returncode == (130 if launcher[-2] == "--nproc" else 1) and "forcefully" not in said, said
        (line,) = (line for line in said.splitlines() if line.startswith("sfa: stopped by "))
        reached = last_step(tmp_path / "run")
        expected = f"sfa: stopped by {number.name} at step {reached}, saved; the same command goes on from there"
        assert line == expected and not alive(mark)
