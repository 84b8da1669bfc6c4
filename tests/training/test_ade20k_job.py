"""The ADE20K recipe end to end on a folder in ADE20K's layout: fit, evaluate, predict, with images of many sizes."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sfa_ext import cli

SMALL = [
    "backbone.name=swinv2_pico", "backbone.pretrained=false", "data.crop=64", "data.workers=0", "optim.batch=2",
    "optim.steps=4", "optim.precision=fp32", "method.settings.interval=2", "task.settings={size: small}", "threads=1",
]  # fmt: skip


@pytest.fixture
def root(tmp_path):
    root, numbers = tmp_path / "ADEChallengeData2016", np.random.default_rng(0)
    for folder, sizes in {"training": [(70, 90), (64, 50), (120, 80)], "validation": [(66, 97), (90, 60)]}.items():
        for kind in ("images", "annotations"):
            (root / kind / folder).mkdir(parents=True)
        for i, size in enumerate(sizes):
            picture = Image.fromarray(numbers.integers(0, 255, (*size, 3), np.uint8))
            picture.save(root / "images" / folder / f"ADE_{i}.jpg")
            labels = np.zeros(size, np.uint8)
            labels[5:40, 5:30] = 1 + i
            Image.fromarray(labels).save(root / "annotations" / folder / f"ADE_{i}.png")
    return root


def test_fit_eval_and_predict(root, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["ade20k-swinv2-base-sfa-s", f"data.settings.root={root}", *SMALL, "--quiet", "--out", str(run)]
    assert cli.main(["fit", *arguments]) == 0
    assert cli.main(["eval", str(run)]) == 0
    assert "miou" in capsys.readouterr().out
    image = root / "images" / "validation" / "ADE_0.jpg"
    assert cli.main(["predict", str(run), str(image)]) == 0
    assert Image.open(run / "predictions" / "ADE_0.png").size[0] > 384


def test_a_label_map_of_another_size_is_named(root, tmp_path, capsys):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(root / "annotations" / "training" / "ADE_1.png")
    arguments = ["ade20k-swinv2-base-sfa-s", f"data.settings.root={root}", *SMALL, "--quiet", "--out", str(tmp_path)]
    assert cli.main(["fit", *arguments]) == 2
    assert "ADE_1" in capsys.readouterr().err.splitlines()[-1]


def test_an_empty_or_missing_folder_is_named(tmp_path, capsys):
    for path in (tmp_path / "nothing", tmp_path):
        arguments = ["ade20k-swinv2-base-sfa-s", f"data.settings.root={path}", *SMALL]
        assert cli.main(["fit", *arguments, "--out", str(tmp_path / "run")]) == 2
        assert str(path) in capsys.readouterr().err
