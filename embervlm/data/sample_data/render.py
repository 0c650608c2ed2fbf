"""A small numpy ray caster: boxes, balls, rods and a ground plane, lit by a sun and lamps, seen through air or water.

``scenes`` describes a place with the parts of this file; :func:`render` turns the description into a picture, and
``write`` saves it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Array = NDArray[Any]
Vector = Sequence[float] | Array  # three numbers
Colour = tuple[float, float, float]
# A material maps in-face coordinates in metres and the face's axis (0, 1 or 2), all (n,), to colours (n, 3) in 0..1.
Material = Callable[[Array, Array, Array], Array]
Shape = Literal["box", "ball", "rod"]

_NOISE_SIZE = 512
_FAR = np.float32(1e9)
_NEAR = 1e-3


@lru_cache(maxsize=1)
def _noise_table() -> Array:
    """A tiling table of fractal value noise, (512, 512) float32, mean 0, standard deviation about 0.35."""
    rng = np.random.default_rng(20240229)
    total = np.zeros((_NOISE_SIZE, _NOISE_SIZE), np.float64)
    steps = np.arange(_NOISE_SIZE)
    for cells, weight in ((8, 1.0), (16, 0.7), (32, 0.5), (64, 0.4), (128, 0.3), (256, 0.25)):
        lattice = rng.standard_normal((cells, cells))
        place = steps * cells / _NOISE_SIZE
        low = place.astype(int)
        blend = place - low
        blend = blend * blend * (3 - 2 * blend)
        high = (low + 1) % cells
        rows = lattice[low] * (1 - blend)[:, None] + lattice[high] * blend[:, None]
        total += weight * (rows[:, low] * (1 - blend)[None, :] + rows[:, high] * blend[None, :])
    total -= total.mean()
    return np.asarray(total * (0.35 / total.std()), dtype=np.float32)


def noise(u: Array, v: Array, scale: float) -> Array:
    """Fractal noise at (u, v), about -1..1; ``scale`` is the period of the table in the unit of u and v."""
    factor = np.float32(_NOISE_SIZE / scale)
    column = (u * factor).astype(np.int32) & (_NOISE_SIZE - 1)
    row = (v * factor).astype(np.int32) & (_NOISE_SIZE - 1)
    result: Array = _noise_table()[row, column]
    return result


def _cell_noise(column: Array, row: Array, salt: int = 0) -> Array:
    """A repeatable number in 0..1 for each integer cell."""
    mixed = column.astype(np.int64) * 73856093 ^ row.astype(np.int64) * 19349663 ^ (salt * 83492791)
    mixed = (mixed ^ (mixed >> 13)) * 1274126177
    return ((mixed ^ (mixed >> 16)) & 0xFFFF).astype(np.float32) / np.float32(65535)


# ------- materials


def plain(colour: Colour, mottle: float = 0.08, scale: float = 2.0) -> Material:
    """One colour with ``mottle`` of noise on its brightness."""
    base = np.asarray(colour, np.float32)

    def material(u: Array, v: Array, axis: Array) -> Array:
        brightness = 1 + np.float32(mottle) * 2 * noise(u + axis, v, scale)
        return brightness[:, None] * base

    return material


def blend(first: Colour, second: Colour, scale: float = 3.0, contrast: float = 1.5) -> Material:
    """Patches of two colours, as on sand, grass, rock or rust; ``scale`` in metres."""
    a, b = np.asarray(first, np.float32), np.asarray(second, np.float32)

    def material(u: Array, v: Array, axis: Array) -> Array:
        share = np.clip(0.5 + contrast * noise(u + 1.7 * axis, v, scale), 0, 1)[:, None]
        detail = 1 + np.float32(0.25) * noise(v, u, scale * 0.27)[:, None]
        return (a * (1 - share) + b * share) * detail

    return material


def tiles(
    colour: Colour,
    joint: Colour,
    width: float,
    height: float,
    gap: float = 0.02,
    shift: float = 0.0,
    vary: float = 0.12,
) -> Material:
    """A grid of tiles, bricks (``shift`` 0.5) or planks with joints; sizes in metres, ``vary`` is the tiles' spread."""
    base, line = np.asarray(colour, np.float32), np.asarray(joint, np.float32)

    def material(u: Array, v: Array, axis: Array) -> Array:
        row = np.floor(v / height)
        moved = u / width + np.float32(shift) * (row % 2)
        column = np.floor(moved)
        tint = 1 + vary * 2 * (_cell_noise(column, row) - 0.5) + 0.12 * noise(u, v, 1.3)
        on_line = (np.abs(v / height - row - 0.5) > 0.5 - gap / height) | (
            np.abs(moved - column - 0.5) > 0.5 - gap / width
        )
        return np.where(on_line[:, None], line, tint[:, None] * base)

    return material


