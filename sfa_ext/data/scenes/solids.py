"""The solids a scene is made of: where a ray enters one, its surface normal, how far it reaches in a direction.

Every solid stands around the origin of its own coordinates, its axis (if it has one) along z; a scene scales, turns and
moves it. Rays are arrays of float32: origins [3, R] or [3, 1], directions [3, R] of any length, hits in units of that
length. All sums are written out instead of using matrix products, so that the bits do not depend on a BLAS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MISS = np.float32(1e9)
_EPS = np.float32(1e-4)
RING_HOLE, RING_HEIGHT = np.float32(0.58), np.float32(0.42)
CAPSULE_RADIUS, CAPSULE_HALF = np.float32(0.42), np.float32(0.58)
CROSS_ARM = np.float32(0.34)

Vector = tuple[float, float, float]


@dataclass(frozen=True)
class Solid:
    """One shape.

    Attributes:
        hit: (origin, direction) -> [R] float32, the first entry of each ray, `MISS` where there is none.
        normal: points [3, R] on the surface -> outward normals [3, R], not normalised.
        support: direction -> the largest product of that direction with any point of the solid.
        corner: the coordinates whose scaled length bounds the solid.
        recognisable: whether the shape can be told apart when its axis and the line of sight have this cosine.
        wrapped: texture runs around the axis (curved solids) instead of lying on flat faces.
    """

    name: str
    hit: Callable[[np.ndarray, np.ndarray], np.ndarray]
    normal: Callable[[np.ndarray], np.ndarray]
    support: Callable[[Vector], float]
    corner: Vector
    recognisable: Callable[[float], bool]
    wrapped: bool


def _safe(x: np.ndarray) -> np.ndarray:
    """Directions moved off zero, so that every division is finite."""
    return np.where(np.abs(x) < 1e-9, np.float32(1e-9), x)


def _slab(o: np.ndarray, inverse: np.ndarray, half: np.float32) -> tuple[np.ndarray, np.ndarray]:
    a, b = (-half - o) * inverse, (half - o) * inverse
    return np.minimum(a, b), np.maximum(a, b)


def _roots(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both solutions of a t^2 + 2 b t + c = 0 in order, an empty interval where there are none."""
    disc = b * b - a * c
    root = np.sqrt(np.maximum(disc, 0))
    a = _safe(a)
    t1, t2 = (-b - root) / a, (-b + root) / a
    none = disc <= 0
    return np.where(none, MISS, np.minimum(t1, t2)), np.where(none, -MISS, np.maximum(t1, t2))


def _entry(t_in: np.ndarray, t_out: np.ndarray) -> np.ndarray:
    return np.where((t_in < t_out) & (t_in > _EPS), t_in, MISS)


def _ball(o: np.ndarray, d: np.ndarray, z: np.ndarray, radius: np.float32) -> tuple[np.ndarray, np.ndarray]:
    return _roots(
        d[0] * d[0] + d[1] * d[1] + d[2] * d[2],
        o[0] * d[0] + o[1] * d[1] + z * d[2],
        o[0] * o[0] + o[1] * o[1] + z * z - radius * radius,
    )


def _tube(o: np.ndarray, d: np.ndarray, radius: np.float32) -> tuple[np.ndarray, np.ndarray]:
    return _roots(d[0] * d[0] + d[1] * d[1], o[0] * d[0] + o[1] * d[1], o[0] * o[0] + o[1] * o[1] - radius * radius)


