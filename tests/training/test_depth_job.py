"""The depth recipe end to end: fit, report, evaluate, predict, and the running statistics that a task file carries."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image

from sfa_ext import cli, deltas
from sfa_ext.report import comparison
from sfa_ext.training.loop import Fit
from sfa_ext.training.recipe import load
from sfa_ext.training.run import open_run

SMALL = [
    "data.settings.size=64", "data.crop=64", "data.train.count=6", "data.val.count=3", "data.test=null",
    "optim.steps=6", "optim.batch=2", "optim.warmup=1", "method.settings.interval=1", "eval_every=3", "save_every=3",
    "threads=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("depth")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SFA_CACHE", str(folder / "cache"))
        fit = Fit(load("scenes-depth", SMALL), folder / "run", quiet=True)
        fit.run()
        image, size = torch.randn(1, 3, 64, 64), (64, 64)
        fit.model.train(False)
        with torch.no_grad():
            expected = fit.model.task.predict(fit.model.backbone(image), size)["depth"]
        yield folder / "run", image, expected


def test_a_task_file_carries_the_running_statistics(run):
    folder, image, expected = run
    buffers = deltas.read(folder / "task.safetensors").part("buffers")
    assert {"norms.0.running_mean", "norms.2.running_var"} <= buffers.keys()
    assert int(buffers["norms.0.num_batches_tracked"]) == 6
    _, model, _ = open_run(folder, "cpu")
    with torch.no_grad():
        found = model.task.predict(model.backbone(image), (64, 64))["depth"]
        assert torch.equal(found, expected)
        model.task.norms[1].reset_running_stats()
        assert not torch.equal(model.task.predict(model.backbone(image), (64, 64))["depth"], expected)


def test_reports_are_of_the_tasks_own_headline(run, tmp_path):
    folder, *_ = run
    assert cli.main(["fit", str(folder / "config.yaml"), "--quiet", "--out", str(folder)]) == 0  # writes the report
    text = (folder / "report.md").read_text()
    assert "| rmse |" in text and "| delta1 |" in text and "![loss and RMSE](curves.png)" in text
    compared = comparison.of_runs({"sfa-s": folder}, "sfa-s")
    assert "| RMSE, m | AbsRel, % | delta < 1.25, % |" in comparison.table(compared)[0]
    assert comparison.write(tmp_path / "depth.md", "depth", [], compared).is_file()


def test_eval_and_predict(run, tmp_path, capsys):
    folder, *_ = run
    assert cli.main(["eval", str(folder), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    recorded = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()][-1]
    assert figures["rmse"] == pytest.approx(recorded["rmse"]) and figures["rmse"] > 0
    assert cli.main(["eval", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "rmse_image" in out and "class" not in out
    assert (folder / "eval-val.txt").read_text() == f"val, single scale\n\n{out}"
    assert cli.main(["eval", str(folder), "--tta", "--json"]) == 0  # the zooms usual for depth: mirror images alone
    mirrored = json.loads(capsys.readouterr().out)
    assert mirrored["rmse"] != figures["rmse"] and "single scale, with mirror" in (folder / "eval-val.txt").read_text()
    assert cli.main(["eval", str(folder), "--window", "--tta", "1", "2", "--json"]) == 0
    assert "scales 1, 2, with mirror images, windows of 64" in (folder / "eval-val.txt").read_text()
    assert cli.main(["eval", str(folder), "--window", "8"]) == 2
    assert "window must be at least 32 pixels, got 8" in capsys.readouterr().err
    photo = tmp_path / "photo.png"
    Image.new("RGB", (90, 70), (90, 120, 60)).save(photo)
    assert cli.main(["predict", str(folder), str(photo), "--out", str(tmp_path / "out")]) == 0
    assert Image.open(tmp_path / "out" / "photo.png").size[0] > 768