def windows(
    wall: Colour,
    glass: Colour,
    width: float,
    height: float,
    share: tuple[float, float] = (0.6, 0.6),
    lit: float = 0.0,
    salt: int = 0,
) -> Material:
    """A wall with a grid of windows; ``share`` is the window's part of a cell, ``lit`` the part that has light on."""
    base, pane = np.asarray(wall, np.float32), np.asarray(glass, np.float32)
    lamp = np.asarray((1.5, 1.25, 0.75), np.float32)

    def material(u: Array, v: Array, axis: Array) -> Array:
        column, row = np.floor(u / width), np.floor(v / height)
        inside = (np.abs(u / width - column - 0.5) < share[0] / 2) & (np.abs(v / height - row - 0.5) < share[1] / 2)
        inside &= axis != 2
        chance = _cell_noise(column, row, salt)
        glow = np.where((chance < lit)[:, None], lamp, pane * (0.55 + 0.9 * chance)[:, None])
        face = base * (1 + 0.2 * noise(u, v, 9.0))[:, None]
        return np.where(inside[:, None], glow, face)

    return material


def stripes(
    first: Colour, second: Colour, period: float, along: Literal["u", "v"] = "u", share: float = 0.5
) -> Material:
    """Bands of two colours, ``period`` metres apart, ``share`` of it the first."""
    a, b = np.asarray(first, np.float32), np.asarray(second, np.float32)

    def material(u: Array, v: Array, axis: Array) -> Array:
        place = (u if along == "u" else v) / period
        band = (place - np.floor(place) < share)[:, None]
        return np.where(band, a, b) * (1 + 0.16 * noise(u, v, 1.7))[:, None]

    return material


# ------- what a scene consists of


@dataclass(slots=True)
class Part:
    """A unit cube, ball or cylinder carried into place by ``axes``.

    Attributes:
        centre: its middle in metres; x to the right, y ahead, z up.
        axes: (3, 3), its half axes as columns, in metres; a rod runs along the third.
        material: its surface.
        casts: whether it throws a shadow.
        glow: how much of its colour shines by itself, 0..1 and more.
        rough: how much the surface's direction wavers.
    """

    shape: Shape
    centre: Array
    axes: Array
    material: Material
    casts: bool = True
    glow: float = 0.0
    rough: float = 0.0


@dataclass(slots=True)
class Ground:
    """The plane z = ``height``; its material gets the world's x and y. ``water`` mirrors the sky that much, 0..1."""

    material: Material
    height: float = 0.0
    water: float = 0.0
    rough: float = 0.0
    wave: float = 1.2


@dataclass(slots=True)
class Lamp:
    """A lamp without shadows at a place in metres; its light falls off with the square of distance over ``reach``."""

    place: tuple[float, float, float]
    colour: Colour
    reach: float = 3.0


@dataclass(slots=True)
class Camera:
    """Where the picture is taken from, in metres; yaw to the left, pitch upwards and the field of view in degrees."""

    place: tuple[float, float, float]
    yaw: float = 0.0
    pitch: float = 0.0
    roll: float = 0.0
    view: float = 65.0


