"""The fit loop: it learns, is paired by its seeds, and survives being killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from sfa_ext import deltas
from sfa_ext.training import log, recipe
from sfa_ext.training.checkpoint import paths
from sfa_ext.training.checkpoint_folder import read
from sfa_ext.training.loop import CHECKPOINTS, TASK, Fit
from sfa_ext.training.run import open_run


def fit(job, folder, *overrides):
    return Fit(recipe.load(job, overrides), folder, quiet=True)


def same_tensors(a, b):
    first, second = read(a).tensors, read(b).tensors
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def same_tasks(a, b):
    """The same bytes but for the time and the memory that the training took."""
    first, second = deltas.read(a), deltas.read(b)
    first.meta |= {name: second.meta[name] for name in ("seconds", "step_seconds", "peak_memory")}
    return deltas.to_bytes(first) == deltas.to_bytes(second)


def newest(folder):
    """Path of the last checkpoint, None where there is none yet."""
    return (paths(folder / CHECKPOINTS) or [None])[-1]


class Killed(Exception):
    pass


def stop_before(step, monkeypatch):
    whole = Fit._one_step

    def one_step(self, batches):
        if self.step == step:
            raise Killed
        return whole(self, batches)

    monkeypatch.setattr(Fit, "_one_step", one_step)


METHODS = {
    "sfa": [],
    "displacement": ["method.settings.criterion=displacement"],
    "random": ["method.settings.criterion=random"],
    "internal first": ["method.settings.order=internal_first", "method.settings.phase=0.7"],
    "full": ["method.name=full"],
    "vpt": ["method.name=vpt", "method.settings={tokens: 3}", "backbone.drop_path=0.2"],
    "mona on a vit": ["method.name=mona", "method.settings={dim: 4}", "backbone.name=vit_pico"],
    "bf16": ["optim.precision=bf16", "optim.accumulate=2"],
    "fp16": ["optim.precision=fp16"],
    "depth": ["task.name=depth", "task.settings={size: small}"],
    "cascade": ["task.name=maskrcnn", "task.settings={size: small, width: 16, box_dim: 32, cascade: true}"],
    "mask2former": ["task.name=mask2former", "task.settings={size: small}", "backbone.drop_path=0.2"],
}


@pytest.mark.parametrize("overrides", METHODS.values(), ids=list(METHODS))
def test_a_run_that_was_stopped_ends_with_the_same_bits(job, tmp_path, monkeypatch, overrides):
    whole = fit(job, tmp_path / "whole", *overrides)
    figures = whole.run()
    for stop in (5, 8):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            stop_before(stop, patch)
            fit(job, tmp_path / "parts", *overrides).run()
    resumed = fit(job, tmp_path / "parts", *overrides)
    assert resumed.step == 6
    assert repr(resumed.run()) == repr(figures)  # repr, as a figure may be NaN
    assert same_tasks(tmp_path / "whole" / TASK, tmp_path / "parts" / TASK)
    assert same_tensors(newest(tmp_path / "whole"), newest(tmp_path / "parts"))
    lines = [[r for r in log.read(tmp_path / name)] for name in ("whole", "parts")]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("place", ["_evaluate", "_task_meta", "_save"])
def test_a_run_that_is_stopped_while_it_finishes_leaves_the_same_log(job, tmp_path, monkeypatch, place):
    fit(job, tmp_path / "whole", "method.name=frozen").run()
    real = getattr(Fit, place)

    def stop_at_the_end(self, *arguments):
        result = real(self, *arguments)
        if self.step == 10 and self.results:
            raise Killed
        return result

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Fit, place, stop_at_the_end)
        fit(job, tmp_path / "parts", "method.name=frozen").run()
    fit(job, tmp_path / "parts", "method.name=frozen").run()
    assert log.read(tmp_path / "whole") == log.read(tmp_path / "parts")
    assert same_tasks(tmp_path / "whole" / TASK, tmp_path / "parts" / TASK)


def test_kill_9_while_training_loses_nothing(job, tmp_path):
    def run(folder, kill_at=None):
        command = [
            sys.executable,
            "-m",
            "sfa_ext.cli",
            "fit",
            str(job),
            "--quiet",
            "--out",
            str(folder),
            "optim.steps=40",
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        while kill_at and process.poll() is None:
            if (path := newest(folder)) and int(path.name.removeprefix("step-")) >= kill_at:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.02)
        output = process.communicate()[0]
        return process.returncode, output

    assert run(tmp_path / "whole")[0] == 0
    assert run(tmp_path / "killed", kill_at=6)[0] == -signal.SIGKILL
    status, output = run(tmp_path / "killed")
    assert status == 0, output
    assert same_tasks(tmp_path / "whole" / TASK, tmp_path / "killed" / TASK)


def test_a_finished_run_is_not_repeated(job, tmp_path, monkeypatch):
    figures = fit(job, tmp_path / "run").run()
    stop_before(-1, monkeypatch)
    again = fit(job, tmp_path / "run")
    assert again.step == 10 and again.run() == figures


def test_methods_of_one_seed_share_head_order_and_augmentation(job, tmp_path):
    first, second = (fit(job, tmp_path / m, f"method.name={m}") for m in ("frozen", "full"))
    for a, b in zip(first.model.task.state_dict().values(), second.model.task.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(first._batches(), second._batches(), strict=True):
        assert torch.equal(a["image"], b["image"]) and a["name"] == b["name"]
        break
    other = fit(job, tmp_path / "seed", "seed=1")
    assert next(other._batches())["name"] != a["name"]


def test_the_loss_falls(job, tmp_path):
    plain = "data.augment={scale: [1, 1], flip: 0, jitter: 0}"
    fit(job, tmp_path / "run", "optim.steps=60", "optim.batch=6", "method.name=full", "optim.lr=0.003", plain).run()
    losses = [line["loss"] for line in log.read(tmp_path / "run") if line["kind"] == "train"]
    assert losses[-1] < 0.8 * losses[0]


def test_exactly_the_budget_is_selected_and_written(job, tmp_path):
    run = fit(job, tmp_path / "run")
    run.run()
    _, model, meta = open_run(tmp_path / "run")
    assert model.adaptation.selection.count() == meta["parameters"]["internal"] == run.model.adaptation.total
    assert meta["results"]["val"]["at"] == 10


def test_an_opened_run_predicts_the_same_bits(job, tmp_path):
    run = fit(job, tmp_path / "run")
    run.run()
    images = torch.randn(1, 3, 64, 64)
    _, model, _ = open_run(tmp_path / "run")
    run.model.train(False)
    assert torch.equal(model.predict(images)["semantic"], run.model.predict(images)["semantic"])


@pytest.mark.parametrize("size", [(64, 64), (64, 90), (200, 130), (33, 47)])
def test_images_of_any_size_get_a_prediction_of_that_size(job, tmp_path, size):
    fit(job, tmp_path / "run", "optim.steps=1", "method.name=frozen").run()
    _, model, _ = open_run(tmp_path / "run", dynamic=True)
    assert model.predict(torch.randn(1, 3, *size))["semantic"].shape[-2:] == size


def test_a_non_finite_loss_is_skipped_and_counted(job, tmp_path, monkeypatch):
    run = fit(job, tmp_path / "run", "method.name=full", "optim.steps=3")
    loss = run.model.task.loss
    calls = []

    def spoiled(maps, batch):
        calls.append(1)
        value, terms = loss(maps, batch)
        return (value * float("nan") if len(calls) == 2 else value), terms

    monkeypatch.setattr(run.model.task, "loss", spoiled)
    run.run()
    assert run.skipped == 1
    assert all(p.isfinite().all() for p in run.model.backbone.parameters())


def test_a_folder_of_another_recipe_is_refused(job, tmp_path):
    short = ("optim.steps=2", "method.name=frozen")
    fit(job, tmp_path / "run", *short).run()
    with pytest.raises(ValueError, match=r"holds a run of another recipe \(optim.lr: 0.01 -> 0.5\)"):
        fit(job, tmp_path / "run", *short, "optim.lr=0.5")
    fit(job, tmp_path / "run", *short, "threads=2")


def test_a_recipe_that_never_began_does_not_hold_its_folder(job, tmp_path):
    with pytest.raises(ValueError, match="interval"):
        fit(job, tmp_path / "run", "method={name: sfa-s, settings: {rounds: 5, interval: 100}}")
    assert (tmp_path / "run" / "config.yaml").is_file()
    fit(job, tmp_path / "run")


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_checkpoint_is_refused_by_name(job, tmp_path, damage):
    run = fit(job, tmp_path / "run", "optim.steps=3", "method.name=frozen")
    run.run()
    (path,) = newest(tmp_path / "run").glob("*.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"\xff" * 8 + whole[8:])
    with pytest.raises(ValueError, match="step-000000003: cannot be read, it is truncated, altered"):
        fit(job, tmp_path / "run", "optim.steps=3", "method.name=frozen")


def test_a_task_file_of_another_backbone_is_refused(job, tmp_path):
    fit(job, tmp_path / "run", "optim.steps=1", "method.name=frozen").run()
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 3"))
    with pytest.raises(ValueError, match="belongs to another backbone"):
        open_run(tmp_path / "run")


def test_metrics_are_one_json_object_a_line(job, tmp_path):
    fit(job, tmp_path / "run", "eval_every=5").run()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(r["kind"], r["step"]) for r in lines] == [("val", 5), ("train", 10), ("val", 10)]
    assert lines[1]["selected"] > 0 and "loss_semantic" in lines[1]