def _sphere_hit(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    return _entry(*_ball(o, d, o[2], np.float32(1)))


def _box_hit(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    sides = [_slab(o[i], 1 / _safe(d[i]), np.float32(1)) for i in range(3)]
    near = np.maximum(np.maximum(sides[0][0], sides[1][0]), sides[2][0])
    far = np.minimum(np.minimum(sides[0][1], sides[1][1]), sides[2][1])
    return _entry(near, far)


def _cross_hit(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    inverse = [1 / _safe(d[i]) for i in range(3)]
    long = [_slab(o[i], inverse[i], np.float32(1)) for i in range(3)]
    thin = [_slab(o[i], inverse[i], CROSS_ARM) for i in range(3)]
    best = None
    for axis in range(3):
        sides = [long[i] if i == axis else thin[i] for i in range(3)]
        near = np.maximum(np.maximum(sides[0][0], sides[1][0]), sides[2][0])
        far = np.minimum(np.minimum(sides[0][1], sides[1][1]), sides[2][1])
        t = _entry(near, far)
        best = t if best is None else np.minimum(best, t)
    return best


def _cylinder_hit(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    side, caps = _tube(o, d, np.float32(1)), _slab(o[2], 1 / _safe(d[2]), np.float32(1))
    return _entry(np.maximum(side[0], caps[0]), np.minimum(side[1], caps[1]))


def _ring_hit(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    side, caps = _tube(o, d, np.float32(1)), _slab(o[2], 1 / _safe(d[2]), RING_HEIGHT)
    t_in, t_out = np.maximum(side[0], caps[0]), np.minimum(side[1], caps[1])
    hole = _tube(o, d, RING_HOLE)
    start = np.maximum(t_in, _EPS)
    # A ray that arrives inside the hole meets the ring where it leaves the hole.
    return _entry(np.where((hole[0] <= start) & (start < hole[1]), hole[1], t_in), t_out)


def _cone_hit(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Apex at z = 1, radius (1 - z) / 2."""
    k, w = np.float32(0.25), 1 - o[2]
    t1, t2 = _roots(
        d[0] * d[0] + d[1] * d[1] - k * d[2] * d[2],
        o[0] * d[0] + o[1] * d[1] + k * w * d[2],
        o[0] * o[0] + o[1] * o[1] - k * w * w,
    )
    best = MISS
    for t in (t1, t2):
        # The other half of the double cone lies above the apex.
        z = o[2] + t * d[2]
        best = np.minimum(best, np.where((t > _EPS) & (z >= -1) & (z <= 1), t, MISS))
    t = (-1 - o[2]) / _safe(d[2])
    x, y = o[0] + t * d[0], o[1] + t * d[1]
    return np.minimum(best, np.where((t > _EPS) & (x * x + y * y < 1), t, MISS))


_SLOPE = np.float32(1 / math.sqrt(5))
# Apex at z = 1, base [-1, 1]^2 at z = -1: unit normals and offsets of its five planes.
_PYRAMID = (
    ((2 * _SLOPE, 0, _SLOPE), _SLOPE),
    ((-2 * _SLOPE, 0, _SLOPE), _SLOPE),
    ((0, 2 * _SLOPE, _SLOPE), _SLOPE),
    ((0, -2 * _SLOPE, _SLOPE), _SLOPE),
    ((0, 0, np.float32(-1)), np.float32(1)),
)


def _pyramid_hit(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    near, far = np.float32(-MISS), MISS
    for (a, b, c), offset in _PYRAMID:
        speed = _safe(a * d[0] + b * d[1] + c * d[2])
        t = (offset - (a * o[0] + b * o[1] + c * o[2])) / speed
        near = np.maximum(near, np.where(speed < 0, t, -MISS))
        far = np.minimum(far, np.where(speed > 0, t, MISS))
    return _entry(near, far)


def _capsule_hit(o: np.ndarray, d: np.ndarray) -> np.ndarray:
    t, _ = _tube(o, d, CAPSULE_RADIUS)
    best = np.where((t > _EPS) & (np.abs(o[2] + t * d[2]) <= CAPSULE_HALF), t, MISS)
    for end in (CAPSULE_HALF, -CAPSULE_HALF):
        t, _ = _ball(o, d, o[2] - end, CAPSULE_RADIUS)
        best = np.minimum(best, np.where(t > _EPS, t, MISS))
    return best


def _one_axis(p: np.ndarray, axis: np.ndarray) -> np.ndarray:
    out = np.zeros_like(p)
    index = np.arange(p.shape[1])
    out[axis, index] = np.sign(p[axis, index])
    return out


def _cross_normal(p: np.ndarray) -> np.ndarray:
    size = np.abs(p)
    inside = np.stack([np.maximum.reduce([size[i] / (1 if i == k else CROSS_ARM) for i in range(3)]) for k in range(3)])
    arm = np.abs(inside - 1).argmin(0)
    half = np.where(np.arange(3)[:, None] == arm, np.float32(1), CROSS_ARM)
    return _one_axis(p, (size / half).argmax(0))


def _cylinder_normal(p: np.ndarray) -> np.ndarray:
    cap = np.abs(p[2]) > 1 - 1e-3
    return np.stack([np.where(cap, 0, p[0]), np.where(cap, 0, p[1]), np.where(cap, np.sign(p[2]), 0)])


def _ring_normal(p: np.ndarray) -> np.ndarray:
    cap = np.abs(p[2]) > RING_HEIGHT - 1e-3
    outward = np.where(p[0] * p[0] + p[1] * p[1] > ((1 + RING_HOLE) / 2) ** 2, np.float32(1), np.float32(-1))
    return np.stack(
        [np.where(cap, 0, p[0] * outward), np.where(cap, 0, p[1] * outward), np.where(cap, np.sign(p[2]), 0)]
    )


def _cone_normal(p: np.ndarray) -> np.ndarray:
    base = p[2] < -1 + 1e-3
    radius = np.sqrt(p[0] * p[0] + p[1] * p[1])
    return np.stack([np.where(base, 0, p[0]), np.where(base, 0, p[1]), np.where(base, -1, radius / 2)])


def _pyramid_normal(p: np.ndarray) -> np.ndarray:
    face = np.stack([a * p[0] + b * p[1] + c * p[2] - offset for (a, b, c), offset in _PYRAMID]).argmax(0)
    return np.array([plane for plane, _ in _PYRAMID], np.float32).T[:, face]


def _capsule_normal(p: np.ndarray) -> np.ndarray:
    return np.stack([p[0], p[1], p[2] - np.clip(p[2], -CAPSULE_HALF, CAPSULE_HALF)])


def _cross_support(d: Vector) -> float:
    size = [abs(x) for x in d]
    return max(size[k] + float(CROSS_ARM) * (sum(size) - size[k]) for k in range(3))


SOLIDS: tuple[Solid, ...] = (
    Solid("sphere", _sphere_hit, lambda p: p, lambda d: math.hypot(*d), (1, 0, 0), lambda c: True, True),
    Solid("box", _box_hit, lambda p: _one_axis(p, np.abs(p).argmax(0)), lambda d: sum(map(abs, d)), (1, 1, 1),
          lambda c: True, False),
    Solid("cylinder", _cylinder_hit, _cylinder_normal, lambda d: math.hypot(d[0], d[1]) + abs(d[2]), (1, 0, 1),
          lambda c: abs(c) < 0.9, True),
    Solid("cone", _cone_hit, _cone_normal, lambda d: max(d[2], math.hypot(d[0], d[1]) - d[2]), (1, 0, 1),
          lambda c: -0.8 < c < 0.35, True),
    Solid("pyramid", _pyramid_hit, _pyramid_normal, lambda d: max(d[2], abs(d[0]) + abs(d[1]) - d[2]), (1, 1, 1),
          lambda c: -0.8 < c < 0.35, False),
    Solid("capsule", _capsule_hit, _capsule_normal,
          lambda d: float(CAPSULE_RADIUS) * math.hypot(*d) + float(CAPSULE_HALF) * abs(d[2]), (0, 0, 1),
          lambda c: abs(c) < 0.75, True),
    Solid("ring", _ring_hit, _ring_normal, lambda d: math.hypot(d[0], d[1]) + float(RING_HEIGHT) * abs(d[2]),
          (1, 0, float(RING_HEIGHT)), lambda c: abs(c) > 0.4, True),
    Solid("cross", _cross_hit, _cross_normal, _cross_support, (1, float(CROSS_ARM), float(CROSS_ARM)),
          lambda c: True, False),
)  # fmt: skip

SOLID_NAMES: tuple[str, ...] = tuple(solid.name for solid in SOLIDS)