@dataclass(slots=True)
class Air:
    """What light passes through: ``decay`` is per metre and channel, ``colour`` what distance fades to."""

    colour: Colour = (0.75, 0.8, 0.85)
    decay: Colour = (0.0, 0.0, 0.0)


@dataclass(slots=True)
class Sky:
    """The background: two colours, clouds (0..1), mountain ridges as (height, colour, snow line) from far to near."""

    zenith: Colour = (0.3, 0.5, 0.8)
    horizon: Colour = (0.75, 0.82, 0.9)
    clouds: float = 0.4
    ridges: tuple[tuple[float, Colour, float], ...] = ()
    shafts: float = 0.0
    seed: float = 0.0


@dataclass(slots=True)
class Picture:
    """A place ready to be rendered."""

    parts: list[Part]
    camera: Camera
    ground: Ground | None = None
    sun: tuple[float, float, float] = (0.3, 0.4, 0.85)
    sun_colour: Colour = (0.9, 0.85, 0.75)
    ambient: Colour = (0.4, 0.43, 0.48)
    lamps: list[Lamp] = field(default_factory=list)
    air: Air = field(default_factory=Air)
    sky: Sky = field(default_factory=Sky)
    under_water: bool = False
    caustics: float = 0.0
    snow: int = 0
    exposure: float = 1.0
    grain: float = 0.015
    soften: float = 0.4
    tint: Colour = (1.0, 1.0, 1.0)


def turn(yaw: float = 0.0, pitch: float = 0.0, roll: float = 0.0) -> Array:
    """The rotation matrix of a yaw about z, then a pitch about x, then a roll about y; degrees."""
    a, b, c = np.radians((yaw, pitch, roll))
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    about_y = np.array([[np.cos(c), 0, np.sin(c)], [0, 1, 0], [-np.sin(c), 0, np.cos(c)]])
    product: Array = np.einsum("ij,jk,kl->il", about_z, about_x, about_y)
    return product


def box(
    centre: Vector,
    size: Vector,
    material: Material,
    *,
    yaw: float = 0.0,
    pitch: float = 0.0,
    roll: float = 0.0,
    casts: bool = True,
    glow: float = 0.0,
    rough: float = 0.0,
) -> Part:
    """A box with full edge lengths ``size`` in metres."""
    axes = turn(yaw, pitch, roll) * (np.asarray(size, float) / 2)
    return Part("box", np.asarray(centre, float), axes, material, casts, glow, rough)


def ball(
    centre: Vector,
    radii: Vector,
    material: Material,
    *,
    yaw: float = 0.0,
    pitch: float = 0.0,
    roll: float = 0.0,
    casts: bool = True,
    glow: float = 0.0,
    rough: float = 0.0,
) -> Part:
    """An ellipsoid with three radii in metres."""
    axes = turn(yaw, pitch, roll) * np.asarray(radii, float)
    return Part("ball", np.asarray(centre, float), axes, material, casts, glow, rough)


def rod(
    start: Vector,
    end: Vector,
    radius: float,
    material: Material,
    *,
    casts: bool = True,
    glow: float = 0.0,
    rough: float = 0.0,
) -> Part:
    """A cylinder from ``start`` to ``end`` with a radius in metres."""
    a, b = np.asarray(start, float), np.asarray(end, float)
    along = (b - a) / 2
    length = float(np.sqrt((along**2).sum())) or 1e-6
    helper = np.array([0.0, 0.0, 1.0]) if abs(along[2]) < 0.9 * length else np.array([1.0, 0.0, 0.0])
    first = np.cross(along, helper)
    first *= radius / np.sqrt((first**2).sum())
    second = np.cross(along / length, first)
    return Part("rod", (a + b) / 2, np.stack([first, second, along], axis=1), material, casts, glow, rough)


# ------- intersections: everything is a unit shape in its own coordinates


