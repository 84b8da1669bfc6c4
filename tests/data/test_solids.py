"""Ray hits and normals against membership of points, which is written independently of them."""

import numpy as np
import pytest

from sfa_ext.data.scenes.solids import (
    CAPSULE_HALF,
    CAPSULE_RADIUS,
    CROSS_ARM,
    MISS,
    RING_HEIGHT,
    RING_HOLE,
    SOLIDS,
)


def _radius(p):
    return np.hypot(p[0], p[1])


def _in_cross(p):
    thin = np.abs(p) <= CROSS_ARM
    return (np.abs(p).max(0) <= 1) & (thin.sum(0) >= 2)


INSIDE = {
    "sphere": lambda p: (p * p).sum(0) <= 1,
    "box": lambda p: np.abs(p).max(0) <= 1,
    "cylinder": lambda p: (_radius(p) <= 1) & (np.abs(p[2]) <= 1),
    "cone": lambda p: (_radius(p) <= (1 - p[2]) / 2) & (np.abs(p[2]) <= 1),
    "pyramid": lambda p: (np.abs(p[:2]).max(0) <= (1 - p[2]) / 2) & (np.abs(p[2]) <= 1),
    "capsule": lambda p: (
        _radius(p) ** 2 + (p[2] - np.clip(p[2], -CAPSULE_HALF, CAPSULE_HALF)) ** 2 <= CAPSULE_RADIUS**2
    ),
    "ring": lambda p: (_radius(p) <= 1) & (_radius(p) >= RING_HOLE) & (np.abs(p[2]) <= RING_HEIGHT),
    "cross": _in_cross,
}


def _rays(seed, n=1500):
    rng = np.random.default_rng(seed)
    start = rng.normal(size=(3, n))
    start *= 6 / np.linalg.norm(start, axis=0)
    toward = rng.uniform(-1.2, 1.2, (3, n)) - start
    return start.astype(np.float32), toward.astype(np.float32)


@pytest.mark.parametrize("solid", SOLIDS, ids=lambda s: s.name)
def test_a_ray_meets_the_solid_where_it_first_enters_it(solid):
    start, toward = _rays(1)
    t = solid.hit(start, toward).astype(np.float64)
    along = np.linspace(0, 2, 2001)
    points = start[:, :, None].astype(np.float64) + toward[:, :, None] * along
    inside = INSIDE[solid.name](points.reshape(3, -1)).reshape(points.shape[1:])
    first = np.where(inside.any(1), along[inside.argmax(1)], MISS)
    touched = inside.sum(1) > 2
    assert 0.1 < touched.mean() < 0.95
    assert (t < first + 1e-4)[touched].all()
    # A ray may graze a part of the solid thinner than the samples' distance, but few do.
    assert (first - t < 2e-3)[touched].mean() > 0.99
    assert (t[inside.sum(1) == 0] < MISS).mean() < 0.03


@pytest.mark.parametrize("solid", SOLIDS, ids=lambda s: s.name)
def test_normals_point_out_of_the_solid(solid):
    start, toward = _rays(2)
    t = solid.hit(start, toward)
    met = t < MISS
    point = (start + t * toward)[:, met]
    normal = solid.normal(point).astype(np.float64)
    normal /= np.linalg.norm(normal, axis=0)
    contains = INSIDE[solid.name]
    # Right on an edge two faces compete; everywhere else a step along the normal leaves and one against it enters.
    assert (~contains(point + 5e-3 * normal)).mean() > 0.995
    assert contains(point - 5e-3 * normal).mean() > 0.985
    assert ((normal * toward[:, met]).sum(0) < 1e-3).mean() > 0.995


@pytest.mark.parametrize("solid", SOLIDS, ids=lambda s: s.name)
def test_support_and_corner_bound_the_solid_tightly(solid):
    rng = np.random.default_rng(3)
    cloud = rng.uniform(-1, 1, (3, 400_000))
    cloud = cloud[:, INSIDE[solid.name](cloud)]
    assert np.linalg.norm(cloud, axis=0).max() <= np.linalg.norm(solid.corner) + 1e-6
    for direction in rng.normal(size=(20, 3)):
        direction /= np.linalg.norm(direction)
        reach = (direction @ cloud).max()
        assert reach <= solid.support(tuple(direction)) + 1e-6
        assert solid.support(tuple(direction)) - reach < 0.15
