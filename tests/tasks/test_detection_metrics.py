"""AP of boxes and masks against pycocotools run on files in COCO's own format."""

import contextlib
import io
import json
import os

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import distributed, multiprocessing

from sfa_ext.tasks.detection_metrics import DetectionMetric

NAMES = ("wall", "cat", "dog", "owl", "newt")
OBJECTS = (1, 2, 3, 4)


def world(seed, images=6):
    """Predictions and batches of one image each: jittered and invented finds, crowds, images without one or the other.
    No instance is a newt."""
    draw = np.random.default_rng(seed)
    cases = []
    for number in range(images):
        height, width = draw.integers(60, 200, 2)
        count = 0 if number == 1 else int(draw.integers(2, 8))
        corner = draw.uniform(0, 0.6, (count, 2)) * [width, height]
        boxes = np.concatenate([corner, corner + draw.uniform(5, 60, (count, 2))], 1).clip(0, [width, height] * 2)
        crowd = draw.random(count) < 0.25
        truth = {"boxes": boxes, "labels": draw.integers(1, 4, count), "crowd": crowd}
        seen = np.repeat(boxes, 2, 0) + draw.normal(0, 2.5, (2 * count, 4))
        made = draw.uniform(0, 50, (3, 4)) + [0, 0, 40, 40]
        found = np.concatenate([seen, made]).clip(0, [width, height] * 2)
        keep = (found[:, 2:] - found[:, :2] > 2).all(1) & (number != 2)
        labels = np.concatenate([np.repeat(truth["labels"], 2), draw.integers(1, 5, 3)])
        prediction = {"boxes": found[keep], "labels": labels[keep], "scores": draw.random(len(found)).round(2)[keep]}
        cases.append((ready(prediction, height, width), ready(truth, height, width)))
    return cases


def ready(instances, height, width):
    instances = {n: torch.as_tensor(v) for n, v in instances.items()}
    instances["boxes"] = instances["boxes"].float().view(-1, 4)
    masks = torch.zeros(len(instances["boxes"]), height, width, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, instances["boxes"].int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
        mask[y1 : (y1 + y2) // 2, x1 : (x1 + x2) // 2] = False
    instances["masks"] = masks
    if "crowd" in instances:  # an annotation may give its own area
        instances["area"] = masks.flatten(1).sum(1).float() * 1.6
    return {n: [v] for n, v in instances.items()}


def official(cases, folder, kind):
    """COCOeval's numbers from JSON files, written entry by entry."""
    images, annotations, results = [], [], []
    for number, (prediction, truth) in enumerate(cases, 100):
        height, width = truth["masks"][0].shape[1:]
        images.append({"id": number, "height": height, "width": width, "file_name": f"{number}.jpg"})
        for i, (x1, y1, x2, y2) in enumerate(truth["boxes"][0].tolist()):
            code = rle.encode(np.asfortranarray(truth["masks"][0][i].numpy().astype(np.uint8)))
            annotations.append({
                "id": len(annotations) + 1, "image_id": number, "category_id": int(truth["labels"][0][i]),
                "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": int(truth["crowd"][0][i]),
                "area": float(truth["area"][0][i]), "segmentation": {**code, "counts": code["counts"].decode()},
            })  # fmt: skip
        for i, (x1, y1, x2, y2) in enumerate(prediction["boxes"][0].tolist()):
            code = rle.encode(np.asfortranarray(prediction["masks"][0][i].numpy().astype(np.uint8)))
            shape = {"bbox": [x1, y1, x2 - x1, y2 - y1]} if kind == "bbox" else {}
            shape = shape or {"segmentation": {**code, "counts": code["counts"].decode()}}
            label, score = int(prediction["labels"][0][i]), float(prediction["scores"][0][i])
            results.append({"image_id": number, "category_id": label, "score": score, **shape})
    categories = [{"id": c, "name": NAMES[c]} for c in OBJECTS]
    whole = {"images": images, "annotations": annotations, "categories": categories, "info": {}}
    (folder / "truth.json").write_text(json.dumps(whole))
    (folder / "found.json").write_text(json.dumps(results))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / "truth.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(folder / "found.json")), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def measured(cases):
    metric = DetectionMetric(NAMES, OBJECTS)
    for prediction, truth in cases:
        metric.update(prediction, truth)
    return metric.compute()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_figures_equal_pycocotools_on_files(seed, tmp_path):
    cases = world(seed)
    figures = measured(cases)
    keys = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large",
            "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large")  # fmt: skip
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        evaluation = official(cases, tmp_path, kind)
        for key, value in zip(keys, evaluation.stats, strict=True):
            assert figures.get(f"{name}_{key}", -1) == pytest.approx(value, abs=1e-6), key
        precision = evaluation.eval["precision"][..., 0, 2]
        for k, c in enumerate(OBJECTS[:3]):
            assert figures[f"{name}_ap/{NAMES[c]}"] == pytest.approx(precision[:, :, k].mean(), abs=1e-6)
        assert f"{name}_ap/newt" not in figures
    assert 0.05 < figures["box_ap"] < 0.95 and figures["mask_ap"] != figures["box_ap"]


def test_a_perfect_prediction_scores_one_and_finding_nothing_zero():
    cases = [(t | {"scores": [torch.ones(len(t["labels"][0]))]}, t) for _, t in world(3)]
    for _, truth in cases:
        truth["crowd"][0][:] = False
    figures = measured(cases)
    assert figures["box_ap"] == pytest.approx(1) and figures["mask_ap"] == pytest.approx(1)
    nothing = [({n: [v[0][:0]] for n, v in p.items()}, t) for p, t in cases]
    assert measured(nothing)["box_ap"] == measured(nothing)["mask_ap"] == 0


def test_an_area_is_the_masks_where_the_data_set_gives_none():
    cases = world(4)
    without = [(p, {n: v for n, v in t.items() if n != "area"}) for p, t in cases]
    given = [(p, t | {"area": [t["masks"][0].flatten(1).sum(1).float()]}) for p, t in cases]
    assert measured(without) == measured(given) != measured(cases)


def test_nothing_to_count_and_other_sizes_are_errors():
    (prediction, truth), *_ = world(5)
    metric = DetectionMetric(NAMES, OBJECTS)
    with pytest.raises(ValueError, match="no instance was counted"):
        metric.compute()
    with pytest.raises(ValueError, match="ask for a prediction at the image's own size"):
        metric.update(prediction | {"masks": [prediction["masks"][0][:, :-1]]}, truth)


def rank_figures(rank, address, queue):
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    queue.put(measured(world(6)[:4] if rank == 0 else world(6)[4:])["box_ap"])
    distributed.destroy_process_group()


@pytest.mark.skipif(os.environ.get("SFA_LONG") != "1", reason="starts processes; set SFA_LONG=1")
def test_ranks_count_together(tmp_path):
    queue = multiprocessing.get_context("spawn").SimpleQueue()
    multiprocessing.spawn(rank_figures, args=(f"file://{tmp_path}/store", queue), nprocs=2)
    expected = measured(world(6))["box_ap"]
    assert [queue.get(), queue.get()] == pytest.approx([expected] * 2, abs=1e-9)