def _to_local(matrix: Array, x: Array, y: Array, z: Array) -> tuple[Array, Array, Array]:
    m = matrix.astype(np.float32)
    return (
        m[0, 0] * x + m[0, 1] * y + m[0, 2] * z,
        m[1, 0] * x + m[1, 1] * y + m[1, 2] * z,
        m[2, 0] * x + m[2, 1] * y + m[2, 2] * z,
    )


def _hit(shape: Shape, origin: Sequence[Any], ray: Sequence[Any]) -> Array:
    """Distance along local rays to the unit shape, ``_FAR`` where there is none; either argument may be scalars."""
    ox, oy, oz = origin
    dx, dy, dz = ray
    if shape == "ball":
        a = dx * dx + dy * dy + dz * dz
        b = ox * dx + oy * dy + oz * dz
        c = ox * ox + oy * oy + oz * oz - 1
        inside = b * b - a * c
        root = np.sqrt(np.maximum(inside, 0))
        near, far = (-b - root) / a, (-b + root) / a
        t = np.where(near > _NEAR, near, far)
        return np.where((inside > 0) & (t > _NEAR), t, _FAR)
    tiny = np.float32(1e-9)
    if shape == "box":
        entry, leave = -_FAR, _FAR
        for o, d in ((ox, dx), (oy, dy), (oz, dz)):
            inverse = 1 / (d + tiny)
            low, high = (-1 - o) * inverse, (1 - o) * inverse
            entry = np.maximum(entry, np.minimum(low, high))
            leave = np.minimum(leave, np.maximum(low, high))
        t = np.where(entry > _NEAR, entry, leave)
        return np.where((entry < leave) & (t > _NEAR), t, _FAR)
    a = dx * dx + dy * dy + tiny
    b = ox * dx + oy * dy
    c = ox * ox + oy * oy - 1
    inside = b * b - a * c
    root = np.sqrt(np.maximum(inside, 0))
    side_in, side_out = (-b - root) / a, (-b + root) / a
    inverse = 1 / (dz + tiny)
    low, high = (-1 - oz) * inverse, (1 - oz) * inverse
    entry = np.maximum(side_in, np.minimum(low, high))
    leave = np.minimum(side_out, np.maximum(low, high))
    t = np.where(entry > _NEAR, entry, leave)
    return np.where((inside > 0) & (entry < leave) & (t > _NEAR), t, _FAR)


_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)


class _View:
    """Rays of a camera, and the pixels that a part can cover."""

    def __init__(self, camera: Camera, size: int) -> None:
        self.size = size
        self.place = np.asarray(camera.place, float)
        basis = turn(camera.yaw, camera.pitch, 0) * 1.0
        roll = np.radians(camera.roll)
        right, self.ahead, up = basis[:, 0], basis[:, 1], basis[:, 2]
        self.right = right * np.cos(roll) + up * np.sin(roll)
        self.up = up * np.cos(roll) - right * np.sin(roll)
        self.spread = float(np.tan(np.radians(camera.view) / 2))
        steps = ((np.arange(size) + 0.5) / size * 2 - 1) * self.spread
        x, y = np.meshgrid(steps, -steps)
        rays = self.ahead[:, None, None] + self.right[:, None, None] * x + self.up[:, None, None] * y
        rays /= np.sqrt((rays**2).sum(0))
        self.rays = rays.astype(np.float32)  # (3, size, size)

    def rectangle(self, part: Part) -> tuple[slice, slice] | None:
        """The rows and columns that can show the part; None if it is out of view."""
        corners = part.centre + (_CORNERS[:, None, :] * part.axes[None]).sum(2) - self.place
        depth = (corners * self.ahead).sum(1)
        if (depth < 0.05).all():
            return None
        if (depth < 0.05).any():
            return slice(0, self.size), slice(0, self.size)
        half = self.size / 2
        column = ((corners * self.right).sum(1) / depth / self.spread + 1) * half
        row = (1 - (corners * self.up).sum(1) / depth / self.spread) * half
        left, right = max(int(column.min()) - 1, 0), min(int(column.max()) + 2, self.size)
        top, bottom = max(int(row.min()) - 1, 0), min(int(row.max()) + 2, self.size)
        if left >= right or top >= bottom:
            return None
        return slice(top, bottom), slice(left, right)


