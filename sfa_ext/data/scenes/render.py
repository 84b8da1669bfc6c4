"""Ray casting of a scene: colours with shadows, and the exact labels of every pixel's centre."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sfa_ext.data.scenes.compose import Placed, Scene, compose
from sfa_ext.data.scenes.solids import MISS, SOLID_NAMES
from sfa_ext.data.scenes.textures import Material, surface_coordinates

CLASS_NAMES: tuple[str, ...] = ("floor", "wall", "ceiling", *SOLID_NAMES)
N_BACKGROUND = 3
SPLITS = ("train", "val", "test")
DOMAINS = ("source", "target")
# Part of every cache's name: raise it whenever the same seed gives another picture.
GENERATOR_VERSION = 2

_KEY = np.float32(0.75)
_OFF_SURFACE = np.float32(4e-3)
# Further rays through a pixel on an edge, in half-pixels from its centre.
_AROUND = ((-0.7, 0.2), (0.2, 0.7), (0.6, -0.6))


@dataclass(frozen=True)
class Rendered:
    """One picture and its labels.

    Attributes:
        image: uint8 [3, S, S].
        semantic: uint8 [S, S], numbers of `CLASS_NAMES`.
        instance: uint8 [S, S], 0 for the room, then 1, 2, ... for the scene's solids.
        depth: float32 [S, S], metres along the camera's axis.
    """

    image: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray
    depth: np.ndarray


@dataclass
class _Hits:
    """What each ray meets: depth, surface (0 to 2 room, 3 + i solid i), which room plane, the point and its normal."""

    depth: np.ndarray
    surface: np.ndarray
    point: np.ndarray
    normal: np.ndarray
    plane: np.ndarray


def render_index(domain: str, split: str, seed: int, index: int, size: int) -> Rendered:
    """Picture number `index` of a split: a pure function of its arguments; the layout does not depend on `size`."""
    key = (seed, DOMAINS.index(domain), SPLITS.index(split), index)
    layout, sensor = (np.random.Generator(np.random.PCG64(s)) for s in np.random.SeedSequence(key).spawn(2))
    return render(compose(layout, domain), size, sensor)


def render(scene: Scene, size: int, sensor: np.random.Generator) -> Rendered:
    """Picture of `scene` at `size` x `size` pixels; `sensor` draws the camera's noise."""
    step = (np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1
    u, v = np.tile(step, size), np.repeat(-step, size)
    hits, colour = _cast(scene, u, v, size)
    _smooth_edges(scene, hits, colour, u, v, size)
    image = colour.reshape(3, size, size)
    image = image * np.array(scene.cast, np.float32)[:, None, None]
    image += sensor.standard_normal(image.shape, np.float32) * np.float32(scene.noise)
    surface = hits.surface.reshape(size, size)
    classes = np.array([0, 1, 2, *(N_BACKGROUND + s.number for s in scene.solids)], np.uint8)
    return Rendered(
        image=(np.clip(image, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8),
        semantic=classes[surface],
        instance=np.maximum(surface, N_BACKGROUND - 1) - np.uint8(N_BACKGROUND - 1),
        depth=hits.depth.reshape(size, size),
    )


def _smooth_edges(scene: Scene, hits: _Hits, colour: np.ndarray, u: np.ndarray, v: np.ndarray, size: int) -> None:
    """Replaces the colours of pixels on an edge, in place, by the mean of the centre's and three further rays."""
    code = (hits.surface * np.uint8(8) + hits.plane).reshape(size, size)
    edge = np.zeros((size, size), bool)
    across, down = code[:, 1:] != code[:, :-1], code[1:] != code[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    chosen = np.flatnonzero(edge)
    if not len(chosen):
        return
    us = np.concatenate([u[chosen] + np.float32(a / size) for a, _ in _AROUND])
    vs = np.concatenate([v[chosen] + np.float32(b / size) for _, b in _AROUND])
    _, fine = _cast(scene, us, vs, size)
    total = fine.reshape(3, len(_AROUND), -1).sum(1) + colour.take(chosen, 1)
    colour[:, chosen] = total / (len(_AROUND) + 1)


def _cast(scene: Scene, u: np.ndarray, v: np.ndarray, size: int) -> tuple[_Hits, np.ndarray]:
    """Follows rays through image coordinates in [-1, 1]; returns their hits and colours [3, R] before noise."""
    camera = scene.camera
    axes = [a.astype(np.float32) for a in (camera.right, camera.up, camera.forward)]
    spread = np.float32(camera.spread)
    # Not normalised: the component along the camera's axis is 1, so a hit's parameter is its depth.
    rays = axes[2][:, None] + (u * spread) * axes[0][:, None] + (v * spread) * axes[1][:, None]
    length = np.sqrt(1 + (u * u + v * v) * spread * spread)
    toward = rays / length
    eye = camera.eye.astype(np.float32)
    hits = _room(scene, eye, rays)
    _solids(scene, eye, rays, toward, hits)
    hits.point = eye[:, None] + hits.depth * rays
    albedo, gloss = _paint(scene, hits, toward, np.float32(2 * camera.spread / size))
    return hits, _light(scene, hits, toward, albedo, gloss)


def _room(scene: Scene, eye: np.ndarray, rays: np.ndarray) -> _Hits:
    rays = np.where(np.abs(rays) < 1e-7, np.float32(1e-7), rays)
    limit = np.array([*scene.half, 0], np.float32)
    ahead = np.sign(rays)
    sides = [(ahead[i] * limit[i] - eye[i]) / rays[i] for i in (0, 1)]
    level = (np.where(ahead[2] > 0, np.float32(scene.height), np.float32(0)) - eye[2]) / rays[2]
    depth = np.minimum(np.minimum(sides[0], sides[1]), level)
    on = [depth == sides[0], depth == sides[1], depth == level]
    on[0] &= ~on[2]
    on[1] &= ~(on[2] | on[0])
    normal = np.stack([np.where(on[i], -ahead[i], np.float32(0)) for i in range(3)])
    positive = rays > 0
    # Tells the four walls apart, for the edges between them.
    plane = on[0] * positive[0] * np.uint8(1) + on[1] * (positive[1] + np.uint8(2))
    surface = np.where(on[2], positive[2] * np.uint8(2), np.uint8(1))
    return _Hits(depth, surface, rays, normal, plane)


def _near(apex: np.ndarray, toward: np.ndarray, solid: Placed) -> np.ndarray:
    """Indices of the unit directions [3, R] from `apex` that pass the solid's bounding sphere."""
    offset = solid.centre - apex
    distance = np.sqrt((offset * offset).sum())
    if distance <= solid.radius * 1.01:
        return np.arange(toward.shape[1])
    aim = offset / distance
    cosine = np.sqrt(1 - (solid.radius * 1.01 / distance) ** 2)
    return np.flatnonzero(_dot(toward, aim) > cosine)


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _transform(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    out = np.empty((3, x.shape[1]), np.float32)
    for line, (a, b, c) in zip(out, matrix, strict=True):
        np.multiply(x[0], a, out=line)
        line += b * x[1]
        line += c * x[2]
    return out


def _solids(scene: Scene, eye: np.ndarray, rays: np.ndarray, toward: np.ndarray, hits: _Hits) -> None:
    for number, solid in enumerate(scene.solids):
        index = _near(eye, toward, solid)
        if not len(index):
            continue
        origin = _transform(solid.inverse, (eye - solid.centre)[:, None])
        t = solid.solid.hit(origin, _transform(solid.inverse, rays.take(index, 1)))
        closer = t < hits.depth[index]
        hits.depth[index[closer]] = t[closer]
        hits.surface[index[closer]] = N_BACKGROUND + number


def _paint(scene: Scene, hits: _Hits, toward: np.ndarray, pixel: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Colours [3, R] and gloss [R] of the surfaces; also completes the normals of the solids."""
    albedo, gloss = np.zeros_like(hits.point), np.zeros_like(hits.depth)
    for number, solid in enumerate(scene.solids):
        index = np.flatnonzero(hits.surface == N_BACKGROUND + number)
        if not len(index):
            continue
        local = _transform(solid.inverse, hits.point.take(index, 1) - solid.centre[:, None])
        inner = solid.solid.normal(local).astype(np.float32)
        normal = _transform(solid.inverse.T, inner)
        normal /= np.sqrt(_dot(normal, normal)) + np.float32(1e-9)
        hits.normal[:, index] = normal
        if not solid.solid.wrapped:
            hits.plane[index] = np.abs(inner).argmax(0)
        scale = np.array(solid.scale, np.float32)[:, None]
        uv = surface_coordinates(
            local * scale, inner, solid.material.period, solid.solid.wrapped, 6.2832 * solid.scale[0]
        )
        albedo[:, index] = solid.material.colour(uv, _footprint(hits, toward, index, pixel))
        gloss[index] = solid.material.gloss
    for number, material in enumerate(scene.surfaces):
        _paint_flat(hits, toward, pixel, np.flatnonzero(hits.surface == number), material, albedo)
    for decal in scene.decals:
        others = [i for i in range(3) if i != decal.axis]
        index = np.flatnonzero(hits.surface == (0 if decal.axis == 2 else 1))
        on = np.abs(hits.point[decal.axis].take(index) - np.float32(decal.plane)) < 1e-3
        for axis, low, high in zip(others, decal.low, decal.high, strict=True):
            along = hits.point[axis].take(index)
            on &= (along > low) & (along < high)
        _paint_flat(hits, toward, pixel, index[on], decal.material, albedo)
    return albedo, gloss


def _paint_flat(
    hits: _Hits, toward: np.ndarray, pixel: np.float32, index: np.ndarray, material: Material, albedo: np.ndarray
) -> None:
    if len(index):
        uv = surface_coordinates(hits.point.take(index, 1), hits.normal.take(index, 1), material.period, False, 0)
        albedo[:, index] = material.colour(uv, _footprint(hits, toward, index, pixel))


def _footprint(hits: _Hits, toward: np.ndarray, index: np.ndarray, pixel: np.float32) -> np.ndarray:
    """Metres of surface under a pixel, longer where the surface is seen at a slant."""
    slant = np.abs(_dot(hits.normal.take(index, 1), toward.take(index, 1)))
    return hits.depth[index] * pixel / np.maximum(slant, np.float32(0.3))


def _light(scene: Scene, hits: _Hits, toward: np.ndarray, albedo: np.ndarray, gloss: np.ndarray) -> np.ndarray:
    lamp = np.array(scene.lamp, np.float32)
    start = hits.point + hits.normal * _OFF_SURFACE
    beam = start - lamp[:, None]
    distance = np.sqrt(_dot(beam, beam))
    beam /= distance
    facing = np.maximum(-_dot(hits.normal, beam), 0)
    seen = np.maximum(-_dot(hits.normal, toward), 0)
    key = facing * _KEY
    if scene.shadow < 1:
        hidden = _shadow(scene, lamp, start, beam, distance, facing > 0)
        key[hidden] *= np.float32(scene.shadow)
        facing[hidden] = 0
    # A lamp hardly lights the ceiling it hangs from; the floor's reflection does.
    bounce = np.maximum(-hits.normal[2], 0) * np.float32(0.2)
    light = np.float32(scene.ambient) + key + bounce + np.float32(scene.fill) * seen
    colour = albedo * light
    if gloss.any():
        shiny = np.flatnonzero((gloss > 0) & (facing > 0))
        half = -beam.take(shiny, 1) - toward.take(shiny, 1)
        half /= np.sqrt(_dot(half, half)) + np.float32(1e-6)
        spot = np.maximum(_dot(hits.normal.take(shiny, 1), half), 0)
        for _ in range(5):
            spot *= spot
        colour[:, shiny] += gloss[shiny] * spot
    return colour


def _shadow(
    scene: Scene, lamp: np.ndarray, start: np.ndarray, beam: np.ndarray, distance: np.ndarray, lit: np.ndarray
) -> np.ndarray:
    """Whether a solid stands between each surface point and the lamp, [R] bool."""
    hidden = np.zeros(len(distance), bool)
    for solid in scene.solids:
        index = _near(lamp, beam, solid)
        reach = np.linalg.norm(solid.centre - lamp) - solid.radius * 1.01
        index = index[(lit & ~hidden)[index] & (distance[index] > reach)]
        if not len(index):
            continue
        origin = _transform(solid.inverse, start.take(index, 1) - solid.centre[:, None])
        t = solid.solid.hit(origin, _transform(solid.inverse, -beam.take(index, 1)))
        hidden[index] = t < np.minimum(distance[index], MISS)
    return hidden
