"""What augmentation does to boxes, masks and depth, on cases small enough to be worked out by hand."""

import numpy as np
import pytest
import torch
from torchvision import tv_tensors

from sfa_ext import data
from sfa_ext.data.augment import MEAN, STD, reference_length

STILL = {"scale": (1, 1), "flip": 0, "jitter": 0}


def rectangle(height, width, x1, y1, x2, y2):
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    return mask


def sample(height=8, width=8, rectangles=(), crowd=None, inset=0.0):
    """A picture whose depth numbers its pixels from 1, with rectangles as instances; boxes may be inset a little."""
    masks = [rectangle(height, width, *r) for r in rectangles]
    boxes = torch.tensor(rectangles, dtype=torch.float32).reshape(-1, 4)
    boxes += torch.tensor([inset, inset, -inset, -inset])
    grey = (torch.arange(height * width) % 200 + 20).view(height, width).to(torch.uint8)
    return {
        "image": tv_tensors.Image(grey.expand(3, -1, -1).clone()),
        "depth": tv_tensors.Mask(torch.arange(1, height * width + 1).view(height, width).float()),
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": torch.arange(len(rectangles)) + 3,
        "masks": tv_tensors.Mask(torch.stack(masks) if masks else torch.zeros(0, height, width, dtype=torch.bool)),
        "crowd": torch.tensor(crowd or [False] * len(rectangles), dtype=torch.bool),
        "area": torch.ones(len(rectangles)),
        "name": "x",
    }


def window(out, height, width, zoom=1):
    """Where in the source the result begins, read from the depth map. (row, column)"""
    first = round(float(out["depth"][0, 0]) * zoom) - 1
    return divmod(first, width)


def test_nothing_changes_where_nothing_is_to_change():
    before = sample(8, 8, [(1, 2, 5, 7), (0, 0, 8, 8)], crowd=[True, False], inset=0.25)
    after = data.train_transform(8, **STILL)(before)
    for name in ("boxes", "masks", "labels", "crowd", "depth"):
        assert torch.equal(after[name], before[name]), name
        assert type(after[name]) is type(before[name])
    pixels = after["image"] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert torch.allclose(pixels * 255, before["image"].float(), atol=1e-3)
    assert "area" not in after and after["masks"].dtype == torch.bool


def test_a_mirror_image_mirrors_boxes_and_masks():
    before = sample(8, 8, [(1, 2, 4, 7)], inset=0.25)
    after = data.train_transform(8, **STILL | {"flip": 1})(before)
    assert after["boxes"].tolist() == [[4.25, 2.25, 6.75, 6.75]]
    assert torch.equal(after["masks"][0], rectangle(8, 8, 4, 2, 7, 7))
    assert torch.equal(after["depth"], before["depth"].flip(-1))


@pytest.mark.parametrize("seed", range(12))
def test_a_crop_of_pixels_moves_cuts_and_drops_instances(seed):
    """20 x 16 pixels, a window of 8 x 8: everything is a slice of what was there."""
    torch.manual_seed(seed)
    rectangles = [(0, 0, 3, 3), (6, 5, 11, 12), (2, 2, 16, 18), (13, 15, 16, 20), (4, 0, 9, 4)]
    before = sample(20, 16, rectangles, crowd=[False, True, False, False, True], inset=0.25)
    after = data.train_transform(8, side="none", **STILL)(before)
    top, left = window(after, 20, 16)
    assert torch.equal(after["depth"], before["depth"][top : top + 8, left : left + 8])
    expected = []
    for number, (x1, y1, x2, y2) in enumerate(rectangles):
        cut = [max(x1 - left, 0), max(y1 - top, 0), min(x2 - left, 8), min(y2 - top, 8)]
        if cut[0] >= cut[2] or cut[1] >= cut[3]:
            continue
        whole = [x1 - left, y1 - top, x2 - left, y2 - top] == cut
        inset = np.array([0.25, 0.25, -0.25, -0.25]) if whole else 0  # a cut instance has the box of its mask
        expected.append((number + 3, before["crowd"][number].item(), (np.array(cut) + inset).tolist(), cut))
    assert after["labels"].tolist() == [e[0] for e in expected]
    assert after["crowd"].tolist() == [e[1] for e in expected]
    assert after["boxes"].tolist() == [e[2] for e in expected]
    assert torch.equal(after["masks"], torch.stack([rectangle(8, 8, *e[3]) for e in expected]))


