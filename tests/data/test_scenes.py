"""The embedded scenes: what their labels promise, what decides them, and what they refuse."""

import importlib.util
import math

import numpy as np
import pytest
import torch

from sfa_ext.data import DataError
from sfa_ext.data.scenes import Scenes
from sfa_ext.data.scenes.compose import Camera, Placed, Scene
from sfa_ext.data.scenes.render import CLASS_NAMES, render
from sfa_ext.data.scenes.solids import SOLID_NAMES
from sfa_ext.data.scenes.textures import Material

PLAIN = Material("plain", ((0.5, 0.5, 0.5),) * 2)


def same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name], name


def known_scene(radius, distance):
    """A camera 1.2 m above the floor looking along x at a wall and, `distance` ahead, a sphere on the floor."""
    eye = np.array([-2.0, 0.0, 1.2])
    centre = np.array([-2 + distance, 0.3, radius], np.float32)
    matrix = np.diag([radius] * 3).astype(np.float32)
    sphere = Placed(0, matrix, np.linalg.inv(matrix), centre, (radius,) * 3, radius, PLAIN)
    axes = [np.array(a, float) for a in ((0, -1, 0), (0, 0, 1), (1, 0, 0))]
    camera = Camera(eye, *axes, math.tan(math.radians(30)))
    scene = Scene((3.0, 2.5), 2.6, (PLAIN,) * 3, (), (sphere,), camera, (-1.5, 0.5, 2.4), 0.4, 0.2, 0.5, (1, 1, 1), 0)
    return scene, eye, centre.astype(float)


@pytest.mark.parametrize(("radius", "distance", "size"), [(0.5, 2.0, 96), (0.9, 3.0, 57)])
def test_depth_of_known_surfaces_has_its_closed_form(radius, distance, size):
    scene, eye, centre = known_scene(radius, distance)
    out = render(scene, size, np.random.default_rng(0))
    step = (np.arange(size) + 0.5) / size * 2 - 1
    u, v = np.meshgrid(step, -step)
    spread = math.tan(math.radians(30))
    ray = np.stack([np.ones_like(u), -spread * u, spread * v])
    offset = (eye - centre)[:, None, None]
    a, b, c = (ray**2).sum(0), (ray * offset).sum(0), (offset**2).sum(0) - radius**2
    inside = b * b - a * c
    sphere = np.where(inside > 0, (-b - np.sqrt(np.maximum(inside, 0))) / a, np.inf)
    floor = np.where(ray[2] < 0, -eye[2] / np.minimum(ray[2], -1e-9), np.inf)
    ceiling = np.where(ray[2] > 0, (2.6 - eye[2]) / np.maximum(ray[2], 1e-9), np.inf)
    ahead = np.full_like(floor, 3.0 - eye[0])
    beside = 2.5 / np.maximum(np.abs(ray[1]), 1e-9)
    surfaces = np.stack([floor, np.minimum(ahead, beside), ceiling, sphere])
    # Where two surfaces meet within rounding either label is right.
    clear = np.diff(np.sort(surfaces, 0)[:2], axis=0)[0] > 1e-4
    clear &= np.abs(inside) > 1e-3
    assert clear.mean() > 0.97
    assert (out.semantic == surfaces.argmin(0))[clear].all()
    assert np.abs(out.depth - surfaces.min(0))[clear].max() < 1e-4
    assert set(np.unique(out.semantic)) == {0, 1, 2, 3}
    assert ((out.instance == 1) == (out.semantic == 3)).all()


@pytest.mark.parametrize("domain", ["source", "target"])
def test_labels_of_a_sample_agree_with_each_other(domain):
    dataset = Scenes("val", domain, count=25, size=72, cache=None)
    for sample in dataset:
        semantic, masks, boxes, classes = (sample[k] for k in ("semantic", "masks", "boxes", "labels"))
        assert sample["image"].dtype == torch.uint8 and tuple(sample["image"].shape) == (3, 72, 72)
        assert masks.dtype == torch.bool and tuple(masks.shape) == (len(classes), 72, 72)
        assert torch.equal(masks.any(0), semantic >= 3)
        assert int(masks.sum(0).max()) == 1
        for mask, box, number in zip(masks, boxes, classes, strict=True):
            assert (semantic[mask] == number).all()
            rows, columns = torch.nonzero(mask, as_tuple=True)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        largest = int(masks.flatten(1).sum(1).argmax())
        assert sample["label"] == int(classes[largest]) - 3
        assert dataset.class_names[classes[largest]] == SOLID_NAMES[sample["label"]]
        assert sample["depth"].dtype == torch.float32
        assert 0.3 < float(sample["depth"].min()) and float(sample["depth"].max()) < 13


