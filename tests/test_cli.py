"""The `sfa` command as a person meets it: what it prints, and one clear line for every kind of bad input."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfa_ext import cli

JOB = (Path(__file__).parent / "training" / "conftest.py").read_text().split('"""')[3]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return tmp_path_factory.mktemp("scenes")


@pytest.fixture
def job(tmp_path, scenes, monkeypatch):
    monkeypatch.setenv("SFA_CACHE", str(scenes))
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(JOB)
    return "job.yaml"


@pytest.fixture(scope="module")
def finished(tmp_path_factory, scenes):
    """A finished run of the tiny job."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "job.yaml").write_text(JOB)
    before = os.environ.get("SFA_CACHE")
    os.environ["SFA_CACHE"] = str(scenes)
    try:
        assert cli.main(["fit", str(folder / "job.yaml"), "--quiet", "--out", str(folder / "run")]) == 0
    finally:
        os.environ.pop("SFA_CACHE") if before is None else os.environ.update(SFA_CACHE=before)
    return folder / "run"


def fails(capsys, *arguments):
    """Runs a command that must fail with status 2, and returns its one line of error."""
    assert cli.main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("sfa: error: ")]
    assert len(errors) == 1 and lines[-1] == errors[0], lines
    return errors[0]


def photograph(path, size=(70, 50)):
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)).save(path)
    return path


def test_fit_writes_a_run_that_a_person_can_read(finished):
    assert {p.name for p in finished.iterdir()} >= {
        "config.yaml", "metrics.jsonl", "checkpoint", "task.safetensors", "report.md", "curves.png", "selection.png",
    }  # fmt: skip
    text = (finished / "report.md").read_text()
    assert "| miou |" in text and "![share of selected weights by layer](selection.png)" in text
    for picture in re.findall(r"\]\((.+?)\)", text):
        assert Image.open(finished / picture).size[0] > 300


def test_eval_prints_overall_and_per_class_figures(finished, scenes, capsys, monkeypatch):
    monkeypatch.setenv("SFA_CACHE", str(scenes))
    assert cli.main(["eval", str(finished)]) == 0
    assert "floor" in capsys.readouterr().out
    assert cli.main(["eval", str(finished), "--json"]) == 0
    recorded = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()][-1]
    assert json.loads(capsys.readouterr().out)["miou"] == pytest.approx(recorded["miou"])


def test_predict_draws_any_image_file(finished, tmp_path, capsys):
    wide, tall = photograph(tmp_path / "wide.png"), photograph(tmp_path / "tall.jpg", (33, 121))
    assert cli.main(["predict", str(finished), str(wide), str(tall), "--out", str(tmp_path / "out")]) == 0
    assert "wide.png -> " in capsys.readouterr().out
    for name in ("wide.png", "tall.png"):
        picture = np.asarray(Image.open(tmp_path / "out" / name))
        assert picture.shape[1] > 600 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_predictions_of_equal_names_do_not_overwrite_each_other(finished, tmp_path):
    (tmp_path / "other").mkdir()
    paths = [photograph(tmp_path / "a.png"), photograph(tmp_path / "other" / "a.png")]
    assert cli.main(["predict", str(finished), *map(str, paths), "--out", str(tmp_path / "out")]) == 0
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a-1.png", "a.png"]


def test_params_prints_the_papers_shares(capsys):
    assert cli.main(["params", "ade20k-swinv2-base-sfa-s", "ade20k-swinv2-large-sfa-b", "--json"]) == 0
    shares = [round(100 * row["share"], 1) for row in json.loads(capsys.readouterr().out)]
    assert shares == [4.8, 19.0]


def test_env_prints_text_and_json(capsys):
    assert cli.main(["env"]) == 0
    assert "fused_adapter" in capsys.readouterr().out
    assert cli.main(["env", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["versions"]["sfa_ext"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "nope"], "recipe 'nope': no such file, and no recipe of the package"),
        (["fit", "job.yaml", "optim.lrr=1"], "unknown key: optim.lrr=1"),
        (["fit", "job.yaml", "method.name=magic"], "method: unknown 'magic', known: frozen"),
        (["fit", "job.yaml", "method.settings.budge=1"], "unknown setting 'budge', known: budget"),
        (["fit", "job.yaml", "method.settings.budget=0.0001"], "the smallest budget is"),
        (["fit", "job.yaml", "task.name=magic"], "unknown task 'magic'; known"),
        (["fit", "job.yaml", "data.name=magic"], "unknown data set 'magic'"),
        (["fit", "job.yaml", "data.settings.domain=magic"], "domain must be one of"),
        (["fit", "job.yaml", "data.augment.jiter=1"], "unknown augmentation setting 'jiter'"),
        (
            ["fit", "job.yaml", "backbone.name=resnet50"],
            "'resnet50' is no SwinV2 and no plain ViT that timm knows",
        ),
        (["fit", "job.yaml", "backbone.checkpoint=none.pth"], "checkpoint none.pth: no such file"),
        (["fit", "job.yaml", "device=cuda:7"], "device: 'cuda:7' is not available here"),
        (["fit", "job.yaml", "optim.schedule=magic"], "optim.schedule"),
        (["pretrain", "job.yaml"], "pretraining needs method.name=full, got 'sfa'"),
        (["predict", "nowhere", "a.png"], "run nowhere: no config.yaml there"),
        (["eval", "nowhere"], "run nowhere: no config.yaml there"),
        (["params", "optim.lr=1"], "params: 'optim.lr=1' needs a recipe"),
    ],
    ids=lambda value: " ".join(value[-1:]) if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_that_names_the_thing(job, capsys, arguments, message):
    assert message in fails(capsys, *arguments)


def test_bad_images_are_named_before_anything_is_written(finished, tmp_path, capsys):
    good = photograph(tmp_path / "good.png")
    cut = tmp_path / "cut.png"
    cut.write_bytes(good.read_bytes()[:900])
    (tmp_path / "text.png").write_text("no image")
    for bad, message in (("cut.png", "cannot be read"), ("text.png", "cannot be read"), ("none.png", "no such file")):
        line = fails(capsys, "predict", finished, good, tmp_path / bad, "--out", tmp_path / "out")
        assert bad in line and message in line
    assert not (tmp_path / "out").exists()


def test_a_truncated_task_file_is_refused(finished, tmp_path, capsys):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "config.yaml").write_bytes((finished / "config.yaml").read_bytes())
    (copy / "task.safetensors").write_bytes((finished / "task.safetensors").read_bytes()[:-100])
    assert "task.safetensors: cannot be read, it is truncated" in fails(capsys, "eval", copy)


def test_an_unfinished_run_says_how_to_finish_it(finished, tmp_path, capsys):
    (tmp_path / "config.yaml").write_bytes((finished / "config.yaml").read_bytes())
    assert "the run is not finished, resume it with `sfa fit`" in fails(capsys, "eval", tmp_path)


def test_ctrl_c_ends_with_130_and_the_run_goes_on_later(job, tmp_path):
    command = [sys.executable, "-m", "sfa_ext.cli", "fit", job, "optim.steps=400", "--quiet", "--out", "run"]
    # A shell starts background jobs with SIGINT ignored, and a child inherits that.
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])},  # this tree, not one that is installed
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while process.poll() is None and not [*Path("run/checkpoint").glob("step-*")]:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    error = process.communicate()[1]
    assert process.returncode == 130
    last = error.strip().splitlines()[-1]
    assert last.startswith("sfa: stopped by SIGINT at step ") and "saved; " in last and "Traceback" not in error
    assert [*Path("run/checkpoint").glob("step-*")]


def test_a_full_disk_is_one_line_and_keeps_the_last_checkpoint(job, tmp_path, capsys, monkeypatch):
    from sfa_ext import files
    from sfa_ext.training.checkpoint_folder import read

    written = []

    def no_space(path, data, real=files.write_bytes):
        if path.name == "rank-0.json" and written:
            raise OSError(28, "No space left on device", str(path))
        written.append(path.name) if path.name == "rank-0.json" else None
        real(path, data)

    monkeypatch.setattr(files, "write_bytes", no_space)
    line = fails(capsys, "fit", job, "--quiet", "--out", "run")
    assert "No space left on device" in line and "step-000000006: the checkpoint" in line

    assert read(Path("run/checkpoint/step-000000003")).facts["step"] == 3