def _shadow(parts: Sequence[Part], inverses: Sequence[Array], points: Array, sun: Array) -> Array:
    """Which of the points (3, n) see the sun: 1 or 0, (n,) float32."""
    lit = np.ones(points.shape[1], np.float32)
    helper = np.array([1.0, 0.0, 0.0]) if abs(sun[0]) < 0.8 else np.array([0.0, 1.0, 0.0])
    side = np.cross(sun, helper)
    side /= np.sqrt((side**2).sum())
    other = np.cross(sun, side)
    px, py, pz = points
    s, o = side.astype(np.float32), other.astype(np.float32)
    pu, pv = s[0] * px + s[1] * py + s[2] * pz, o[0] * px + o[1] * py + o[2] * pz
    for part, inverse in zip(parts, inverses, strict=True):
        if not part.casts:
            continue
        # How far the part reaches to either side of its middle, seen from the sun.
        reach_u = np.abs((part.axes * side[:, None]).sum(0))
        reach_v = np.abs((part.axes * other[:, None]).sum(0))
        if part.shape == "box":
            wide, high = reach_u.sum(), reach_v.sum()
        else:
            wide, high = np.sqrt((reach_u**2).sum()) * 1.42, np.sqrt((reach_v**2).sum()) * 1.42
        cu, cv = (part.centre * side).sum(), (part.centre * other).sum()
        near = (np.abs(pu - np.float32(cu)) < np.float32(wide)) & (np.abs(pv - np.float32(cv)) < np.float32(high))
        index = np.flatnonzero(near)
        if not index.size:
            continue
        c = part.centre.astype(np.float32)
        origin = _to_local(inverse, px[index] - c[0], py[index] - c[1], pz[index] - c[2])
        ray = tuple(np.float32((inverse[k] * sun).sum()) for k in range(3))
        lit[index[_hit(part.shape, origin, ray) < _FAR]] = 0
    return lit


def _peaks(angle: Array, seed: float) -> Array:
    """A mountain range's outline over the horizontal angle, about 0.4..1.4: triangles of several widths."""
    outline = np.full_like(angle, 0.4)
    for rate, weight in ((1.3, 0.45), (2.9, 0.3), (6.1, 0.15), (13.7, 0.07), (31.0, 0.03)):
        place = angle * np.float32(rate) + np.float32(seed * (1 + 0.37 * rate))
        outline += np.float32(weight) * np.abs(place - np.floor(place) - np.float32(0.5)) * 2
    return outline


def _sky(sky: Sky, rays: Array, sun: Array, sun_colour: Colour) -> Array:
    """Colour of the background for rays (3, n): (n, 3)."""
    x, y, z = rays
    height = np.clip(z, 0, 1)
    share = np.clip(1 - height * 2.2, 0, 1)[:, None] ** 1.3
    colour = np.asarray(sky.zenith, np.float32) * (1 - share) + np.asarray(sky.horizon, np.float32) * share
    if sky.clouds > 0:
        flat = 1 / (np.maximum(z, 0) + 0.15)
        cover = np.clip(2.2 * noise(x * flat + sky.seed, y * flat + sky.seed, 7.0) + 1.6 * sky.clouds - 0.8, 0, 1)
        cover = (cover * np.clip(z * 6, 0, 1))[:, None]
        bright = np.asarray(sky.horizon, np.float32) * 0.6 + 0.38
        colour = colour * (1 - cover) + bright * cover
    toward = np.clip(x * sun[0] + y * sun[1] + z * sun[2], 0, 1)
    colour = colour + (0.5 * toward**24)[:, None] * np.asarray(sun_colour, np.float32)
    angle = np.arctan2(x, y)
    for order, (rise, tone, snow) in enumerate(sky.ridges):
        line = rise * _peaks(angle, sky.seed + 1.7 * order)
        body = np.asarray(tone, np.float32) * (1 + 0.5 * noise(angle * 2, z * 3 + angle, 1.0))[:, None]
        if snow < 1:
            white = np.clip((z / np.maximum(line, 1e-3) - snow + 0.4 * noise(angle, z, 0.4)) * 6, 0, 1)[:, None]
            body = body * (1 - white) + np.float32(0.9) * white
        colour = np.where((z < line)[:, None], body, colour)
    if sky.shafts > 0:
        beam = np.clip(noise(angle * 1.4 + z * 0.25, np.full_like(z, sky.seed % 1), 2.0), -0.6, 0.6)
        colour = colour * (1 + sky.shafts * beam * np.clip(z + 0.5, 0, 1))[:, None]
    result: Array = colour
    return result


