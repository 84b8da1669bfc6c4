"""Inference on images of any size: windows and views against loops written out."""

import pytest
import torch
import torch.nn.functional as F
from tiny_scenes import CHANNELS, CLASSES, TinyBackbone

from sfa_ext import tasks
from sfa_ext.tasks.inference import Views, predict, windows


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TinyBackbone().eval(), tasks.build("fpn", {"width": 16}, CHANNELS, CLASSES).eval()


def look(model, image):
    """Scores of an image [1, 3, h, w] whose sides are padded to multiples of 32."""
    backbone, task = model
    height, width = image.shape[-2:]
    big = torch.zeros(1, 3, -(-height // 32) * 32, -(-width // 32) * 32)
    big[..., :height, :width] = image
    with torch.no_grad():
        return task.predict(backbone(big), big.shape[-2:])["semantic"][..., :height, :width]


def found_by(model, images, **how):
    with torch.no_grad():
        crop = how.pop("crop", None)
        return predict(*model, images, crop, views=Views(**how))["semantic"]


@pytest.mark.parametrize(
    ("size", "window", "overlap"), [((70, 150), 64, 0.5), ((64, 65), 32, 0.0), ((40, 90), 64, 1 / 3)]
)
def test_windows_are_averaged_where_they_overlap(model, size, window, overlap):
    image = torch.randn(1, 3, *size)
    step = int(window * (1 - overlap))
    total, count = torch.zeros(1, 4, *size), torch.zeros(size)

    def starts(length):
        places = [0]
        while places[-1] + window < length:
            places.append(min(places[-1] + step, length - window))
        return places

    for y in starts(size[0]):
        for x in starts(size[1]):
            part = image[..., y : y + window, x : x + window]
            total[..., y : y + window, x : x + window] += look(model, part)
            count[y : y + window, x : x + window] += 1
    assert count.min() >= 1
    torch.testing.assert_close(found_by(model, image, window=window, overlap=overlap), total / count)


def test_a_window_as_large_as_the_image_changes_nothing(model):
    image = torch.randn(2, 3, 64, 96)
    torch.testing.assert_close(found_by(model, image, window=96), found_by(model, image))


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65, 200])
def test_windows_cover_every_row_and_end_at_the_border(length):
    seen = torch.zeros(length, dtype=torch.int64)
    for rows, columns in windows((length, 20), 32, 0.4):
        assert rows.stop - rows.start == min(32, length) and (columns.start, columns.stop) == (0, 20)
        seen[rows] += 1
    assert seen.min() >= 1


def test_views_are_the_mean_over_zooms_and_mirror_images(model):
    image = torch.randn(1, 3, 60, 100)
    total = 0
    for zoom in (0.5, 1.0, 1.5):
        for mirror in (False, True):
            # The shorter side of 60 is seen at 48 pixels.
            size = [round(side * 48 / 60 * zoom) for side in (60, 100)]
            seen = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)
            scores = look(model, seen.flip(3) if mirror else seen)
            scores = F.interpolate(scores, (60, 100), mode="bilinear", align_corners=False)
            total = total + (scores.flip(3) if mirror else scores)
    found = found_by(model, image, crop=48, scales=(0.5, 1.0, 1.5), mirror=True)
    torch.testing.assert_close(found, total / 6)
    assert not torch.allclose(found, found_by(model, image, crop=48), atol=1e-3)


class Ruler(torch.nn.Module):
    """A task that reads off distance as a camera would: what is twice as large seems half as far."""

    def predict(self, maps, size):
        return {"depth": maps[:, 0, : size[0], : size[1]], "label": torch.ones(1, 2)}


def test_depth_of_a_zoomed_view_is_put_right():
    far = torch.full((1, 3, 64, 64), 6.0)

    def backbone(image):  # a wall seen at 64 pixels is 6 m away, at 128 pixels 3 m
        return image * 64 / max(image.shape[-2:])

    found = predict(backbone, Ruler(), far, 64, views=Views(scales=(0.5, 1.0, 2.0), mirror=True))
    torch.testing.assert_close(found["depth"], torch.full((1, 64, 64), 6.0))
    torch.testing.assert_close(found["label"], torch.ones(1, 2))


class Finder(torch.nn.Module):
    def predict(self, maps, size):
        return {"boxes": [torch.zeros(0, 4)], "labels": [], "scores": [], "shapes": []}


@pytest.mark.parametrize("how", [{"mirror": True}, {"scales": (1.0, 2.0)}, {"window": 32}])
def test_instances_are_looked_for_once(how):
    with pytest.raises(ValueError, match="a task that finds instances looks at an image once"):
        predict(torch.nn.Identity(), Finder(), torch.zeros(1, 3, 64, 64), views=Views(**how))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"scales": ()}, "scales must be zooms above 0"),
        ({"scales": (1.0, 0.0)}, "scales .* got"),
        ({"window": 16}, "window must be at least 32 pixels, got 16"),
        ({"overlap": 1.0}, "overlap .* got 1.0"),
    ],
)
def test_views_out_of_range_are_named(how, message):
    with pytest.raises(ValueError, match=message):
        Views(**how)
