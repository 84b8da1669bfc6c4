"""What stands in a scene: a room, solids, a camera and a lamp, drawn at random for one of the two domains."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import numpy as np

from sfa_ext.data.scenes.solids import SOLIDS, Solid
from sfa_ext.data.scenes.textures import N_PHOTOGRAPHS, PATTERNS, Material

Point = tuple[float, float, float]


@dataclass(frozen=True)
class Placed:
    """A solid in the room: world = matrix @ local + centre; `scale` and `radius` in metres."""

    number: int
    matrix: np.ndarray
    inverse: np.ndarray
    centre: np.ndarray
    scale: Point
    radius: float
    material: Material

    @property
    def solid(self) -> Solid:
        return SOLIDS[self.number]


@dataclass(frozen=True)
class Decal:
    """A rug or a picture: a rectangle of another material on the floor (axis 2) or on a wall (axis 0 or 1).

    It lies at `plane` on that axis and covers `low` to `high` on the two others, in their order.
    """

    axis: int
    plane: float
    low: tuple[float, float]
    high: tuple[float, float]
    material: Material


@dataclass(frozen=True)
class Camera:
    """Pinhole camera; `spread` is the tangent of half the field of view; axes are the world's, unit length."""

    eye: np.ndarray
    right: np.ndarray
    up: np.ndarray
    forward: np.ndarray
    spread: float


@dataclass(frozen=True)
class Scene:
    """A box-shaped room (|x| <= half[0], |y| <= half[1], 0 <= z <= height) and everything in it."""

    half: tuple[float, float]
    height: float
    surfaces: tuple[Material, Material, Material]
    decals: tuple[Decal, ...]
    solids: tuple[Placed, ...]
    camera: Camera
    lamp: Point
    ambient: float
    fill: float
    shadow: float
    cast: Point
    noise: float


@dataclass(frozen=True)
class Look:
    """How the scenes of a domain are drawn.

    Attributes:
        count: fewest and most solids.
        coverage: share of the image that the solids' bounding discs are meant to cover together.
        whole: solids lie inside the picture; else its border may cut them.
        poses: probabilities of standing, lying and leaning.
        kinds: probabilities of a plain, a patterned and a photographed material.
        contrast: how much of a photograph's contrast is left.
        lamp: height of the lamp as a part of the room's.
        ambient, fill: light from everywhere and from the camera.
        shadow: light left where the lamp is hidden (1: no shadows).
        decals: most rugs and pictures.
        cast: how far the colour of the light strays from white.
        noise: standard deviation of the sensor's noise, of 1.
    """

    count: tuple[int, int]
    coverage: tuple[float, float]
    whole: bool
    poses: tuple[float, float, float]
    kinds: tuple[float, float, float]
    contrast: tuple[float, float]
    lamp: tuple[float, float]
    ambient: tuple[float, float]
    fill: float
    shadow: tuple[float, float]
    decals: int
    cast: float
    noise: float


LOOKS = {
    "source": Look(
        count=(1, 3), coverage=(0.3, 0.55), whole=True, poses=(0.7, 0.3, 0), kinds=(0.7, 0.3, 0), contrast=(1, 1),
        lamp=(0.8, 0.95), ambient=(0.42, 0.52), fill=0.2, shadow=(0.65, 0.8), decals=0, cast=0.03, noise=0.006,
    ),
    "target": Look(
        count=(3, 10), coverage=(0.5, 0.75), whole=False, poses=(0.5, 0.35, 0.15), kinds=(0.25, 0.2, 0.55),
        contrast=(0.2, 0.6), lamp=(0.1, 0.35), ambient=(0.34, 0.46), fill=0.22, shadow=(0.35, 0.6), decals=2, cast=0.3,
        noise=0.012,
    ),
}  # fmt: skip
SINGLE_SHARE = 0.5


def compose(rng: np.random.Generator, domain: str) -> Scene:
    """A scene of `domain` ("source" or "target"), determined by the state of `rng`."""
    look = LOOKS[domain]
    half = (rng.uniform(2.6, 4.0), rng.uniform(2.6, 4.0))
    height = rng.uniform(2.0, 2.7)
    if domain == "source" and rng.random() < SINGLE_SHARE:
        camera, solids = _portrait(rng, look)
    else:
        solids = ()
        while len(solids) < look.count[0]:
            # The rare view of too little floor is drawn anew.
            camera = _camera(rng, half)
            solids = _furnish(rng, look, half, camera)
    surfaces = tuple(_material(rng, look, background=True, solids=solids) for _ in range(3))
    toward = _lamp_side(rng, camera)
    lamp = (
        float(np.clip(toward[0], -half[0] * 0.9, half[0] * 0.9)),
        float(np.clip(toward[1], -half[1] * 0.9, half[1] * 0.9)),
        height * rng.uniform(*look.lamp),
    )
    return Scene(
        half, height, surfaces, _decals(rng, look, half, height), solids, camera, lamp,
        ambient=rng.uniform(*look.ambient), fill=look.fill, shadow=rng.uniform(*look.shadow),
        cast=tuple(rng.uniform(1 - look.cast, 1 + look.cast / 2, 3).tolist()), noise=look.noise,
    )  # fmt: skip


