"""The ADE20K reader against small folders in ADE20K's own layout."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from sfa_ext import data
from sfa_ext.data.ade20k import ADE20K


def write_pair(root, folder, name, labels, jpeg_size=None):
    height, width = labels.shape
    picture = np.random.default_rng(0).integers(0, 255, (*(jpeg_size or (height, width)), 3), np.uint8)
    for kind in ("images", "annotations"):
        (root / kind / folder).mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(root / "images" / folder / f"{name}.jpg")
    Image.fromarray(labels).save(root / "annotations" / folder / f"{name}.png")


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "ADEChallengeData2016"
    for number in (2, 1):
        labels = np.full((20 + number, 30), number, np.uint8)
        labels[0, :2] = 0, 150
        write_pair(root, "training", f"ADE_train_{number:08d}", labels)
    write_pair(root, "validation", "ADE_val_00000001", np.ones((8, 9), np.uint8))
    return root


def test_pairs_are_read_in_order_and_labels_shifted_by_one(root):
    dataset = ADE20K(root)
    assert len(dataset) == 2 and len(ADE20K(root, "val")) == 1
    sample = dataset[1]
    assert sample["name"] == "ADE_train_00000002"
    assert sample["image"].dtype == torch.uint8 and tuple(sample["image"].shape) == (3, 22, 30)
    assert sample["semantic"].dtype == torch.uint8 and tuple(sample["semantic"].shape) == (22, 30)
    assert sample["semantic"][0, :3].tolist() == [255, 149, 1]
    assert len(list(dataset)) == 2


def test_the_folder_above_is_found_too_and_greyscale_pictures_become_rgb(root):
    grey = root / "images" / "validation" / "ADE_val_00000001.jpg"
    Image.new("L", (9, 8), 77).save(grey)
    image = data.build("ade20k", root=str(root.parent), split="val")[0]["image"]
    assert tuple(image.shape) == (3, 8, 9) and (image == 77).all()


def test_classes(root):
    dataset = ADE20K(root)
    names = dataset.class_names
    assert len(names) == len(set(names)) == 150
    assert (names[0], names[12], names[149]) == ("wall", "person", "flag")
    assert len(dataset.object_classes) == 100
    assert {"bed", "person", "chair", "flag"} <= {names[c] for c in dataset.object_classes}
    assert not {"wall", "sky", "floor", "ceiling"} & {names[c] for c in dataset.object_classes}
    assert dataset.palette.shape == (150, 3) and len({tuple(c) for c in dataset.palette.tolist()}) == 150


def test_names_come_from_the_data_set_where_it_brings_them(root):
    lines = ["Idx\tRatio\tTrain\tVal\tName", *(f"{i}\t0.1\t1\t1\tthing {i}, other {i}" for i in range(1, 151))]
    (root / "objectInfo150.txt").write_text("\n".join(lines))
    assert ADE20K(root).class_names[::149] == ("thing 1", "thing 150")
    (root / "objectInfo150.txt").write_text("\n".join(lines[:-3]))
    with pytest.raises(data.DataError, match="objectInfo150.txt: must name 150 classes.*got 147"):
        ADE20K(root)


def test_a_wrong_root_is_named(root, tmp_path):
    with pytest.raises(data.DataError, match=f"{tmp_path}/nowhere: no such folder; root must be"):
        ADE20K(tmp_path / "nowhere")
    with pytest.raises(data.DataError, match=f"{root}/images: holds no images and annotations"):
        ADE20K(root / "images")


@pytest.mark.parametrize("split", ["test", "training"])
def test_an_unknown_split_is_refused(root, split):
    with pytest.raises(ValueError, match=f"split must be one of train, val .*got '{split}'"):
        ADE20K(root, split)


def test_an_empty_or_missing_folder_is_named(root):
    (root / "images" / "validation" / "ADE_val_00000001.jpg").unlink()
    with pytest.raises(data.DataError, match="images/validation: holds no .jpg files"):
        ADE20K(root, "val")
    (root / "images" / "validation").rmdir()
    with pytest.raises(data.DataError, match="images/validation: no such folder"):
        ADE20K(root, "val")


@pytest.mark.parametrize(
    "gone", ["images/training/ADE_train_00000001.jpg", "annotations/training/ADE_train_00000002.png"]
)
def test_half_a_pair_is_named(root, gone):
    (root / gone).unlink()
    with pytest.raises(data.DataError, match=f"{gone}: is missing"):
        data.build("ade20k", root=root)


@pytest.mark.parametrize(
    "kind", ["images/training/ADE_train_00000001.jpg", "annotations/training/ADE_train_00000001.png"]
)
@pytest.mark.parametrize("left", [0, 40, 0.6])
def test_a_truncated_file_is_named_in_one_line(root, kind, left):
    size = os.path.getsize(root / kind)
    os.truncate(root / kind, int(size * left) if isinstance(left, float) else left)
    with pytest.raises(data.DataError, match=f"{kind}: cannot be read, it is truncated or no image") as caught:
        ADE20K(root)[0]
    assert "\n" not in str(caught.value)


def test_labels_of_another_size_or_range_are_named(root):
    write_pair(root, "training", "ADE_train_00000001", np.ones((5, 6), np.uint8), jpeg_size=(5, 7))
    with pytest.raises(data.DataError, match=r"00000001.png: is 6 x 5 pixels but its image .*00000001.jpg is 7 x 5"):
        ADE20K(root)[0]
    write_pair(root, "training", "ADE_train_00000001", np.full((5, 6), 151, np.uint8))
    with pytest.raises(data.DataError, match="00000001.png: holds label 151"):
        ADE20K(root)[0]
    Image.new("RGB", (6, 5)).save(root / "annotations" / "training" / "ADE_train_00000001.png")
    with pytest.raises(data.DataError, match="00000001.png: must hold one byte a pixel, got mode RGB"):
        ADE20K(root)[0]
