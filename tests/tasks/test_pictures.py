"""Pictures of predictions: what a person must be able to read off them."""

import numpy as np
import pytest
import torch

from sfa_ext.tasks.pictures import SHOWN, _ticks, depth_picture, draw, instances_picture


def test_depth_is_drawn_beside_the_image_with_a_bar_of_metres():
    image = np.full((40, 60, 3), 90, np.uint8)
    depth = np.tile(np.linspace(1, 5, 60), (40, 1)).astype(np.float32)
    picture = np.asarray(depth_picture(image, depth))
    assert picture.shape[0] == 400 and picture.shape[1] > 1200  # ten times as large, and the bar
    assert (picture[:, :600] == 90).all()
    near, far = picture[200, 605].astype(int), picture[200, 1195].astype(int)
    bar = picture[:, 1200 + 10 + 8].astype(int)  # the bar runs from near to far, in the map's own colours
    assert abs(bar[12] - near).max() < 12 and abs(bar[-13] - far).max() < 12
    assert (picture[:, 1240:] < 128).any()  # its numbers


@pytest.mark.parametrize(("near", "far"), [(0.9, 8.8), (0.0, 80.0), (2.0, 2.05), (3.0, 3.0), (0.001, 10.0)])
def test_ticks_are_few_round_and_inside(near, far):
    ticks = _ticks(near, far)
    assert len(ticks) <= 10 and all(near - 1e-6 <= t <= far + 1e-6 for t in ticks)
    assert far - near < 0.01 or len(ticks) >= 3
    assert all(len(f"{t:g}") <= 5 for t in ticks)


def test_a_task_with_classes_and_depth_shows_its_classes():
    image = np.zeros((400, 400, 3), np.uint8)
    scores = torch.zeros(1, 2, 400, 400)
    scores[:, 1, :200] = 1
    found = {"semantic": scores, "depth": torch.ones(1, 400, 400)}
    picture = np.asarray(draw(image, found, ("a", "b"), [[255, 0, 0], [0, 0, 255]]))
    assert picture[100, 600, 2] > 120 > picture[100, 600, 0] and picture[300, 600, 0] > 120 > picture[300, 600, 2]


def test_objects_are_drawn_with_box_mask_and_name_the_best_on_top():
    image = np.full((400, 400, 3), 100, np.uint8)
    masks = np.zeros((3, 400, 400), bool)
    masks[0, 100:200, 100:200] = masks[1, 150:300, 150:300] = masks[2, 350:390, 10:50] = True
    found = {
        "boxes": np.array([[100, 100, 200, 200], [150, 150, 300, 300], [10, 350, 50, 390]], np.float32),
        "labels": np.array([0, 1, 1]),
        "scores": np.array([0.9, 0.6, SHOWN - 0.01]),
        "masks": masks,
    }
    picture = np.asarray(instances_picture(image, found, ("red", "blue"), [[255, 0, 0], [0, 0, 255]])).astype(int)
    right = picture[:400, 400:]
    assert picture.shape[:2] > (400, 800 - 1) and (picture[:400, :400] == 100).all()
    assert right[170, 170, 0] > 150 > right[170, 170, 2]  # where both are, the better one
    assert right[280, 280, 2] > 150 > right[280, 280, 0]
    assert (right[370, 30] == 100).all() and (right[50, 350] == 100).all()  # too unsure, and nothing there
    assert (right[299, 220] == [0, 0, 255]).all()  # the box's edge
    nothing = {name: values[:0] for name, values in found.items()}
    empty = np.asarray(instances_picture(image, nothing, (), []))
    assert (empty[:400] == 100).all() and (empty[400:] < 128).any()  # says so in words
