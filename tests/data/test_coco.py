"""The COCO reader against small folders in COCO's own format, with pycocotools' own reading of the same JSON."""

import contextlib
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO as Official

from sfa_ext import data
from sfa_ext.data.coco import COCO


def runs(mask):
    """Uncompressed run lengths of a mask: down the columns, starting with background."""
    flat, counts, value = mask.flatten(order="F"), [], 0
    start = 0
    for place in range(1, len(flat) + 1):
        if place == len(flat) or flat[place] != flat[start]:
            if flat[start] != value:
                counts.append(0)
            counts.append(place - start)
            value, start = 1 - int(flat[start]), place
    return {"size": list(mask.shape), "counts": counts}


def letters(counts):
    """COCO's text of run lengths: differences to the count two before, in groups of 5 bits, from 48 on."""
    text = ""
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            bits = value & 31
            value >>= 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


def blob(height, width, seed):
    numbers = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    cy, cx, r = numbers.uniform(5, height - 5), numbers.uniform(5, width - 5), numbers.uniform(3, 7)
    return ((y - cy) ** 2 + (x - cx) ** 2 < r * r).astype(np.uint8)


@pytest.fixture
def written(tmp_path):
    """Three images: polygons and both kinds of run lengths, a crowd, and nothing. Ids with gaps, in no order."""
    sizes = {42: (20, 30), 7: (24, 24), 9: (16, 40)}
    numbers, pixels = np.random.default_rng(0), {}
    for split in ("train2017", "val2017"):
        (tmp_path / split).mkdir()
        for number, size in sizes.items():
            pixels[number] = numbers.integers(0, 256, (*size, 3), np.uint8)
            # The reader opens whatever the JSON names; without losses the arrays can be compared.
            Image.fromarray(pixels[number]).save(tmp_path / split / f"{number:012d}.png")
    masks = {1: blob(20, 30, 1), 2: blob(20, 30, 2), 3: blob(24, 24, 3)}
    outlines = {
        1: runs(masks[1]),
        2: {"size": [20, 30], "counts": letters(runs(masks[2])["counts"])},
        3: runs(masks[3]),
        4: [[2.0, 3.0, 11.0, 3.0, 11.0, 12.0, 2.0, 12.0], [20.0, 1.0, 25.0, 1.0, 25.0, 6.0, 20.0, 6.0]],
    }
    rows = [
        (4, 42, 90, 0, [2.0, 3.0, 23.5, 9.25]),
        (1, 42, 1, 0, [3.1, 4.7, 8.2, 6.6]),
        (2, 42, 1, 0, [1.5, 2.5, 9, 9]),
    ]
    rows += [(3, 7, 18, 1, [0.0, 0.0, 24.0, 24.0])]
    annotations = [
        {"id": i, "image_id": image, "category_id": c, "iscrowd": crowd, "bbox": box, "segmentation": outlines[i],
         "area": 100.5 + i} for i, image, c, crowd, box in rows
    ]  # fmt: skip
    images = [{"id": i, "file_name": f"{i:012d}.png", "height": s[0], "width": s[1]} for i, s in sizes.items()]
    categories = [{"id": i, "name": n} for i, n in ((90, "toothbrush"), (1, "person"), (18, "dog"))]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        (tmp_path / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(whole))
    return tmp_path, whole, pixels, masks


def official(root):
    with contextlib.redirect_stdout(io.StringIO()):
        return Official(str(root / "annotations" / "instances_val2017.json"))


