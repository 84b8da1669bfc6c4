"""Depth metrics against a few lines of NumPy, and the crops that the benchmarks count."""

import numpy as np
import pytest
import torch

from sfa_ext.tasks.depth_metrics import DepthMetric, cropped


def expected_figures(predictions, truths, low, high):
    """Float64 arrays of images -> the figures, as written in the benchmarks' papers."""
    rows, squares = [], []
    for p, t in zip(predictions, truths, strict=True):
        valid = (t > low) & (t < high)
        if not valid.any():
            continue
        p, t = np.clip(p[valid], low, high), t[valid]
        ratio = np.maximum(p / t, t / p)
        squares.append((p - t) ** 2)
        rows.append(
            {
                "rmse_image": np.sqrt(np.mean((p - t) ** 2)),
                "abs_rel": np.mean(np.abs(p - t) / t),
                "sq_rel": np.mean((p - t) ** 2 / t),
                "rmse_log": np.sqrt(np.mean((np.log(p) - np.log(t)) ** 2)),
                "log10": np.mean(np.abs(np.log10(p) - np.log10(t))),
                "delta1": np.mean(ratio < 1.25),
                "delta2": np.mean(ratio < 1.25**2),
                "delta3": np.mean(ratio < 1.25**3),
            }
        )
    figures = {name: np.mean([row[name] for row in rows]) for name in rows[0]}
    return {"rmse": np.sqrt(np.concatenate(squares).mean()), **figures}


@pytest.mark.parametrize("high", [10.0, 80.0])
def test_figures_equal_numpy(high):
    draw = np.random.default_rng(0)
    truths = draw.uniform(0, 1.3 * high, (6, 20, 30)).astype(np.float32)
    truths[0, :5], truths[1, 0, 0], truths[1, 0, 1] = 0, np.nan, np.inf
    truths[4] = 0  # an image without a true depth
    truths[5, 1:] = 0  # few pixels: the pooled and the per-image RMSE must part
    predictions = (truths * draw.uniform(0.5, 1.6, truths.shape)).astype(np.float32)
    predictions = np.nan_to_num(predictions, nan=1.0, posinf=1.0)
    predictions[2, 0, :10] = -3
    metric = DepthMetric(1e-3, high)
    for part in (slice(0, 2), slice(2, 3), slice(3, 6)):
        metric.update({"depth": torch.tensor(predictions[part])}, {"depth": torch.tensor(truths[part])})
    expected = expected_figures(predictions.astype(np.float64), truths.astype(np.float64), 1e-3, high)
    assert metric.compute() == pytest.approx(expected, rel=1e-9)
    assert abs(expected["rmse"] - expected["rmse_image"]) > 1e-3


@pytest.mark.parametrize(
    ("crop", "size", "rows", "columns"),
    [
        ("none", (480, 640), (0, 480), (0, 640)),
        ("nyu", (480, 640), (45, 471), (41, 601)),
        ("eigen", (375, 1242), (124, 342), (44, 1197)),
        ("garg", (375, 1242), (153, 371), (44, 1197)),
        ("garg", (352, 1216), (143, 349), (43, 1172)),
    ],
)
def test_crops_are_the_benchmarks_pixels(crop, size, rows, columns):
    numbers = torch.arange(size[0] * size[1]).view(size)
    assert torch.equal(cropped(numbers, crop), numbers[rows[0] : rows[1], columns[0] : columns[1]])
    truth = torch.zeros(1, *size)
    truth[0, rows[0] : rows[1], columns[0] : columns[1]] = 2.0
    inside = DepthMetric(1e-3, 10, crop)
    wrong_outside = torch.where(truth > 0, 3.0, 9.0)
    inside.update({"depth": wrong_outside}, {"depth": torch.where(truth > 0, truth, 1.0)})
    assert inside.compute()["rmse"] == pytest.approx(1.0)


def test_depths_at_the_bounds_do_not_count():
    metric = DepthMetric(0.125, 10)
    truth = torch.tensor([[[0.125, 10.0, 2.0]]])
    metric.update({"depth": torch.tensor([[[5.0, 5.0, 2.5]]])}, {"depth": truth})
    assert metric.compute()["rmse"] == pytest.approx(0.5)


def test_nothing_to_count_and_wrong_sizes_are_errors():
    metric = DepthMetric(1e-3, 10)
    metric.update({"depth": torch.ones(1, 4, 4)}, {"depth": torch.zeros(1, 4, 4)})
    with pytest.raises(ValueError, match="no pixel has a true depth between 0.001 and 10 m"):
        metric.compute()
    with pytest.raises(ValueError, match=r"\(1, 4, 5\) and prediction\['depth'\] \(1, 4, 4\) differ in size"):
        metric.update({"depth": torch.ones(1, 4, 4)}, {"depth": torch.ones(1, 4, 5)})
