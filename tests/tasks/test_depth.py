"""The depth task: its head, the scale-invariant loss against NumPy, and that it learns eight rooms by heart."""

import math

import numpy as np
import pytest
import torch
from tiny_scenes import CHANNELS, TinyBackbone, random_maps

from sfa_ext import data, tasks
from sfa_ext.tasks.depth import scale_invariant_log


def task(**values):
    torch.manual_seed(0)
    return tasks.build("depth", values, CHANNELS, ())


def rooms(count, size):
    """Normalised images [count, 3, size, size] and their depth [count, size, size]."""
    scenes = data.build("scenes", count=count, size=size, cache=None)
    samples = [scenes[i] for i in range(count)]
    images = torch.stack([data.normalise(s["image"]) for s in samples])
    return images, torch.stack([s["depth"].as_subclass(torch.Tensor) for s in samples])


def test_learns_eight_rooms_by_heart():
    torch.set_num_threads(1)  # so small a model waits for its threads on a busy machine
    images, depth = rooms(8, 64)
    head, backbone, steps = task(size="small"), TinyBackbone(), 150
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-2)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / 10, (steps - step) / 100)
        loss, terms = head.loss(backbone(images), {"depth": depth})
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    assert terms["silog"] == loss and not terms["silog"].requires_grad
    metric = head.eval().metrics()
    metric.update(head.predict(backbone(images), (64, 64)), {"depth": depth})
    figures = metric.compute()
    assert figures["rmse"] < 0.15 and figures["rmse_image"] < 0.15 and figures["delta1"] > 0.99


def test_the_paper_head_is_three_deconvolutions_with_batch_norm_over_the_coarsest_map():
    head, maps = task(), random_maps()
    kinds = [type(m).__name__ for m in head.modules() if list(m.parameters(recurse=False))]
    assert kinds == ["ConvTranspose2d"] * 3 + ["BatchNorm2d"] * 3 + ["Conv2d"]
    assert head(maps).shape == (2, 1, 16, 24)  # stride 4 from stride 32
    assert torch.equal(head([m * 0 for m in maps[:3]] + maps[3:]), head(maps))


def test_the_small_head_reads_every_map_and_has_a_depth_for_every_pixel():
    head, maps = task(size="small").eval(), random_maps()
    torch.nn.init.normal_(head.output.weight)
    found = head(maps)
    assert found.shape == (2, 1, 64, 96)
    for level in range(4):
        changed = [m * 2 if i == level else m for i, m in enumerate(maps)]
        assert not torch.equal(head(changed), found)


def test_maps_of_odd_sizes_are_taken():
    maps = [torch.randn(1, c, *size) for c, size in zip(CHANNELS, [(25, 19), (13, 10), (7, 5), (4, 3)], strict=True)]
    for size in ("paper", "small"):
        assert task(size=size).eval().predict(maps, (100, 75))["depth"].shape == (1, 100, 75)


@pytest.mark.parametrize("max_depth", [10.0, 80.0])
def test_depth_never_leaves_its_bounds(max_depth):
    head, maps = task(max_depth=max_depth), random_maps()
    start = head.predict(maps, (64, 96))["depth"]
    assert (start / max_depth - 0.5).abs().max() < 0.05
    torch.nn.init.normal_(head.output.weight, std=100)
    found = head.predict(maps, (33, 57))["depth"]
    assert found.shape == (2, 33, 57) and found.dtype == torch.float32
    assert found.min() >= 0 and found.max() <= max_depth and found.max() > 0.99 * max_depth
    loss, _ = head.loss(maps, {"depth": torch.full((2, 64, 96), 3.0)})
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in head.parameters())


@pytest.mark.parametrize("variance", [0.0, 0.5, 0.85, 1.0])
def test_the_loss_equals_its_formula(variance):
    log_depth = torch.randn(3, 9, 7, dtype=torch.float64)
    truth = torch.rand(3, 9, 7, dtype=torch.float64) * 5 + 0.1
    truth[0, 2:5], truth[1, 0, 0], truth[1, 0, 1], truth[1, 1] = 0, math.nan, math.inf, -1
    expected = []
    for p, t in zip(log_depth.numpy(), truth.numpy(), strict=True):
        valid = np.isfinite(t) & (t > 0)
        d = p[valid] - np.log(t[valid])
        expected.append(np.sqrt((d**2).mean() - variance * d.mean() ** 2))
    loss = scale_invariant_log(log_depth, truth, variance).item()
    assert loss == pytest.approx(np.mean(expected), rel=1e-12)


def test_with_variance_1_a_common_factor_of_an_image_costs_nothing():
    truth = torch.rand(2, 8, 8) + 0.5
    factors = torch.tensor([0.3, 4.0])[:, None, None]
    assert scale_invariant_log((factors * truth).log(), truth, 1.0) < 1e-4
    assert scale_invariant_log((factors * truth).log(), truth, 0.5) > 0.8


def test_images_without_depth_add_nothing_and_leave_gradients_finite():
    head, maps = task(), random_maps()
    depth = torch.rand(2, 64, 96) + 0.5
    depth[1] = 0
    both, _ = head.loss(maps, {"depth": depth})
    expected = torch.nn.functional.logsigmoid(head(maps)).add(math.log(10.0))
    expected = torch.nn.functional.interpolate(expected, size=(64, 96), mode="bilinear", align_corners=False)
    assert both.item() == pytest.approx(scale_invariant_log(expected[:1, 0], depth[:1], 0.5).item(), rel=1e-3)
    none, _ = head.loss(maps, {"depth": torch.zeros(2, 64, 96)})
    none.backward()
    assert none.item() == 0 and all(p.grad.isfinite().all() for p in head.parameters())
    perfect = torch.randn(1, 4, 4, requires_grad=True)
    scale_invariant_log(perfect, perfect.detach().exp(), 0.5).backward()
    assert perfect.grad.isfinite().all()


def test_running_statistics_follow_training_and_rule_evaluation():
    head, maps = task(size="small"), random_maps()
    torch.nn.init.normal_(head.output.weight)
    untrained = head.eval().predict(maps, (64, 96))["depth"]
    head.train().loss(maps, {"depth": torch.ones(2, 64, 96)})
    assert int(head.norms[0].num_batches_tracked) == 1
    trained = head.eval().predict(maps, (64, 96))["depth"]
    assert not torch.equal(trained, untrained)
    # In evaluation an image's depth does not depend on its neighbours in the batch.
    alone = head.predict([m[:1] for m in maps], (64, 96))["depth"]
    torch.testing.assert_close(alone, trained[:1])


def test_wrong_maps_are_refused():
    with pytest.raises(ValueError, match="maps must be 4 feature maps, got 3"):
        task()(random_maps()[:3])
