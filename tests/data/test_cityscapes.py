"""The Cityscapes reader against small folders in Cityscapes' own layout."""

import numpy as np
import pytest
import torch
from PIL import Image

from sfa_ext import data
from sfa_ext.data.cityscapes import Cityscapes

# trainId of each id as printed in the documentation of cityscapesScripts, ids 0 to 33.
TRAIN_IDS = [255, 255, 255, 255, 255, 255, 255, 0, 1, 255, 255, 2, 3, 4, 255, 255, 255, 5, 255, 6, 7, 8, 9, 10, 11, 12]
TRAIN_IDS += [13, 14, 15, 255, 255, 16, 17, 18]


def write(root, split, frame, image, ids):
    city = frame.split("_")[0]
    for kind, suffix, pixels in (("leftImg8bit", "leftImg8bit", image), ("gtFine", "gtFine_labelIds", ids)):
        folder = root / kind / split / city
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{frame}_{suffix}.png")
    # What else lies there is not read.
    Image.fromarray(ids).save(root / "gtFine" / split / city / f"{frame}_gtFine_instanceIds.png")
    (root / "gtFine" / split / city / f"{frame}_gtFine_polygons.json").write_text("{}")


@pytest.fixture
def written(tmp_path):
    root, numbers, pairs = tmp_path / "cityscapes", np.random.default_rng(0), {}
    frames = [("train", "zurich_000001_000019"), ("train", "aachen_000000_000019"), ("train", "aachen_000001_000019")]
    for split, frame in [*frames, ("val", "munster_000000_000019")]:
        image = numbers.integers(0, 256, (12, 17, 3), np.uint8)
        pairs[frame] = image, np.arange(12 * 17, dtype=np.uint8).reshape(12, 17) % 34
        write(root, split, frame, *pairs[frame])
    return root, pairs


def test_what_was_written_is_read(written):
    root, pairs = written
    dataset = Cityscapes(root)
    assert [s["name"] for s in dataset] == ["aachen_000000_000019", "aachen_000001_000019", "zurich_000001_000019"]
    for sample in dataset:
        image, ids = pairs[sample["name"]]
        assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), image)
        assert sample["semantic"].dtype == torch.uint8
        assert sample["semantic"].tolist() == [[TRAIN_IDS[i] for i in row] for row in ids.tolist()]
    assert [s["name"] for s in data.build("cityscapes", root=root.parent, split="val")] == ["munster_000000_000019"]


def test_classes_are_the_nineteen_that_are_evaluated(written):
    dataset = Cityscapes(written[0])
    assert len(dataset.class_names) == 19 and dataset.class_names[::18] == ("road", "bicycle")
    assert [dataset.class_names[c] for c in dataset.object_classes][:2] == ["person", "rider"]
    assert dataset.palette.shape == (19, 3) and dataset.palette[13].tolist() == [0, 0, 142]


def test_a_missing_half_of_a_pair_is_named(written):
    root, _ = written
    (root / "leftImg8bit/train/zurich/zurich_000001_000019_leftImg8bit.png").unlink()
    (root / "leftImg8bit/train/zurich/other_leftImg8bit.png").touch()
    with pytest.raises(data.DataError, match="zurich_000001_000019_leftImg8bit.png: is missing .and 1 more."):
        data.build("cityscapes", root=root)


def test_what_is_no_cityscapes_is_named(written, tmp_path):
    root, pairs = written
    with pytest.raises(data.DataError, match="holds no leftImg8bit and gtFine; root must be the unpacked cityscapes"):
        Cityscapes(root / "gtFine")
    with pytest.raises(ValueError, match="split must be one of train, val .*got 'test'"):
        Cityscapes(root, "test")
    image, ids = pairs["aachen_000000_000019"]
    write(root, "train", "aachen_000000_000019", image, ids + 1)
    with pytest.raises(data.DataError, match="labelIds.png: holds id 34, the largest of Cityscapes is 33"):
        Cityscapes(root)[0]
    write(root, "train", "aachen_000000_000019", image[:-1], ids)
    with pytest.raises(data.DataError, match="labelIds.png: is 17 x 12 pixels but its image .* is 17 x 11"):
        Cityscapes(root)[0]
    for file in (root / "gtFine" / "val" / "munster").iterdir():
        file.unlink()
    with pytest.raises(data.DataError, match="munster: holds no _gtFine_labelIds.png files"):
        Cityscapes(root, "val")
