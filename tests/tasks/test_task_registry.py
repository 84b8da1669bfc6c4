"""tasks.build and tasks.settings: names, settings and sizes."""

import dataclasses

import pytest
import torch
from tiny_scenes import CHANNELS, CLASSES

from sfa_ext import tasks


def test_unknown_names_list_the_known_ones():
    with pytest.raises(
        ValueError, match="unknown task 'segment'; known: depth, fpn, mask2former, maskrcnn, pretrain, uper"
    ):
        tasks.build("segment", None, CHANNELS, CLASSES)
    with pytest.raises(ValueError, match="unknown setting querys of task 'mask2former'; known: size, .*queries"):
        tasks.build("mask2former", {"querys": 3}, CHANNELS, CLASSES)
    with pytest.raises(ValueError, match="unknown size 'tiny' of task 'mask2former'; known: paper, small"):
        tasks.settings("mask2former", {"size": "tiny"})
    with pytest.raises(ValueError, match="unknown setting size of task 'pretrain'"):
        tasks.settings("pretrain", {"size": "small"})


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("mask2former", {"hidden": 48}, "hidden .* got 48"),
        ("mask2former", {"heads": 7}, "heads must divide hidden 256, got 7"),
        ("mask2former", {"queries": 0}, "queries .* got 0"),
        ("mask2former", {"importance": 1.5}, "importance .* got 1.5"),
        ("mask2former", {"oversample": 0.5}, "oversample .* got 0.5"),
        ("mask2former", {"mask_weight": -1.0}, "mask_weight .* got -1"),
        ("fpn", {"width": 20}, "width .* got 20"),
        ("uper", {"width": 20}, "width .* got 20"),
        ("uper", {"bins": ()}, r"bins .* got \(\)"),
        ("maskrcnn", {"neck": "pan"}, "neck must be one of fpn, bifpn, got 'pan'"),
        ("maskrcnn", {"detections": 0}, "detections .* got 0"),
        ("maskrcnn", {"nms_threshold": 1.5}, "nms_threshold .* got 1.5"),
        ("depth", {"max_depth": 0.0}, "max_depth .* got 0.001 and 0.0"),
        ("depth", {"crop": "middle"}, "crop must be one of none, nyu, eigen, garg, got 'middle'"),
        ("depth", {"variance": 1.5}, "variance .* got 1.5"),
        ("depth", {"kernel": 3}, "kernel must be 2 or 4, got 3"),
        ("depth", {"subpixel": 0}, "subpixel .* got 0"),
        ("pretrain", {"width": 20}, "width .* got 20"),
        ("pretrain", {"depth_weight": -0.5}, "depth_weight -0.5"),
        ("pretrain", {"label_smoothing": 1.0}, "label_smoothing .* got 1.0"),
    ],
)
def test_values_out_of_range_are_named(name, values, message):
    with pytest.raises(ValueError, match=message):
        tasks.settings(name, values)


def test_wrong_channels_and_classes_are_named():
    with pytest.raises(ValueError, match=r"channels .* got \(16, 32\)"):
        tasks.build("pretrain", None, (16, 32), CLASSES)
    with pytest.raises(ValueError, match="class_names .* got 0"):
        tasks.build("pretrain", None, CHANNELS, ())


def test_sizes_are_starting_points_that_values_override():
    paper = tasks.settings("mask2former")
    assert (paper.encoder_layers, paper.hidden, paper.queries, paper.decoder_layers) == (6, 256, 100, 9)
    small = tasks.settings("mask2former", {"size": "small", "queries": 7})
    assert small.hidden < paper.hidden and small.queries == 7
    assert tasks.settings("mask2former", dataclasses.asdict(small)) == small


@pytest.mark.parametrize("name", tasks.names())
def test_every_task_names_its_figures(name):
    values = {"size": "small"} if getattr(tasks.settings_class(name), "sizes", {}) else {}
    built = tasks.build(name, values, CHANNELS, CLASSES)
    headline = tasks.figures(name)[0]
    assert headline.best({"low": 1.0, "high": 2.0}) == ("high" if headline.higher else "low")
    assert built.figures == tasks.figures(name) and headline.text(0.5) in ("50.0 %", "0.500 m")


@pytest.mark.parametrize("name", tasks.names())
def test_every_setting_explains_itself(name):
    assert all(len(field.metadata["help"]) > 10 for field in dataclasses.fields(tasks.settings_class(name)))


@pytest.mark.parametrize("name", tasks.names())
def test_seeded_builds_are_equal(name):
    values = {"size": "small"} if getattr(tasks.settings_class(name), "sizes", {}) else {}
    built = []
    for _ in range(2):
        torch.manual_seed(3)
        built.append(tasks.build(name, values, CHANNELS, CLASSES).state_dict())
    assert all(torch.equal(value, built[1][key]) for key, value in built[0].items())