def render(picture: Picture, size: int, rng: np.random.Generator) -> Array:
    """Render a place as (size, size, 3) uint8; ``rng`` gives the sensor's noise and what drifts in the water."""
    view = _View(picture.camera, size)
    eye = view.place
    distance = np.full((size, size), _FAR, np.float32)
    owner = np.full((size, size), -1, np.int16)
    inverses = [np.linalg.inv(part.axes) for part in picture.parts]
    for number, (part, inverse) in enumerate(zip(picture.parts, inverses, strict=True)):
        rectangle = view.rectangle(part)
        if rectangle is None:
            continue
        local_eye = tuple(np.float32((inverse[k] * (eye - part.centre)).sum()) for k in range(3))
        rays = view.rays[(slice(None), *rectangle)]
        t = _hit(part.shape, local_eye, _to_local(inverse, rays[0], rays[1], rays[2]))
        seen = distance[rectangle]
        closer = t < seen
        seen[closer] = t[closer]
        owner[rectangle][closer] = number
    if picture.ground is not None:
        down = view.rays[2]
        with np.errstate(divide="ignore", invalid="ignore"):
            t = np.where(np.abs(down) > 1e-6, np.float32(picture.ground.height - eye[2]) / down, _FAR)
        closer = (t > _NEAR) & (t < np.minimum(distance, 2000))
        distance[closer] = t[closer]
        owner[closer] = len(picture.parts)

    rays = view.rays.reshape(3, -1)
    flat_owner, flat_t = owner.ravel(), distance.ravel()
    sun = np.asarray(picture.sun, float)
    sun = sun / np.sqrt((sun**2).sum())
    sky = _sky(picture.sky, rays, sun, picture.sun_colour)  # (n, 3)
    order = np.argsort(flat_owner, kind="stable")
    bounds = np.searchsorted(flat_owner[order], np.arange(-1, len(picture.parts) + 2))
    start = int(bounds[1])
    solid = order[start:]
    t = flat_t[solid]
    e = eye.astype(np.float32)[:, None]
    points = e + rays[:, solid] * t
    normals = np.empty_like(points)
    albedo = np.empty((solid.size, 3), np.float32)
    glow = np.zeros(solid.size, np.float32)
    mirror = np.zeros(solid.size, np.float32)
    for number in range(len(picture.parts) + 1):
        place = slice(int(bounds[number + 1]) - start, int(bounds[number + 2]) - start)
        if place.stop <= place.start:
            continue
        spot = points[:, place]
        if number == len(picture.parts):
            assert picture.ground is not None
            _shade_ground(picture.ground, spot, normals[:, place], albedo[place], flat_t[solid[place]])
            mirror[place] = picture.ground.water
        else:
            part = picture.parts[number]
            _shade_part(part, inverses[number], spot, normals[:, place], albedo[place])
            glow[place] = part.glow
    # Surfaces seen from behind (the inside of a room's box) face the camera.
    facing = (normals * rays[:, solid]).sum(0)
    normals *= np.where(facing > 0, np.float32(-1), np.float32(1))
    colour = _light(picture, inverses, sun, points, normals, albedo, glow)
    if (mirror > 0).any():
        wet = np.flatnonzero(mirror > 0)
        ray, normal = rays[:, solid[wet]], normals[:, wet]
        along = (ray * normal).sum(0)
        bounced = ray - 2 * along * normal
        bounced[2] = np.abs(bounced[2])
        share = (mirror[wet] * (0.25 + 0.75 * (1 - np.clip(-along, 0, 1)) ** 2))[:, None]
        colour[wet] = colour[wet] * (1 - share) + _reflection(picture, inverses, points[:, wet], bounced, sun) * share
    decay = np.asarray(picture.air.decay, np.float32)
    if picture.under_water:
        # Away from the lamp and the surface light loses red first; the water's own light grows towards the surface.
        backdrop = sky[solid]
    else:
        backdrop = np.broadcast_to(np.asarray(picture.air.colour, np.float32), colour.shape)
    clear = np.exp(-t[:, None] * decay)
    colour = colour * clear + backdrop * (1 - clear)
    image = sky
    image[solid] = colour
    return _develop(picture, image.reshape(size, size, 3), rng)