def _lamp_side(rng: np.random.Generator, camera: Camera) -> tuple[float, float]:
    """A place beside or behind the camera's view, never behind the solids: they would show their dark sides."""
    ahead, aside = rng.uniform(-0.5, 1.8), rng.choice([-1, 1]) * rng.uniform(0.5, 2.5)
    return tuple((camera.eye + ahead * camera.forward + aside * camera.right)[:2].tolist())


def _look_at(eye: Point, at: Point, spread: float) -> Camera:
    eye, forward = np.array(eye), np.array(at) - np.array(eye)
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, (0, 0, 1))
    right /= np.linalg.norm(right)
    return Camera(eye, right, np.cross(right, forward), forward, spread)


def _camera(rng: np.random.Generator, half: tuple[float, float]) -> Camera:
    angle, back = rng.uniform(0, 2 * math.pi), rng.uniform(0.8, 0.95)
    eye = (half[0] * back * math.cos(angle), half[1] * back * math.sin(angle), rng.uniform(0.9, 1.8))
    aim = (rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5), rng.uniform(0.2, 1.0))
    return _look_at(eye, aim, math.tan(math.radians(rng.uniform(25, 32))))


def _portrait(rng: np.random.Generator, look: Look) -> tuple[Camera, tuple[Placed, ...]]:
    """One large solid on the floor near the middle of the room, and a camera close to it."""
    number = int(rng.integers(len(SOLIDS)))
    azimuth, elevation = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(14, 40))
    sight = (-math.cos(azimuth) * math.cos(elevation), -math.sin(azimuth) * math.cos(elevation), -math.sin(elevation))
    spread = math.tan(math.radians(rng.uniform(17, 24)))
    material = _material(rng, look)
    spot = (rng.uniform(-0.4, 0.4), rng.uniform(-0.4, 0.4))
    placed = _place(rng, look, number, rng.uniform(0.4, 0.6), spot, sight, material)
    distance = placed.radius / (rng.uniform(0.6, 0.9) * spread)
    shift = placed.radius * 0.25
    at = placed.centre + rng.uniform(-shift, shift, 3)
    eye = tuple(float(at[i] - distance * sight[i]) for i in range(3))
    return _look_at(eye, tuple(at), spread), (placed,)


def _furnish(rng: np.random.Generator, look: Look, half: tuple[float, float], camera: Camera) -> tuple[Placed, ...]:
    """Solids on the floor, each placed by where and how large it is to appear in the image."""
    wanted = int(rng.integers(look.count[0], look.count[1] + 1))
    area = rng.uniform(*look.coverage) / wanted
    solids: list[Placed] = []
    seen: list[tuple[float, float, float]] = []
    axes = [a.tolist() for a in (camera.eye, camera.right, camera.up, camera.forward)]
    for attempt in range(40 * wanted):
        if len(solids) == wanted:
            break
        # The half-image is 1: a disc of this radius covers about `area` of the 2 x 2 square.
        size = math.sqrt(area * 4 / math.pi) * rng.uniform(0.8, 1.3) * (1 - 0.4 * attempt / (40 * wanted))
        border = 1 - 0.8 * size if look.whole else 0.95
        u, v = rng.uniform(-border, border), rng.uniform(-border, 0.35)
        spot, distance = _on_floor(axes, camera.spread, u, v - size * 0.6)
        radius = size * distance * camera.spread
        if not 1.3 < distance < 7 or not 0.12 < radius < 0.95:
            continue
        if abs(spot[0]) > half[0] - 0.8 * radius or abs(spot[1]) > half[1] - 0.8 * radius:
            continue
        if any(math.hypot(u - a, v - b) < 0.62 * (size + c) for a, b, c in seen):
            continue
        if any(math.dist(spot, other.centre[:2].tolist()) < 0.8 * (radius + other.radius) for other in solids):
            continue
        sight = np.array([*spot, radius * 0.7]) - camera.eye
        sight = tuple((sight / np.linalg.norm(sight)).tolist())
        number = int(rng.integers(len(SOLIDS)))
        solids.append(_place(rng, look, number, radius, spot, sight, _material(rng, look)))
        seen.append((u, v, size))
    return tuple(solids)


def _on_floor(axes: list[list[float]], spread: float, u: float, v: float) -> tuple[tuple[float, float], float]:
    """The floor's point that appears at (u, v) of the half-image, and its depth; plain floats, this runs very often."""
    eye, right, up, forward = axes
    ray = [f + spread * (u * r + v * p) for f, r, p in zip(forward, right, up, strict=True)]
    depth = eye[2] / max(-ray[2], 1e-3)
    return (eye[0] + depth * ray[0], eye[1] + depth * ray[1]), depth