def test_the_target_domain_is_full_and_lit_and_the_source_domain_simple():
    target = list(Scenes("val", "target", count=60, size=64, cache=None))
    counts = [len(sample["labels"]) for sample in target]
    assert min(counts) >= 2 and max(counts) <= 10 and np.mean(counts) > 4
    assert 0.28 < np.mean([float((s["semantic"] >= 3).float().mean()) for s in target]) < 0.47
    shares = [float(mask.float().mean()) for s in target for mask in s["masks"]]
    assert np.median(shares) > 0.03
    assert min(float(s["image"][:, s["semantic"] >= 3].float().mean()) for s in target) > 40
    source = list(Scenes("val", "source", count=120, size=64, cache=None))
    assert max(len(s["labels"]) for s in source) <= 3
    assert {s["label"] for s in source} == set(range(8))
    assert {int(c) for s in source for c in s["semantic"].unique()} == set(range(11))
    assert 0.35 < np.mean([len(s["labels"]) == 1 for s in source]) < 0.85


@pytest.mark.parametrize("domain", ["source", "target"])
def test_a_scene_is_decided_by_its_number_alone(domain):
    first = Scenes("train", domain, count=6, size=48, cache=None)
    again = Scenes("train", domain, count=9, size=48, cache=None)
    for index in (5, 0):
        same(first[index], again[index])
    same(first[-1], first[5])
    other = Scenes("train", domain, count=6, size=48, seed=1, cache=None)
    assert not torch.equal(first[0]["depth"], other[0]["depth"])


def test_a_larger_picture_shows_the_same_scene():
    small = Scenes("test", "target", count=4, size=32, cache=None)
    large = Scenes("test", "target", count=4, size=96, cache=None)
    for a, b in zip(small, large, strict=True):
        # Every pixel centre of the small picture is one of the large picture.
        assert (a["semantic"] == b["semantic"][1::3, 1::3]).float().mean() > 0.995
        assert (a["depth"] - b["depth"][1::3, 1::3]).abs().median() < 1e-4


def test_no_scene_of_a_split_occurs_in_another_split_or_domain():
    seen = set()
    for domain in ("source", "target"):
        for split in ("train", "val", "test"):
            for sample in Scenes(split, domain, count=40, size=16, cache=None):
                seen.add(sample["depth"].numpy().tobytes())
    assert len(seen) == 240


def test_class_names_and_palette_cover_all_classes():
    dataset = Scenes(count=1, size=16, cache=None)
    assert dataset.class_names == CLASS_NAMES and dataset.object_classes == tuple(range(3, 11))
    assert dataset.palette.dtype == torch.uint8 and len({tuple(c) for c in dataset.palette.tolist()}) == 11


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": "training"}, "split must be one of train, val, test; got 'training'"),
        ({"domain": "photo"}, "domain must be one of source, target; got 'photo'"),
        ({"count": 0}, "count must be a whole number of at least 1; got 0"),
        ({"size": 96.0}, "size must be a whole number of at least 8; got 96.0"),
        ({"seed": -1}, "seed must be a whole number of at least 0; got -1"),
        ({"workers": True}, "workers must be a whole number of at least 0; got True"),
    ],
)
def test_bad_settings_are_named_with_their_value(settings, message):
    with pytest.raises(ValueError, match=message):
        Scenes(**{"cache": None, **settings})


def test_a_number_beyond_the_end_is_refused():
    dataset = Scenes(count=3, size=16, cache=None)
    for index in (3, -4):
        with pytest.raises(IndexError, match="of 3"):
            dataset[index]


def test_without_scikit_image_the_target_says_what_to_install_and_the_source_works(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "skimage" else real(name, *a))
    with pytest.raises(DataError, match="pip install scikit-image"):
        Scenes(domain="target", count=1, size=16, cache=None)
    assert len(Scenes(domain="source", count=1, size=16, cache=None)[0]["labels"]) >= 1