def _shade_ground(ground: Ground, spot: Array, normals: Array, albedo: Array, t: Array) -> None:
    x, y = spot[0], spot[1]
    albedo[:] = ground.material(x, y, np.full(x.shape, 2))
    normals[0], normals[1], normals[2] = 0, 0, 1
    if ground.rough > 0:
        weight = np.float32(ground.rough) / (1 + t * np.float32(0.02))
        normals[0] = weight * noise(x, y, ground.wave * 4)
        normals[1] = weight * noise(y + 3, x, ground.wave * 4)
        normals /= np.sqrt((normals**2).sum(0))


def _shade_part(part: Part, inverse: Array, spot: Array, normals: Array, albedo: Array) -> None:
    c = part.centre.astype(np.float32)
    local = np.stack(_to_local(inverse, spot[0] - c[0], spot[1] - c[1], spot[2] - c[2]))
    lengths = np.sqrt((part.axes**2).sum(0)).astype(np.float32)
    metres = local * lengths[:, None]
    axis = np.abs(local).argmax(0)
    if part.shape == "box":
        sign = np.sign(np.take_along_axis(local, axis[None], 0)[0])
        unit = (part.axes / lengths).astype(np.float32)
        normals[:] = unit[:, axis] * sign
    else:
        gradient = local.copy()
        if part.shape == "rod":
            cap = np.abs(local[2]) > 0.999
            gradient[2] = np.where(cap, local[2], 0)
            gradient[0] = np.where(cap, 0, local[0])
            gradient[1] = np.where(cap, 0, local[1])
        normals[:] = np.stack(_to_local(inverse.T, gradient[0], gradient[1], gradient[2]))
        normals /= np.sqrt((normals**2).sum(0))
    if part.shape == "rod":
        u, v = np.arctan2(local[1], local[0]) * lengths[0], metres[2]
    else:
        u = np.where(axis == 0, metres[1], metres[0])
        v = np.where(axis == 2, metres[1], metres[2])
    albedo[:] = part.material(u, v, axis)
    if part.rough > 0:
        scale = float(max(lengths.max(), 0.2)) * 1.5
        for k, (a, b) in enumerate(((u, v), (v, u + 2), (u + v, u - v))):
            normals[k] += np.float32(part.rough) * noise(a + part.centre[0], b, scale)
        normals /= np.sqrt((normals**2).sum(0))