def _place(
    rng: np.random.Generator, look: Look, number: int, radius: float, spot: tuple[float, float], sight: Point,
    material: Material,
) -> Placed:  # fmt: skip
    """A solid with a bounding sphere of `radius` on the floor at `spot`, turned so that it can be recognised."""
    solid = SOLIDS[number]
    scale = _proportions(rng, solid.name)
    reach = math.hypot(*(a * b for a, b in zip(scale, solid.corner, strict=True)))
    scale = tuple(a * radius / reach for a in scale)
    for _ in range(30):
        turn = _pose(rng, look, solid.name)
        if solid.recognisable(float(turn[:, 2] @ np.array(sight))):
            break
    matrix = turn * np.array(scale)
    # The lowest point touches the floor.
    centre = np.array([*spot, solid.support(tuple((-matrix[2]).tolist()))])
    inverse = (turn / np.array(scale)).T
    f32 = np.float32
    return Placed(number, matrix.astype(f32), inverse.astype(f32), centre.astype(f32), scale, radius, material)


def _proportions(rng: np.random.Generator, name: str) -> Point:
    if name in ("sphere", "capsule", "cross"):
        return (1, 1, 1)
    if name == "box":
        return tuple(rng.uniform(0.6, 1, 3).tolist())
    if name == "ring":
        return (1, 1, rng.uniform(0.7, 1.2))
    low, high = {"cylinder": (0.7, 1.7), "cone": (0.9, 1.5), "pyramid": (0.7, 1.2)}[name]
    return (1, 1, rng.uniform(low, high))


def _pose(rng: np.random.Generator, look: Look, name: str) -> np.ndarray:
    """A rotation: standing, lying on the side, or leaning at any angle; and any angle around the vertical."""
    kind = rng.choice(3, p=look.poses)
    if name == "cross" and kind == 1:
        kind = 2
    # A cone on its side points downwards by half its opening angle.
    lying = math.pi / 2 + (math.atan(0.5) if name in ("cone", "pyramid") else 0)
    tip = (0.0, lying, rng.uniform(0.2, 2.6))[kind]
    return _about_z(rng.uniform(0, 2 * math.pi)) @ _about_x(tip) @ _about_z(rng.uniform(0, 2 * math.pi))


def _about_z(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _about_x(angle: float) -> np.ndarray:
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Point:
    return colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))


def _material(
    rng: np.random.Generator, look: Look, background: bool = False, solids: tuple[Placed, ...] = ()
) -> Material:
    """Paint for a solid or, paler and larger, for the room; plain paint of the room keeps apart from the solids'."""
    kind = ("plain", "pattern", "photo")[rng.choice(3, p=look.kinds)]
    gloss = rng.uniform(0.1, 0.45) if not background and rng.random() < 0.5 else 0.0
    offset = tuple(rng.uniform(0, 4, 2).tolist())
    turned = bool(rng.random() < 0.5)
    if kind == "photo":
        tint = tuple(rng.uniform(0.6, 1.25, 3).tolist())
        tile = rng.uniform(0.9, 2.4) if background else rng.uniform(0.35, 1.1)
        photo, contrast = int(rng.integers(N_PHOTOGRAPHS)), rng.uniform(*look.contrast)
        return Material("photo", (tint, tint), photo, tile, turned, offset, gloss, contrast)
    saturation, value = ((0.05, 0.4), (0.55, 0.85)) if background else ((0.35, 0.95), (0.5, 1.0))
    first = _colour(rng, saturation, value)
    for _ in range(10):
        if all(sum(abs(a - b) for a, b in zip(first, s.material.colours[0], strict=True)) > 0.55 for s in solids):
            break
        first = _colour(rng, saturation, value)
    if kind == "plain":
        return Material("plain", (first, first), gloss=gloss)
    # The second colour is a shade of the first: a pattern, but still one thing.
    shade = rng.uniform(0.65, 0.85)
    second = tuple(c * shade for c in first)
    tile = rng.uniform(0.6, 1.2) if background else rng.uniform(0.2, 0.5)
    return Material(str(rng.choice(PATTERNS)), (first, second), 0, tile, turned, offset, gloss)


def _decals(rng: np.random.Generator, look: Look, half: tuple[float, float], height: float) -> tuple[Decal, ...]:
    decals = []
    for _ in range(int(rng.integers(look.decals + 1))):
        axis = int(rng.choice([0, 1, 2]))
        material = _material(rng, look)
        if axis == 2:
            low = (rng.uniform(-half[0], half[0] - 1), rng.uniform(-half[1], half[1] - 1))
            size, plane = rng.uniform(0.8, 2.5, 2), 0.0
        else:
            plane = half[axis] * float(rng.choice([-1, 1]))
            low = (rng.uniform(-half[1 - axis], half[1 - axis] - 0.5), rng.uniform(0.4, height - 0.9))
            size = rng.uniform(0.5, 1.4, 2)
        decals.append(Decal(axis, plane, low, (low[0] + size[0], low[1] + size[1]), material))
    return tuple(decals)