@pytest.mark.parametrize("seed", range(8))
def test_twice_as_large_is_every_pixel_twice_and_depth_halved(seed):
    torch.manual_seed(seed)
    before = sample(8, 8, [(2, 3, 6, 5), (0, 0, 8, 8)])
    after = data.train_transform(8, side="none", **STILL | {"scale": (2, 2)})(before)
    top, left = window(after, 8, 8, zoom=2)
    twice = lambda t: t[..., top : top + 4, left : left + 4].repeat_interleave(2, -1).repeat_interleave(2, -2)  # noqa: E731
    assert torch.equal(after["depth"], twice(before["depth"]) / 2)
    seen = [m for m in twice(before["masks"]) if m.any()]
    assert torch.equal(after["masks"], torch.stack(seen))
    for mask, box in zip(after["masks"], after["boxes"].tolist(), strict=True):
        rows, columns = torch.nonzero(mask, as_tuple=True)
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_half_as_large_lies_somewhere_in_a_border_of_ignored_pixels():
    before = sample(8, 8, [(2, 4, 6, 8)], inset=0.5)
    after = data.train_transform(8, side="none", **STILL | {"scale": (0.5, 0.5)})(before)
    rows, columns = torch.nonzero(after["depth"], as_tuple=True)
    top, left = int(rows.min()), int(columns.min())
    assert after["depth"].count_nonzero() == 16 and after["depth"].shape == (8, 8)
    # Box 2.5 to 5.5 and 4.5 to 7.5, halved.
    assert after["boxes"].tolist() == [[left + 1.25, top + 2.25, left + 2.75, top + 3.75]]
    assert torch.equal(after["masks"][0], rectangle(8, 8, left + 1, top + 2, left + 3, top + 4))


def test_what_becomes_smaller_than_a_pixel_is_dropped():
    before = sample(16, 16, [(0, 0, 16, 16), (4, 4, 7, 7), (8, 8, 13, 13)])
    after = data.train_transform(16, side="none", **STILL | {"scale": (0.25, 0.25)})(before)
    assert after["labels"].tolist() == [3, 5] and len(after["boxes"]) == len(after["masks"]) == 2


@pytest.mark.parametrize(("side", "inside"), [("shorter", (8, 8)), ("longer", (4, 8)), ("none", (8, 8))])
def test_zoom_one_is_what_side_says(side, inside):
    after = data.train_transform(8, side=side, **STILL)(sample(12, 24))
    rows, columns = torch.nonzero(after["depth"], as_tuple=True)
    assert (int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1) == inside
    assert reference_length((12, 24), 8, side) == {"shorter": 12, "longer": 24, "none": 8}[side]


def test_pictures_without_instances_keep_their_empty_lists():
    after = data.train_transform(8, **STILL | {"scale": (0.5, 2)})(sample(20, 16))
    assert after["boxes"].shape == (0, 4) and after["masks"].shape == (0, 8, 8) and after["labels"].shape == (0,)


def test_instances_draw_no_random_numbers():
    settings = {"scale": (0.1, 2), "side": "longer", "photometric": True}
    pair = []
    for rectangles in ([], [(2, 2, 9, 9), (5, 5, 16, 20)]):
        torch.manual_seed(5)
        pair.append(data.train_transform(12, **settings)(sample(20, 16, rectangles))["image"])
    assert torch.equal(*pair)


def test_instances_can_be_left_out():
    torch.manual_seed(5)
    before = sample(20, 16, [(2, 2, 9, 9)])
    whole = data.train_transform(12, scale=(0.5, 2))(before)
    torch.manual_seed(5)
    bare = data.train_transform(12, instances=False, scale=(0.5, 2))(before)
    assert bare.keys() == {"image", "depth", "name"}
    assert torch.equal(bare["image"], whole["image"]) and torch.equal(bare["depth"], whole["depth"])


def test_large_scale_jitter_covers_its_range_evenly_in_the_logarithm():
    sides = []
    for seed in range(200):
        torch.manual_seed(seed)
        out = data.train_transform(64, side="longer", **STILL | {"scale": (0.1, 2)})(sample(40, 40))
        rows = torch.nonzero(out["depth"].sum(1))
        sides.append(int(rows.max() - rows.min()) + 1 if len(rows) else 0)
    shares = [np.mean([low <= s < high for s in sides]) for low, high in ((0, 14), (14, 29), (29, 64), (64, 65))]
    # log(0.22), log(0.45) and log(1) cut [log 0.1, log 2] into 0.26, 0.24, 0.27 and 0.23.
    assert np.abs(np.array(shares) - 0.25).max() < 0.1


def test_photometric_changes_happen_half_of_the_time_and_stay_in_range():
    flat = sample(8, 8)
    flat["image"] = tv_tensors.Image(
        torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None].expand(3, 8, 8).clone()
    )
    changed, shifts = 0, []
    for seed in range(120):
        torch.manual_seed(seed)
        out = data.train_transform(8, **STILL | {"photometric": True})(flat)
        rgb = (out["image"] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None])[:, 0, 0]
        assert rgb.min() >= -1e-6 and rgb.max() <= 1 + 1e-6
        assert torch.equal(out["depth"], flat["depth"])
        same = torch.allclose(rgb * 255, torch.tensor([200.0, 100, 50]), atol=0.01)
        changed += not same
        shifts.append(float(rgb.mean() * 255 - 350 / 3))
    assert 100 <= changed <= 119  # 15 of 16
    assert min(shifts) < -30 and max(shifts) > 30


def test_a_grey_picture_keeps_its_hue_and_saturation():
    grey = sample(8, 8)
    for seed in range(30):
        torch.manual_seed(seed)
        out = data.train_transform(8, **STILL | {"photometric": True})(grey)
        rgb = out["image"] * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        assert (rgb - rgb[:1]).abs().max() < 1e-5


def test_an_unknown_side_is_refused():
    with pytest.raises(ValueError, match="side must be one of shorter, longer, none; got 'width'"):
        data.train_transform(8, side="width")