def _light(
    picture: Picture, inverses: Sequence[Array], sun: Array, points: Array, normals: Array, albedo: Array, glow: Array
) -> Array:
    s = sun.astype(np.float32)
    slope = s[0] * normals[0] + s[1] * normals[1] + s[2] * normals[2]
    strength = np.asarray(picture.sun_colour, np.float32)
    if strength.max() > 0.02:
        lit = np.flatnonzero(slope > 0)
        lifted = points[:, lit] + normals[:, lit] * np.float32(0.01)
        seen = _shadow(picture.parts, inverses, lifted, sun)
        slope = np.maximum(slope, 0)
        slope[lit] *= seen
    direct = np.maximum(slope, 0)
    if picture.caustics > 0:
        x, y = points[0], points[1]
        web = 1 - np.abs(noise(x + points[2], y, 3.0)) * 3 - np.abs(noise(y, x + points[2], 2.1)) * 1.5
        direct = direct * (1 + picture.caustics * np.clip(web, -0.4, 1.0))
    sky_share = np.float32(0.7) + np.float32(0.3) * normals[2]
    light = direct[:, None] * strength + sky_share[:, None] * np.asarray(picture.ambient, np.float32)
    for lamp in picture.lamps:
        toward = np.asarray(lamp.place, np.float32)[:, None] - points
        squared = (toward**2).sum(0)
        cosine = np.abs((toward * normals).sum(0)) / np.sqrt(squared + np.float32(1e-6))
        fall = (0.25 + 0.75 * cosine) * np.float32(lamp.reach**2) / (squared + np.float32(lamp.reach**2))
        light = light + fall[:, None] * np.asarray(lamp.colour, np.float32)
    result: Array = albedo * (light * (1 - np.minimum(glow, 1))[:, None] + glow[:, None])
    return result


def _reflection(picture: Picture, inverses: Sequence[Array], points: Array, rays: Array, sun: Array) -> Array:
    """What the water mirrors: the sky, and the plain colour of the nearest large parts, (n, 3)."""
    colour = _sky(picture.sky, rays, sun, picture.sun_colour)
    nearest = np.full(points.shape[1], _FAR, np.float32)
    for part, inverse in zip(picture.parts, inverses, strict=True):
        if np.sqrt((part.axes**2).sum(0)).max() < 0.8:
            continue
        c = part.centre.astype(np.float32)
        origin = _to_local(inverse, points[0] - c[0], points[1] - c[1], points[2] - c[2])
        ray = _to_local(inverse, rays[0], rays[1], rays[2])
        t = _hit(part.shape, origin, ray)
        closer = np.flatnonzero(t < nearest)
        if not closer.size:
            continue
        nearest[closer] = t[closer]
        height = points[2, closer] + t[closer] * rays[2, closer] - c[2]
        across = points[0, closer] + points[1, closer] + t[closer] * (rays[0, closer] + rays[1, closer])
        albedo = part.material(across, height, np.zeros(closer.size, int))
        colour[closer] = albedo * (
            np.asarray(picture.ambient, np.float32) * 0.8 + np.asarray(picture.sun_colour, np.float32) * 0.3
        )
    return colour


def _develop(picture: Picture, image: Array, rng: np.random.Generator) -> Array:
    """Exposure, tone curve, drifting particles, lens and sensor: linear (h, w, 3) to uint8."""
    size = image.shape[0]
    for _ in range(picture.snow):
        row, column = rng.integers(0, size, 2)
        wide = int(rng.integers(1, 3))
        image[row : row + wide, column : column + wide] += np.float32(rng.uniform(0.05, 0.25))
    image = image * np.asarray(picture.tint, np.float32) * np.float32(picture.exposure)
    image = np.clip(image, 0, None)
    image = image / (1 + 0.18 * image)
    image = np.clip(image, 0, 1) ** np.float32(1 / 1.6)
    steps = np.linspace(-1, 1, size, dtype=np.float32) ** 2
    image = image * (1 - 0.1 * (steps[:, None] + steps[None]))[..., None]
    image = image + rng.standard_normal(image.shape, dtype=np.float32) * np.float32(picture.grain)
    pixels = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    if picture.soften > 0.05:
        pixels = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(picture.soften)))
    return pixels


def encode_jpeg(pixels: Array, quality: int) -> bytes:
    """The picture as a JPEG file's bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
