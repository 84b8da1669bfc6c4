"""`sfa data check`: every missing or broken file by name, and what the labels hold."""

import json

import numpy as np
import pytest
from PIL import Image
from test_cityscapes import write as write_frame
from test_depth_readers import depths, picture, png16

from sfa_ext import cli, data
from sfa_ext.data.check import check, detect


@pytest.fixture
def cityscapes(tmp_path):
    root = tmp_path / "cityscapes"
    ids = np.full((10, 10), 7, np.uint8)  # road
    ids[:2], ids[2:3] = 26, 0  # two rows of car, one of what is not evaluated
    for split, number in [("train", i) for i in range(5)] + [("val", 9)]:
        write_frame(root, split, f"aachen_{number:06d}_000019", np.zeros((10, 10, 3), np.uint8), ids)
    return root


@pytest.fixture
def coco(tmp_path):
    (tmp_path / "annotations").mkdir()
    for split in ("train2017", "val2017"):
        picture(tmp_path / split / "a.png", 0, (8, 9))
        square = [[0.0, 0.0, 4.0, 0.0, 4.0, 4.0, 0.0, 4.0]]
        rows = [(1, 0), (1, 0), (5, 0), (5, 1)]
        annotations = [
            {"id": i, "image_id": 3, "category_id": c, "iscrowd": crowd, "bbox": [0, 0, 4, 4], "area": 16,
             "segmentation": {"size": [8, 9], "counts": [72]} if crowd else square} for i, (c, crowd) in enumerate(rows)
        ]  # fmt: skip
        whole = {
            "images": [{"id": 3, "file_name": "a.png", "height": 8, "width": 9}],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "cat"}, {"id": 5, "name": "dog"}],
        }
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps(whole))
    return tmp_path


@pytest.fixture
def kitti(tmp_path):
    values = depths(1)
    picture(tmp_path / "a.png", 0)
    png16(tmp_path / "d.png", values)
    for split in ("train", "test"):
        (tmp_path / f"kitti_eigen_{split}.txt").write_text("a.png d.png 1\n")
    return tmp_path, values


def test_a_whole_data_set_is_counted(cityscapes, capsys):
    assert cli.main(["data", "check", str(cityscapes)]) == 0
    out = capsys.readouterr().out
    assert "cityscapes in" in out and "train: 5 samples, no problems" in out and "val: 1 samples, no problems" in out
    report = check(cityscapes.parent)
    train = report["splits"]["train"]
    assert report["ok"] and train["classes"]["road"] == {"pixels": 350, "images": 5}
    assert train["classes"]["car"] == {"pixels": 100, "images": 5} and train["ignored"] == 50
    assert train["classes"]["bus"] == {"pixels": 0, "images": 0}
    assert report == check(cityscapes.parent, workers=1)


def test_every_missing_and_every_broken_file_is_named(cityscapes, capsys):
    def file(kind, number):
        suffix = "leftImg8bit" if kind == "leftImg8bit" else "gtFine_labelIds"
        return cityscapes / kind / "train" / "aachen" / f"aachen_{number:06d}_000019_{suffix}.png"

    missing = [file("leftImg8bit", 0), file("gtFine", 1), file("gtFine", 4)]
    for path in missing:
        path.unlink()
    cut, wrong = file("leftImg8bit", 2), file("gtFine", 3)
    cut.write_bytes(cut.read_bytes()[:30])
    Image.fromarray(np.zeros((9, 10), np.uint8)).save(wrong)
    assert cli.main(["data", "check", str(cityscapes)]) == 2
    captured = capsys.readouterr()
    for path in missing:
        assert captured.out.count(f"{path}: is missing") == 1
    assert f"{cut}: cannot be read" in captured.out and f"{wrong}: is 10 x 9 pixels" in captured.out
    assert "train: 5 samples, 5 problems" in captured.out and "val: 1 samples, no problems" in captured.out
    assert (
        captured.err.strip().splitlines()[-1].endswith("5 missing or broken, named above; repair them before training")
    )
    assert cli.main(["data", "check", str(cityscapes), "--split", "val"]) == 0
    capsys.readouterr()
    assert cli.main(["data", "check", str(cityscapes), "--json"]) == 2
    assert len(json.loads(capsys.readouterr().out)["splits"]["train"]["problems"]) == 5


def test_boxes_are_counted_by_class_without_crowds(coco, capsys):
    train = check(coco)["splits"]["train"]
    assert train["instances"] == {"cat": 2, "dog": 1} and train["crowds"] == 1 and "classes" not in train
    (coco / "train2017" / "a.png").unlink()
    assert cli.main(["data", "check", str(coco), "--format", "coco", "skip_empty=true"]) == 2
    assert f"{coco}/train2017/a.png: is missing" in capsys.readouterr().out


def test_depth_has_its_range(kitti, capsys):
    root, values = kitti
    found = check(root)["splits"]["test"]["depth"]
    known = values[values > 0].astype(np.float64) / 256
    assert (found["least"], found["most"]) == (known.min(), known.max())
    assert found["mean"] == pytest.approx(known.mean()) and found["measured"] == known.size / values.size
    assert cli.main(["data", "check", str(root)]) == 0
    assert f"depth: 0.004 to 255.996 m, mean {known.mean():.3f} m" in capsys.readouterr().out


def test_a_split_that_is_not_there_is_a_problem(kitti):
    root, _ = kitti
    (root / "kitti_eigen_test.txt").unlink()
    report = check(root)
    assert not report["ok"] and "holds none of kitti_eigen_test.txt" in report["splits"]["test"]["problems"][0]


def test_a_folder_of_no_known_format_says_what_to_do(tmp_path, cityscapes):
    with pytest.raises(
        data.DataError, match="looks like none of the known data sets; say which with --format .ade20k, "
    ):
        detect(tmp_path / "cityscapes" / "gtFine")
    (cityscapes / "nyu_train.txt").touch()
    with pytest.raises(data.DataError, match="could be cityscapes or nyuv2-folders; say which with --format"):
        check(cityscapes)
    with pytest.raises(ValueError, match="format must be auto or one of ade20k, .*got 'voc'"):
        check(cityscapes, "voc")
    with pytest.raises(data.DataError, match="nowhere: no such folder"):
        check(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="split must be one of train, val .*got 'test'"):
        check(cityscapes, "cityscapes", ["test"])