def test_what_was_written_is_read(written):
    root, _, pixels, masks = written
    dataset = data.build("coco", root=root, split="val")
    assert dataset.class_names == ("person", "dog", "toothbrush") and dataset.category_ids == (1, 18, 90)
    samples = {s["image_id"]: s for s in dataset}
    assert [s["name"] for s in dataset] == ["000000000007", "000000000009", "000000000042"]
    for number, sample in samples.items():
        assert np.array_equal(sample["image"].permute(1, 2, 0).numpy(), pixels[number])
    rich = samples[42]
    assert rich["labels"].tolist() == [2, 0, 0] and rich["labels"].dtype == torch.int64
    expected = torch.tensor([[2, 3, 2 + 23.5, 3 + 9.25], [3.1, 4.7, 3.1 + 8.2, 4.7 + 6.6], [1.5, 2.5, 10.5, 11.5]])
    assert torch.equal(rich["boxes"], expected.float()) and rich["boxes"].format.name == "XYXY"
    assert rich["masks"].dtype == torch.bool and rich["masks"].shape == (3, 20, 30)
    assert np.array_equal(rich["masks"][1].numpy(), masks[1] > 0) and np.array_equal(rich["masks"][2], masks[2] > 0)
    polygons = np.zeros((20, 30), bool)
    polygons[3:12, 2:11] = polygons[1:6, 20:25] = True
    assert np.array_equal(rich["masks"][0], polygons)
    assert rich["crowd"].tolist() == [False] * 3 and rich["area"].tolist() == [104.5, 101.5, 102.5]
    assert samples[7]["crowd"].tolist() == [True] and np.array_equal(samples[7]["masks"][0], masks[3] > 0)
    empty = samples[9]
    assert empty["boxes"].shape == (0, 4) and empty["masks"].shape == (0, 16, 40) and empty["labels"].shape == (0,)
    assert empty["crowd"].dtype == torch.bool and empty["area"].dtype == torch.float32


def test_masks_are_those_of_pycocotools(written):
    root = written[0]
    api = official(root)
    for sample in COCO(root, "val"):
        wanted = [api.annToMask(a) for a in api.imgToAnns[sample["image_id"]]]
        assert [m.tolist() for m in sample["masks"].to(torch.uint8)] == [w.tolist() for w in wanted]


def test_images_that_teach_nothing_can_be_left_out(written):
    assert len(COCO(written[0])) == 3
    assert [s["image_id"] for s in COCO(written[0], skip_empty=True)] == [42]  # a crowd is nothing to train on


def test_samples_pass_through_a_training_batch(written):
    loader = data.loader(
        COCO(written[0]),
        data.train_transform(16, side="longer", scale=(0.1, 2)),
        batch_size=3,
        order_seed=0,
        augment_seed=0,
    )
    batch = next(iter(loader))
    assert batch["image"].shape == (3, 3, 16, 16) and sorted(batch["image_id"]) == [7, 9, 42]
    for boxes, masks, labels, crowd in zip(*(batch[k] for k in ("boxes", "masks", "labels", "crowd")), strict=True):
        assert len(boxes) == len(masks) == len(labels) == len(crowd) and masks.shape[1:] == (16, 16)


def test_a_missing_image_and_one_of_another_size_are_named(written):
    root, whole, _, _ = written
    Image.new("RGB", (30, 21)).save(root / "val2017" / f"{42:012d}.png")
    with pytest.raises(
        data.DataError, match="000000000042.png: is 30 x 21 pixels but instances_val2017.json says 30 x 20"
    ):
        COCO(root, "val")[2]
    (root / "train2017" / f"{9:012d}.png").unlink()
    with pytest.raises(data.DataError, match="train2017/000000000009.png: is missing; unpack"):
        data.build("coco", root=root)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "is no file of COCO instances, it must hold images, annotations and categories"),
        ('{"images": [', "cannot be read, it is truncated or no JSON"),
        ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "is no file of COCO instances .KeyError"),
        ('{"images": [], "annotations": [], "categories": []}', "holds no images"),
    ],
)
def test_a_file_that_is_no_instances_file_is_named(written, text, message):
    (written[0] / "annotations" / "instances_val2017.json").write_text(text)
    with pytest.raises(data.DataError, match=f"instances_val2017.json: {message}"):
        COCO(written[0], "val")


@pytest.mark.parametrize(
    "outline", [{"size": [9, 9], "counts": [81]}, {"size": [20, 30], "counts": 5}, [[1.0]], "x", {"counts": []}]
)
def test_an_outline_that_cannot_be_drawn_names_its_image(written, outline):
    root, whole, _, _ = written
    whole["annotations"][0]["segmentation"] = outline
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(whole))
    with pytest.raises(data.DataError, match="instances_val2017.json: cannot read the instances of 000000000042.png"):
        COCO(root, "val")[2]


def test_a_missing_json_is_named(tmp_path):
    (tmp_path / "annotations").mkdir()
    with pytest.raises(data.DataError, match="annotations/instances_train2017.json: no such file"):
        COCO(tmp_path)
