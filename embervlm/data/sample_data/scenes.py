"""The kinds of places of the sample data: each builder draws a random place with its defining object in view.

``render`` makes the picture; ``tasks`` decides by a scene's kind who should go; ``write`` words captions and questions
from the facts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .render import (
    Air,
    Array,
    Camera,
    Colour,
    Ground,
    Lamp,
    Material,
    Part,
    Picture,
    Sky,
    ball,
    blend,
    box,
    noise,
    plain,
    rod,
    stripes,
    tiles,
    windows,
)

Rng = np.random.Generator

COLOURS: dict[str, Colour] = {
    "red": (0.55, 0.07, 0.06),
    "yellow": (0.75, 0.55, 0.06),
    "blue": (0.08, 0.18, 0.5),
    "green": (0.1, 0.35, 0.12),
    "orange": (0.75, 0.28, 0.04),
    "white": (0.75, 0.75, 0.72),
    "gray": (0.32, 0.33, 0.34),
    "brown": (0.26, 0.15, 0.08),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """What is true of every scene of a kind.

    Attributes:
        name: its key in the rule table.
        place: what it is called in words, an answer of one to three words.
        phrase: the place with its article, for sentences.
        setting: ``indoors``, ``outdoors`` or ``under water``.
        ground: what one would move on, one or two words.
        flat: whether that is flat and firm.
        subject: what ``Scene.colour`` tells the colour of.
        parts: things that are always in view.
    """

    name: str
    place: str
    phrase: str
    setting: str
    ground: str
    flat: bool
    subject: str
    parts: tuple[str, ...]


KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "underwater_pipeline",
            "underwater pipeline",
            "a pipeline on the seabed",
            "under water",
            "sand",
            False,
            "pipe",
            ("a pipe", "sand"),
        ),
        Kind("coral_reef", "coral reef", "a coral reef", "under water", "sand", False, "", ("corals", "fish")),
        Kind(
            "warehouse",
            "warehouse",
            "a warehouse aisle between racks",
            "indoors",
            "concrete",
            True,
            "rack",
            ("racks", "cartons"),
        ),
        Kind(
            "corridor", "corridor", "a long corridor with doors", "indoors", "floor", True, "doors", ("doors", "walls")
        ),
        Kind(
            "kitchen",
            "kitchen",
            "a kitchen with cabinets",
            "indoors",
            "tiles",
            True,
            "cabinets",
            ("cabinets", "a stove"),
        ),
        Kind("office", "office", "an office with desks", "indoors", "carpet", True, "chairs", ("desks", "monitors")),
        Kind("staircase", "staircase", "a staircase", "indoors", "stairs", False, "wall", ("steps", "handrails")),
        Kind("road", "road", "a paved road through a town", "outdoors", "asphalt", True, "car", ("a car", "houses")),
        Kind(
            "field_from_air",
            "farm fields",
            "farm fields seen from above",
            "outdoors",
            "fields",
            True,
            "roofs",
            ("fields", "a farm track"),
        ),
        Kind(
            "high_rise_facade",
            "high-rise building",
            "the facade of a high-rise building",
            "outdoors",
            "pavement",
            True,
            "facade",
            ("windows", "floors"),
        ),
        Kind(
            "power_line",
            "power line",
            "a power line with pylons",
            "outdoors",
            "grass",
            False,
            "insulators",
            ("pylons", "wires"),
        ),
        Kind(
            "mountain_trail",
            "mountain trail",
            "a rocky mountain trail",
            "outdoors",
            "rocks",
            False,
            "trail",
            ("mountains", "rocks"),
        ),
        Kind("forest", "forest", "a dense forest", "outdoors", "forest floor", False, "leaves", ("trees", "roots")),
        Kind(
            "rubble",
            "collapsed building",
            "the rubble of a collapsed building",
            "outdoors",
            "rubble",
            False,
            "bricks",
            ("broken slabs", "bricks"),
        ),
        Kind(
            "flooded_street",
            "flooded street",
            "a flooded street with houses",
            "outdoors",
            "water",
            False,
            "car",
            ("brown water", "houses"),
        ),
        Kind(
            "harbour", "harbour", "a harbour quay with a ship", "outdoors", "quay", True, "hull", ("a ship", "a crane")
        ),
    )
}


@dataclass(slots=True)
class Scene:
    """One drawn place and what is known of it.

    Attributes:
        kind: key of :data:`KINDS`.
        light: ``daylight``, ``dusk`` or ``artificial light``.
        colour: name of the colour of the kind's subject.
        extras: optional things that this scene has, in words.
        picture: what to render.
    """

    kind: str
    light: str
    colour: str
    extras: tuple[str, ...]
    picture: Picture


def build_scene(kind: str, rng: Rng) -> Scene:
    """Draw a place of one kind.

    Raises:
        KeyError: there is no such kind.
    """
    return _BUILDERS[kind](rng)


def _u(rng: Rng, low: float, high: float) -> float:
    return float(rng.uniform(low, high))


def _pick(rng: Rng, *names: str) -> tuple[str, Colour]:
    name = names[int(rng.integers(len(names)))]
    return name, _vary(rng, COLOURS[name], 0.12)


def _rgb(red: float, green: float, blue: float) -> Array:
    return np.array((red, green, blue), np.float32)


def _vary(rng: Rng, colour: Colour, share: float = 0.2) -> Colour:
    factor = _u(rng, 1 - share, 1 + share)
    r, g, b = (float(np.clip(c * factor * _u(rng, 1 - share / 2, 1 + share / 2), 0, 1)) for c in colour)
    return r, g, b


def _chance(rng: Rng, probability: float) -> bool:
    return bool(rng.random() < probability)


# ------- light


def _outdoor(rng: Rng, picture: Picture, dusk: float = 0.25, haze: float = 0.004) -> str:
    """Sun, sky and haze of a day or of dusk; the sun stands behind or beside the camera more often than before it."""
    angle = _u(rng, 0, 2 * np.pi)
    picture.sky.seed = _u(rng, 0, 50)
    if _chance(rng, dusk):
        height = _u(rng, 0.12, 0.3)
        picture.sun = (float(np.cos(angle)), float(np.sin(angle)), height)
        warm = _u(rng, 0.35, 0.6)
        picture.sun_colour = (0.75, warm, 0.22)
        picture.ambient = (0.31, 0.29, 0.38)
        picture.sky.zenith = (0.14, 0.17, 0.36)
        picture.sky.horizon = (0.75, _u(rng, 0.35, 0.5), 0.32)
        picture.sky.clouds = _u(rng, 0.2, 0.6)
        light = "dusk"
    else:
        height = _u(rng, 0.5, 1.6)
        picture.sun = (float(np.cos(angle)), float(np.sin(angle)), height)
        overcast = _u(rng, 0, 1) ** 1.5
        strength = 1.0 - 0.8 * overcast
        picture.sun_colour = (0.95 * strength, 0.9 * strength, 0.8 * strength)
        base = 0.42 + 0.3 * overcast
        picture.ambient = (base, base * 1.03, base * 1.1)
        grey = 0.62 * overcast
        picture.sky.zenith = (0.16 + grey * 0.7, 0.34 + grey * 0.5, 0.72 - grey * 0.1)
        picture.sky.horizon = (0.66, 0.74, 0.82)
        picture.sky.clouds = _u(rng, 0.1, 0.5) + 0.4 * overcast
        light = "daylight"
    picture.air = Air(picture.sky.horizon, (haze * 1.0, haze * 1.05, haze * 1.1))
    picture.exposure = _u(rng, 0.85, 1.15)
    _sensor(rng, picture)
    return light


def _indoor(rng: Rng, picture: Picture, lamps: list[Lamp], level: float = 0.32) -> None:
    """Ceiling light: a weak steep sun gives contact shadows, lamps the unevenness."""
    warm = _u(rng, 0.0, 0.25)
    picture.sun = (_u(rng, -0.3, 0.3), _u(rng, -0.3, 0.3), 1.0)
    picture.sun_colour = (0.35, 0.35 - 0.15 * warm, 0.35 - 0.5 * warm)
    base = level * _u(rng, 0.8, 1.2)
    picture.ambient = (base, base * (1 - 0.2 * warm), base * (1 - 0.7 * warm))
    picture.lamps = lamps
    picture.exposure = _u(rng, 0.85, 1.2)
    _sensor(rng, picture)


def _sensor(rng: Rng, picture: Picture) -> None:
    picture.grain = _u(rng, 0.005, 0.03)
    picture.soften = _u(rng, 0.0, 0.6)
    picture.tint = (_u(rng, 0.95, 1.05), 1.0, _u(rng, 0.95, 1.05))
    picture.camera.roll = _u(rng, -2.5, 2.5)


def _water_light(rng: Rng, picture: Picture, colours: tuple[Colour, Colour], murk: float) -> None:
    """Light under water: from above, losing red first; bright upwards, dark below."""
    top, deep = colours
    picture.under_water = True
    picture.sun = (_u(rng, -0.4, 0.4), _u(rng, -0.4, 0.4), 1.0)
    picture.sun_colour = (0.5 * top[0] + 0.16, 0.5 * top[1] + 0.25, 0.5 * top[2] + 0.22)
    picture.ambient = (0.16 + 0.2 * top[0], 0.22 + 0.35 * top[1], 0.22 + 0.35 * top[2])
    picture.sky = Sky(top, deep, 0.0, (), _u(rng, 0.2, 0.7), _u(rng, 0, 20))
    picture.air = Air(deep, (murk * 2.4, murk, murk * 0.9))
    picture.caustics = _u(rng, 0.2, 0.9)
    picture.snow = int(rng.integers(5, 60))
    picture.exposure = _u(rng, 0.9, 1.3)
    _sensor(rng, picture)


_WATERS: tuple[tuple[Colour, Colour], ...] = (
    ((0.12, 0.42, 0.6), (0.03, 0.2, 0.36)),
    ((0.16, 0.5, 0.55), (0.04, 0.27, 0.32)),
    ((0.2, 0.42, 0.34), (0.06, 0.21, 0.17)),
    ((0.07, 0.26, 0.5), (0.015, 0.1, 0.26)),
)


# ------- things


def _rock(rng: Rng, x: float, y: float, z: float, size: float, material: Material) -> Part:
    radii = (size * _u(rng, 0.6, 1.2), size * _u(rng, 0.6, 1.2), size * _u(rng, 0.4, 0.8))
    return ball((x, y, z + size * 0.15), radii, material, yaw=_u(rng, 0, 180), pitch=_u(rng, -25, 25), rough=0.9)


def _tree(rng: Rng, x: float, y: float, height: float, conifer: bool = False, z: float = 0.0) -> list[Part]:
    bark = plain(_vary(rng, (0.2, 0.14, 0.09)), 0.3, 0.6)
    leaf_colour = _vary(rng, (0.1, 0.22, 0.06), 0.35)
    leaf = blend(leaf_colour, (leaf_colour[0] * 0.5, leaf_colour[1] * 0.5, leaf_colour[2] * 0.5), height * 0.6, 2.5)
    parts = [rod((x, y, z), (x, y, z + height * 0.6), height * 0.03, bark)]
    if conifer:
        for level in range(3):
            rise = height * (0.35 + 0.25 * level)
            wide = height * (0.22 - 0.055 * level)
            parts.append(ball((x, y, z + rise), (wide, wide, height * 0.2), leaf, rough=1.3))
    else:
        for _ in range(2):
            wide = height * _u(rng, 0.22, 0.34)
            middle = (x + _u(rng, -0.1, 0.1) * height, y + _u(rng, -0.1, 0.1) * height, z + height * _u(rng, 0.62, 0.8))
            parts.append(ball(middle, (wide, wide, wide * 0.8), leaf, rough=1.3))
    return parts


def _car(
    rng: Rng, x: float, y: float, colour: Colour, *, yaw: float = 0.0, z: float = 0.0, glow: float = 0.0
) -> list[Part]:
    """A car of boxes: body, cabin, wheels; it stands along y."""
    paint, glass, tyre = plain(colour, 0.04), plain((0.05, 0.07, 0.09), 0.05), plain((0.02, 0.02, 0.02))
    angle = np.radians(yaw)

    def at(dx: float, dy: float, dz: float) -> tuple[float, float, float]:
        return (
            x + dx * float(np.cos(angle)) - dy * float(np.sin(angle)),
            y + dx * float(np.sin(angle)) + dy * float(np.cos(angle)),
            z + dz,
        )

    parts = [
        box(at(0, 0, 0.62), (1.8, 4.2, 0.62), paint, yaw=yaw),
        box(at(0, -0.2, 1.15), (1.55, 2.1, 0.5), glass, yaw=yaw),
        box(at(0, -0.2, 1.43), (1.5, 1.9, 0.08), paint, yaw=yaw),
        box(at(0, -2.1, 0.7), (1.5, 0.06, 0.16), plain((0.6, 0.05, 0.03)), yaw=yaw, glow=0.4 + glow),
    ]
    for dx in (-0.82, 0.82):
        for dy in (-1.3, 1.35):
            parts.append(rod(at(dx - 0.12, dy, 0.33), at(dx + 0.12, dy, 0.33), 0.33, tyre))
    return parts


def _house(rng: Rng, x: float, y: float, wide: float, deep: float, high: float, lit: float) -> list[Part]:
    tone = ((0.6, 0.55, 0.45), (0.55, 0.3, 0.22), (0.65, 0.63, 0.6), (0.6, 0.5, 0.3), (0.4, 0.45, 0.5))[
        int(rng.integers(5))
    ]
    wall = windows(_vary(rng, tone), (0.1, 0.13, 0.17), _u(rng, 1.8, 2.6), 3.0, (0.45, 0.5), lit, int(rng.integers(99)))
    # Texture rows start at a part's middle, so whole storeys need a half height that is a whole number of them.
    high = max(round(high / 6), 1) * 6.0
    roof = plain(_vary(rng, (0.3, 0.12, 0.08) if _chance(rng, 0.6) else (0.2, 0.2, 0.22)), 0.2)
    return [
        box((x, y, high / 2 - 0.5), (wide, deep, high), wall),
        box((x, y, high - 0.3), (wide + 0.5, deep + 0.5, 0.5), roof),
    ]


# ------- places


def _underwater_pipeline(rng: Rng) -> Scene:
    name, colour = _pick(rng, "yellow", "red", "white", "gray")
    radius = _u(rng, 0.35, 0.75)
    sand = blend(_vary(rng, (0.5, 0.45, 0.33)), _vary(rng, (0.36, 0.33, 0.24)), 1.6, 0.8)
    surface = blend(colour, (colour[0] * 0.5, colour[1] * 0.45 + 0.03, colour[2] * 0.5), 4.0, _u(rng, 0.3, 1.3))
    parts: list[Part] = []
    heading = np.radians(_u(rng, -60, 60))
    along = np.array([np.sin(heading), np.cos(heading), 0])
    middle = np.array([_u(rng, -0.8, 0.8), _u(rng, 4.5, 6.5), 0.0])
    lift = radius * _u(rng, 0.8, 1.5)
    middle[2] = lift
    a, b = middle - along * 30, middle + along * 30
    parts.append(rod(a, b, radius, surface))
    spacing = _u(rng, 2.2, 3.6)
    flange = plain(_vary(rng, (0.2, 0.2, 0.2)) if _chance(rng, 0.5) else _vary(rng, colour, 0.3), 0.2)
    for step in range(-3, 5):
        place = middle + along * (step * spacing)
        parts.append(rod(place - along * 0.12, place + along * 0.12, radius * 1.25, flange))
        if step % 2 == 0:
            block = plain(_vary(rng, (0.4, 0.4, 0.38)), 0.25, 1.0)
            angle = -float(np.degrees(heading))
            parts.append(box((place[0], place[1], lift * 0.35), (radius * 3.2, 0.5, lift * 0.9), block, yaw=angle))
    extras = []
    if _chance(rng, 0.4):
        side = np.array([along[1], -along[0], 0]) * _u(rng, 1.6, 2.4) * (1 if _chance(rng, 0.5) else -1)
        small = radius * 0.5
        parts.append(rod(a + side - (0, 0, lift - small), b + side - (0, 0, lift - small), small, surface))
        extras.append("a second pipe")
    if _chance(rng, 0.35):
        place = middle + along * _u(rng, -0.8, 0.8)
        top = place + np.array((0, 0, radius * 1.9))
        metal = plain((0.5, 0.1, 0.08), 0.2)
        parts += [
            rod(place, top, radius * 0.22, flange),
            rod(top - np.array((0, 0, 0.04)), top + np.array((0, 0, 0.04)), radius * 0.7, metal),
        ]
        extras.append("a valve")
    stone = blend((0.25, 0.25, 0.22), (0.12, 0.16, 0.1), 0.6)
    parts += [
        _rock(rng, _u(rng, -6, 6), _u(rng, 3, 12), 0, _u(rng, 0.1, 0.4), stone) for _ in range(int(rng.integers(2, 8)))
    ]
    camera = Camera((0, 0, _u(rng, 1.6, 3.2)), _u(rng, -6, 6), _u(rng, -22, -9), view=_u(rng, 60, 80))
    picture = Picture(parts, camera, Ground(sand, rough=0.5, wave=0.6))
    _water_light(rng, picture, _WATERS[int(rng.integers(len(_WATERS)))], _u(rng, 0.045, 0.12))
    return Scene("underwater_pipeline", "daylight", name, tuple(extras), picture)


def _coral_reef(rng: Rng) -> Scene:
    parts: list[Part] = []
    hues: tuple[Colour, ...] = (
        (0.75, 0.25, 0.3),
        (0.8, 0.45, 0.15),
        (0.6, 0.25, 0.6),
        (0.75, 0.65, 0.2),
        (0.35, 0.55, 0.3),
        (0.8, 0.5, 0.55),
    )
    rock = blend((0.3, 0.27, 0.22), (0.16, 0.22, 0.16), 1.0, 2.0)
    for side in (-1, 1):
        for _ in range(5):
            x, y = side * _u(rng, 0.6, 3.6), _u(rng, 2.6, 8)
            size = _u(rng, 0.6, 1.5) * (0.6 + 0.08 * y)
            parts.append(_rock(rng, x, y, 0, size, rock))
            for _ in range(2):
                hue = _vary(rng, hues[int(rng.integers(len(hues)))])
                coral = blend(hue, (hue[0] * 0.55, hue[1] * 0.5, hue[2] * 0.6), 0.35, 2.5)
                angle, wide = _u(rng, 0, 6.28), size * _u(rng, 0.25, 0.5)
                where = (x + size * 0.7 * np.cos(angle), y - abs(size * 0.7 * np.sin(angle)), size * _u(rng, 0.2, 0.7))
                parts.append(ball(where, (wide, wide, wide * _u(rng, 0.5, 0.9)), coral, rough=1.6))
    for _ in range(int(rng.integers(3, 6))):
        hue = _vary(rng, hues[int(rng.integers(len(hues)))])
        x, y = _u(rng, -2.2, 2.2), _u(rng, 2.6, 6)
        for _ in range(6):
            lean = (_u(rng, -0.5, 0.5), _u(rng, -0.2, 0.2), _u(rng, 0.4, 0.9))
            parts.append(rod((x, y, 0), (x + lean[0], y + lean[1], lean[2]), _u(rng, 0.04, 0.08), plain(hue, 0.2)))
    shoal = _vary(rng, ((0.85, 0.65, 0.1), (0.8, 0.8, 0.85), (0.2, 0.3, 0.75), (0.85, 0.35, 0.1))[int(rng.integers(4))])
    count = int(rng.integers(3, 12))
    swim = _u(rng, -40, 40) + (180 if _chance(rng, 0.5) else 0)
    for _ in range(count):
        where = (_u(rng, -2.5, 2.5), _u(rng, 3, 7), _u(rng, 0.9, 2.6))
        length = _u(rng, 0.1, 0.22)
        fish = plain(shoal, 0.2)
        parts.append(ball(where, (length, length * 0.25, length * 0.45), fish, yaw=swim, casts=False))
        tail = (where[0] - length * np.cos(np.radians(swim)), where[1] - length * np.sin(np.radians(swim)), where[2])
        parts.append(ball(tail, (length * 0.35, length * 0.06, length * 0.4), fish, yaw=swim, casts=False))
    sand = blend((0.6, 0.55, 0.42), (0.48, 0.42, 0.3), 1.0, 0.8)
    camera = Camera((0, 0, _u(rng, 1.0, 1.9)), _u(rng, -12, 12), _u(rng, -14, 2), view=_u(rng, 60, 80))
    picture = Picture(parts, camera, Ground(sand, rough=0.6, wave=0.5))
    blue = _chance(rng, 0.6)
    _water_light(rng, picture, _WATERS[0] if blue else _WATERS[1], _u(rng, 0.03, 0.07))
    picture.sun_colour = (picture.sun_colour[0] + 0.35, picture.sun_colour[1] + 0.25, picture.sun_colour[2] + 0.2)
    return Scene("coral_reef", "daylight", "blue" if blue else "green", ("many fish",) if count > 7 else (), picture)


def _warehouse(rng: Rng) -> Scene:
    name, colour = _pick(rng, "orange", "blue", "green", "red")
    half, length, high = _u(rng, 1.6, 2.6), 26.0, _u(rng, 6.5, 9)
    floor_tone = _vary(rng, (0.42, 0.42, 0.41))
    lane = _chance(rng, 0.6)

    def floor(u: Array, v: Array, axis: Array) -> Array:
        base = plain(floor_tone, 0.15, 5.0)(u, v, axis)
        line = np.abs(np.abs(u) - half * 0.85) < 0.06
        return np.where((line & lane)[:, None], _rgb(0.7, 0.5, 0.05), base)

    beam, upright = plain(colour, 0.05), plain(_vary(rng, (0.12, 0.18, 0.35)), 0.05)
    parts: list[Part] = []
    storeys = int(rng.integers(3, 5))
    rise = (high - 1.8) / storeys
    cardboard = ((0.5, 0.34, 0.18), (0.42, 0.28, 0.15), (0.55, 0.42, 0.26), (0.6, 0.58, 0.55))
    for side in (-1, 1):
        for y in (3.5, 8.5, 13.5, 18.5, 23.5):
            parts.append(box((side * half, y, high / 2 - 0.9), (0.14, 0.14, high - 1.8), upright))
        for level in range(storeys):
            z = 0.15 + level * rise
            parts.append(box((side * half, 12, z), (0.12, length, 0.16), beam, casts=False))
            parts.append(
                box((side * (half + 0.6), 12, z - 0.05), (1.1, length, 0.06), plain((0.3, 0.3, 0.3)), casts=False)
            )
            y = 2.0 + _u(rng, 0, 1)
            while y < 16:
                wide, tall = _u(rng, 1.0, 2.2), rise * _u(rng, 0.45, 0.85)
                if _chance(rng, 0.85):
                    tone = _vary(rng, cardboard[int(rng.integers(4))])
                    seam = (tone[0] * 0.6, tone[1] * 0.6, tone[2] * 0.6)
                    carton = tiles(tone, seam, _u(rng, 0.5, 0.9), tall / 2, 0.025)
                    parts.append(
                        box((side * (half + 0.65), y + wide / 2, z + tall / 2), (1.0, wide, tall), carton, casts=False)
                    )
                y += wide + _u(rng, 0.1, 0.4)
    parts.append(box((0, 26, high / 2), (30, 0.2, high), tiles((0.5, 0.52, 0.55), (0.4, 0.42, 0.44), 1.0, 8.0, 0.03)))
    parts.append(
        box((0, 10, high), (30, 60, 0.1), tiles((0.35, 0.36, 0.38), (0.2, 0.2, 0.22), 3.0, 3.0, 0.08), casts=False)
    )
    for y in (4, 9, 14, 19):
        lamp = plain((1.0, 1.0, 0.95))
        parts.append(box((0, y, high - 0.25), (0.5, 2.2, 0.12), lamp, casts=False, glow=1.5))
    extras = []
    if _chance(rng, 0.55):
        x, y = _u(rng, -half * 0.4, half * 0.4), _u(rng, 5.5, 9)
        wood = tiles((0.5, 0.36, 0.2), (0.1, 0.08, 0.05), 0.2, 0.2, 0.03)
        load = plain(_vary(rng, cardboard[int(rng.integers(4))]), 0.15)
        parts += [box((x, y, 0.08), (1.1, 1.1, 0.15), wood), box((x, y, 0.55), (0.95, 0.95, 0.8), load)]
        extras.append("a loaded pallet")
    lamps = [Lamp((0, y, high - 1), (0.55, 0.55, 0.52), 4.5) for y in (4, 12, 20)]
    camera = Camera(
        (_u(rng, -0.7, 0.7) * half * 0.6, 0, _u(rng, 1.0, 2.6)), _u(rng, -9, 9), _u(rng, -6, 9), view=_u(rng, 62, 82)
    )
    picture = Picture(parts, camera, Ground(floor))
    _indoor(rng, picture, lamps, 0.28)
    return Scene("warehouse", "artificial light", name, tuple(extras), picture)


def _corridor(rng: Rng) -> Scene:
    name, colour = _pick(rng, "brown", "blue", "green", "gray", "red")
    half, high, length = _u(rng, 1.05, 1.6), _u(rng, 2.5, 3.1), _u(rng, 14, 28)
    wall_tone = _vary(
        rng, ((0.7, 0.68, 0.62), (0.62, 0.66, 0.7), (0.72, 0.7, 0.5), (0.66, 0.6, 0.55))[int(rng.integers(4))], 0.1
    )
    dado = _chance(rng, 0.5)

    def wall(u: Array, v: Array, axis: Array) -> Array:
        base = plain(wall_tone, 0.05, 4.0)(u, v, axis)
        low = (v < 1.0 - high / 2) & dado
        base = np.where(low[:, None], base * _rgb(0.6, 0.68, 0.72), base)
        return np.where((v < 0.12 - high / 2)[:, None], _rgb(0.12, 0.11, 0.1), base)

    size = _u(rng, 0.4, 0.9)
    tone = _vary(
        rng, ((0.4, 0.38, 0.34), (0.28, 0.3, 0.33), (0.45, 0.33, 0.22), (0.5, 0.5, 0.48))[int(rng.integers(4))]
    )
    floor = tiles(tone, (tone[0] * 0.7, tone[1] * 0.7, tone[2] * 0.7), size, size, 0.012, vary=0.1)
    parts = [
        box((-half - 0.1, length / 2, high / 2), (0.2, length + 4, high), wall, casts=False),
        box((half + 0.1, length / 2, high / 2), (0.2, length + 4, high), wall, casts=False),
        box((0, length, high / 2), (half * 2, 0.2, high), wall, casts=False),
        box(
            (0, length / 2, high + 0.05),
            (half * 2, length + 4, 0.1),
            tiles((0.7, 0.7, 0.68), (0.5, 0.5, 0.5), 0.6, 0.6),
            casts=False,
        ),
    ]
    leaf, frame, metal = plain(colour, 0.06), plain((0.3, 0.28, 0.25)), plain((0.6, 0.6, 0.6))
    spacing = _u(rng, 2.6, 3.8)
    y = _u(rng, 1.8, 3.2)
    while y < length - 1:
        for side in (-1, 1):
            if _chance(rng, 0.85):
                x = side * half
                parts.append(box((x, y, 1.07), (0.1, 1.12, 2.14), frame, casts=False))
                parts.append(box((x, y, 1.03), (0.16, 0.94, 2.02), leaf, casts=False))
                parts.append(box((x - side * 0.1, y - 0.36, 1.05), (0.06, 0.12, 0.04), metal, casts=False))
        y += spacing
    lamps = []
    y = 1.5
    while y < length:
        parts.append(box((0, y, high - 0.02), (0.35, 1.2, 0.05), plain((1.0, 1.0, 0.95)), casts=False, glow=1.5))
        y += _u(rng, 2.6, 3.4)
    for place in np.linspace(2, length - 2, 3):
        lamps.append(Lamp((0, float(place), high - 0.4), (0.5, 0.5, 0.47), 2.2))
    if _chance(rng, 0.5):
        day = plain((1.0, 1.05, 1.1), 0.1)
        parts.append(box((0, length - 0.1, 1.5), (half * 1.1, 0.06, 1.4), day, casts=False, glow=1.0))
    else:
        parts.append(box((0, length - 0.1, 1.03), (1.5, 0.06, 2.05), leaf, casts=False))
    extras = []
    if _chance(rng, 0.35):
        side = 1 if _chance(rng, 0.5) else -1
        place = _u(rng, 3.5, 6)
        seat = plain(_vary(rng, (0.1, 0.12, 0.25)))
        parts += [
            box((side * (half - 0.28), place, 0.42), (0.45, 1.4, 0.08), seat),
            box((side * (half - 0.1), place, 0.72), (0.06, 1.4, 0.5), seat),
        ]
        extras.append("a bench")
    camera = Camera(
        (_u(rng, -0.35, 0.35) * half, 0, _u(rng, 0.9, 1.8)), _u(rng, -8, 8), _u(rng, -7, 4), view=_u(rng, 62, 82)
    )
    picture = Picture(parts, camera, Ground(floor))
    _indoor(rng, picture, lamps, 0.26)
    return Scene("corridor", "artificial light", name, tuple(extras), picture)


def _room(
    rng: Rng, wide: float, deep: float, high: float, wall_tone: Colour, back: Material | None = None
) -> list[Part]:
    wall = plain(wall_tone, 0.05, 3.0)
    return [
        box((-wide / 2 - 0.1, deep / 2, high / 2), (0.2, deep + 8, high), wall, casts=False),
        box((wide / 2 + 0.1, deep / 2, high / 2), (0.2, deep + 8, high), wall, casts=False),
        box((0, deep + 0.1, high / 2), (wide, 0.2, high), back or wall, casts=False),
        box((0, deep / 2, high + 0.05), (wide, deep + 8, 0.1), plain((0.72, 0.71, 0.68), 0.04), casts=False),
    ]


def _window(x: float, y: float, z: float, wide: float, high: float, view: Colour) -> list[Part]:
    """A bright window in a wall that faces the camera, with a cross of bars."""
    frame = plain((0.8, 0.8, 0.78), 0.02)
    return [
        box((x, y, z), (wide + 0.12, 0.04, high + 0.12), frame, casts=False),
        box((x, y - 0.03, z), (wide, 0.02, high), plain(view, 0.15, 2.0), casts=False, glow=0.95),
        box((x, y - 0.05, z), (0.05, 0.02, high), frame, casts=False),
        box((x, y - 0.05, z), (wide, 0.02, 0.05), frame, casts=False),
    ]


def _kitchen(rng: Rng) -> Scene:
    name, colour = _pick(rng, "white", "brown", "blue", "green", "red", "gray")
    wide, deep, high = _u(rng, 3.6, 5.0), _u(rng, 3.2, 4.2), _u(rng, 2.5, 2.9)
    tone = _vary(rng, ((0.7, 0.68, 0.62), (0.68, 0.7, 0.66), (0.75, 0.68, 0.52))[int(rng.integers(3))], 0.08)
    tile_tone = _vary(
        rng, ((0.75, 0.75, 0.72), (0.5, 0.6, 0.65), (0.65, 0.5, 0.38), (0.4, 0.55, 0.45))[int(rng.integers(4))]
    )
    splash = tiles(
        tile_tone, (0.45, 0.45, 0.43), _u(rng, 0.12, 0.25), _u(rng, 0.1, 0.2), 0.01, 0.5 * int(rng.integers(2))
    )
    parts = _room(rng, wide, deep, high, tone, splash)
    edge = (colour[0] * 0.45, colour[1] * 0.45, colour[2] * 0.45)
    door = tiles(colour, edge, 0.5, 1.6, 0.014, vary=0.05)
    top, steel, dark = (
        plain(_vary(rng, (0.25, 0.2, 0.16), 0.4), 0.2, 0.4),
        plain((0.55, 0.56, 0.57), 0.06),
        plain((0.04, 0.04, 0.05)),
    )
    front = deep - 0.62
    stove_x = _u(rng, -0.25, 0.25) * wide
    fridge_side = 1 if _chance(rng, 0.5) else -1
    fridge = box(
        (fridge_side * (wide / 2 - 0.36), deep - 0.36, 0.92),
        (0.68, 0.68, 1.84),
        tiles(_vary(rng, (0.72, 0.73, 0.74), 0.15), (0.2, 0.2, 0.2), 5.0, 1.1, 0.015, 0.0, 0.02),
    )
    parts += [
        box((0, deep - 0.3, 0.45), (wide, 0.58, 0.8), door),
        box((0, deep - 0.31, 0.88), (wide, 0.64, 0.05), top),
        fridge,
        box((stove_x, front, 0.45), (0.62, 0.06, 0.82), steel),
        box((stove_x, front - 0.03, 0.42), (0.46, 0.04, 0.4), dark),
        box((stove_x, deep - 0.32, 0.915), (0.58, 0.5, 0.02), dark),
        box((stove_x, front - 0.05, 0.7), (0.5, 0.03, 0.03), steel),
        box((stove_x, deep - 0.22, 1.65), (0.65, 0.42, 0.14), steel),
        box((stove_x, deep - 0.15, 2.1), (0.25, 0.25, 0.8), steel),
    ]
    for k in range(4):
        where = (stove_x - 0.2 + 0.13 * k, front - 0.05, 0.8)
        parts.append(rod(where, (where[0], where[1] + 0.03, where[2]), 0.03, dark))
    gap = 0.42
    for left, right in ((-wide / 2, stove_x - gap), (stove_x + gap, wide / 2)):
        if right - left > 0.5:
            window_here = _chance(rng, 0.35) and right - left > 1.2
            middle = (left + right) / 2
            if window_here:
                parts += _window(middle, deep - 0.01, 1.6, min(right - left - 0.4, 1.2), 0.8, (0.85, 0.95, 1.1))
            else:
                parts.append(box((middle, deep - 0.17, 1.85), (right - left - 0.06, 0.34, 0.75), door))
    pot = plain(_vary(rng, COLOURS["red"] if _chance(rng, 0.5) else (0.5, 0.5, 0.5)), 0.05)
    parts.append(rod((stove_x - 0.13, deep - 0.3, 0.92), (stove_x - 0.13, deep - 0.3, 1.06), 0.11, pot))
    for _ in range(int(rng.integers(3, 8))):
        x, tint = (
            _u(rng, -wide / 2 + 0.3, wide / 2 - 0.3),
            plain(_vary(rng, list(COLOURS.values())[int(rng.integers(8))], 0.4)),
        )
        y, size = deep - _u(rng, 0.15, 0.5), _u(rng, 0.04, 0.1)
        if _chance(rng, 0.5):
            parts.append(rod((x, y, 0.9), (x, y, 0.9 + size * 3), size * 0.6, tint))
        else:
            parts.append(ball((x, y, 0.9 + size), (size, size, size), tint))
    extras = []
    if _chance(rng, 0.55):
        x, y = _u(rng, -0.8, 0.8), deep - _u(rng, 1.7, 2.0)
        wood = plain(_vary(rng, (0.45, 0.3, 0.16)), 0.25, 0.8)
        parts.append(box((x, y, 0.74), (1.2, 0.75, 0.05), wood))
        for dx in (-0.52, 0.52):
            for dy in (-0.3, 0.3):
                parts.append(rod((x + dx, y + dy, 0), (x + dx, y + dy, 0.72), 0.03, wood))
        parts.append(ball((x, y, 0.84), (0.16, 0.16, 0.08), plain(_vary(rng, (0.7, 0.4, 0.1), 0.4))))
        extras.append("a table")
    size = _u(rng, 0.3, 0.5)
    light, dark_tile = _vary(rng, (0.6, 0.57, 0.5)), (0.3, 0.29, 0.27)
    floor = tiles(light, dark_tile, size, size, 0.012)
    camera = Camera(
        (_u(rng, -0.6, 0.6), _u(rng, -0.4, 0.3), _u(rng, 1.2, 1.8)),
        _u(rng, -12, 12),
        _u(rng, -14, -3),
        view=_u(rng, 64, 82),
    )
    picture = Picture(parts, camera, Ground(floor))
    _indoor(rng, picture, [Lamp((0, deep / 2, high - 0.3), (0.5, 0.48, 0.42), 2.2)], 0.33)
    return Scene("kitchen", "artificial light", name, tuple(extras), picture)


def _office(rng: Rng) -> Scene:
    name, colour = _pick(rng, "blue", "red", "green", "gray", "orange")
    wide, deep, high = _u(rng, 5.5, 8.0), _u(rng, 6.0, 8.5), _u(rng, 2.6, 3.0)
    tone = _vary(rng, ((0.72, 0.71, 0.68), (0.64, 0.68, 0.72), (0.72, 0.7, 0.6))[int(rng.integers(3))], 0.06)
    parts = _room(rng, wide, deep, high, tone)
    extras = []
    if _chance(rng, 0.7):
        count = int(rng.integers(2, 4))
        view: Colour = (0.85, 0.98, 1.15)
        for k in range(count):
            parts += _window((k + 0.5) / count * wide - wide / 2, deep - 0.02, 1.65, wide / count * 0.7, 1.3, view)
        extras.append("windows")
    else:
        parts.append(box((0, deep - 0.02, 1.6), (2.4, 0.04, 1.2), plain((0.85, 0.86, 0.86), 0.03), casts=False))
        parts.append(box((0, deep - 0.01, 1.6), (2.5, 0.04, 1.3), plain((0.3, 0.3, 0.32)), casts=False))
        extras.append("a whiteboard")
    panel = plain((1.0, 1.0, 1.0))
    for x in (-wide / 4, wide / 4):
        for y in (1.5, 4.0, 6.5):
            parts.append(box((x, y, high), (0.6, 1.2, 0.04), panel, casts=False, glow=1.3))
    wood = plain(
        _vary(rng, ((0.55, 0.4, 0.24), (0.66, 0.65, 0.62), (0.4, 0.26, 0.15))[int(rng.integers(3))]), 0.12, 1.0
    )
    black, metal, fabric = plain((0.03, 0.03, 0.035)), plain((0.4, 0.4, 0.42)), plain(colour, 0.15, 0.3)
    screen = plain(_vary(rng, (0.25, 0.45, 0.75), 0.4), 0.5, 0.5)
    rows = (_u(rng, 2.0, 2.4), _u(rng, 3.9, 4.6))
    for y in rows:
        for x in (-wide * 0.27, wide * 0.27) if wide < 7 else (-wide * 0.3, 0.0, wide * 0.3):
            x += _u(rng, -0.15, 0.15)
            parts.append(box((x, y, 0.73), (1.6, 0.8, 0.05), wood))
            for dx in (-0.72, 0.72):
                parts.append(box((x + dx, y, 0.35), (0.05, 0.7, 0.7), metal))
            mx = x + _u(rng, -0.3, 0.3)
            parts += [
                box((mx, y + 0.18, 1.08), (0.62, 0.04, 0.4), black, casts=False),
                box((mx, y + 0.15, 1.08), (0.56, 0.02, 0.34), screen, casts=False, glow=0.8),
                box((mx, y + 0.2, 0.82), (0.08, 0.04, 0.2), black, casts=False),
                box((mx, y - 0.12, 0.765), (0.42, 0.14, 0.02), black, casts=False),
            ]
            cx, cy = x + _u(rng, -0.3, 0.3), y - 0.75
            turned = _u(rng, -40, 40)
            parts += [
                box((cx, cy, 0.48), (0.5, 0.48, 0.09), fabric, yaw=turned),
                box((cx, cy - 0.24, 0.82), (0.46, 0.08, 0.55), fabric, yaw=turned),
                rod((cx, cy, 0.08), (cx, cy, 0.45), 0.03, black),
                rod((cx, cy, 0.04), (cx, cy, 0.09), 0.26, black),
            ]
            if _chance(rng, 0.5):
                parts.append(box((x + 0.55, y, 0.8), (0.22, 0.3, 0.08), plain(_vary(rng, (0.8, 0.8, 0.75), 0.3))))
    side = 1 if _chance(rng, 0.5) else -1
    books = tiles((0.5, 0.3, 0.25), (0.16, 0.1, 0.06), 0.09, 0.36, 0.02, vary=0.9)
    parts.append(box((side * (wide / 2 - 0.2), _u(rng, 3, deep - 1), 0.95), (0.36, 1.6, 1.9), books))
    if _chance(rng, 0.5):
        x, y = -side * (wide / 2 - 0.4), deep - 0.6
        leaf = blend((0.1, 0.3, 0.08), (0.05, 0.15, 0.04), 0.3, 2.5)
        parts += [
            rod((x, y, 0), (x, y, 0.4), 0.18, plain((0.45, 0.3, 0.22))),
            ball((x, y, 0.9), (0.35, 0.35, 0.5), leaf, rough=1.5),
        ]
        extras.append("a plant")
    carpet_tone = _vary(
        rng, ((0.25, 0.28, 0.34), (0.34, 0.32, 0.3), (0.2, 0.28, 0.25), (0.36, 0.26, 0.24))[int(rng.integers(4))]
    )
    carpet = tiles(carpet_tone, carpet_tone, 0.5, 0.5, 0.0, vary=0.2)
    camera = Camera(
        (_u(rng, -0.8, 0.8), _u(rng, -1.2, -0.3), _u(rng, 1.4, 2.0)),
        _u(rng, -14, 14),
        _u(rng, -14, -5),
        view=_u(rng, 64, 82),
    )
    picture = Picture(parts, camera, Ground(carpet))
    _indoor(rng, picture, [Lamp((x, deep / 2, high - 0.3), (0.4, 0.4, 0.4), 3.0) for x in (-1.5, 1.5)], 0.36)
    return Scene("office", "artificial light", name, tuple(extras), picture)


def _staircase(rng: Rng) -> Scene:
    name, colour = _pick(rng, "white", "yellow", "green", "gray", "blue")
    pale = (0.3 + colour[0] * 0.6, 0.3 + colour[1] * 0.6, 0.3 + colour[2] * 0.6)
    half, tread, rise = _u(rng, 0.9, 1.7), _u(rng, 0.28, 0.36), _u(rng, 0.16, 0.2)
    count = int(rng.integers(10, 16))
    tone = _vary(
        rng, ((0.5, 0.49, 0.46), (0.45, 0.3, 0.17), (0.35, 0.36, 0.38), (0.6, 0.55, 0.45))[int(rng.integers(4))]
    )
    step_side = (tone[0] * 0.62, tone[1] * 0.62, tone[2] * 0.62)
    edge = _vary(rng, (0.08, 0.08, 0.08)) if _chance(rng, 0.5) else _vary(rng, (0.7, 0.55, 0.1))
    top_material, front_material = plain(tone, 0.12, 0.8), plain(step_side, 0.12, 0.8)
    nose = plain(edge, 0.05)
    parts: list[Part] = []
    start = _u(rng, 1.2, 2.0)
    for k in range(count):
        y, z = start + k * tread, (k + 1) * rise
        parts.append(box((0, y + tread / 2, z - 1.5), (half * 2, tread, 3.0 - 0.02), front_material, casts=False))
        parts.append(box((0, y + tread / 2, z - 0.01), (half * 2, tread, 0.03), top_material))
        parts.append(box((0, y + 0.02, z + 0.002), (half * 2, 0.05, 0.035), nose, casts=False))
    end_y, end_z = start + count * tread, count * rise
    parts.append(box((0, end_y + 1.5, end_z - 1.5), (half * 2, 3, 3), top_material))
    brick = _chance(rng, 0.35)
    wall = (
        tiles(pale, (pale[0] * 0.7, pale[1] * 0.7, pale[2] * 0.7), 0.4, 0.2, 0.01, 0.5)
        if brick
        else plain(pale, 0.07, 3.0)
    )
    open_side = _chance(rng, 0.4)
    for side in (-1, 1):
        if side == 1 and open_side:
            parts.append(box((half + 3.0, 6, 1), (0.2, 24, 14), wall, casts=False))
        else:
            parts.append(box((side * (half + 0.1), 6, 1), (0.2, 24, 14), wall, casts=False))
    parts.append(box((0, end_y + 2.6, end_z + 1), (12, 0.2, 9), wall, casts=False))
    parts.append(
        box((0, end_y + 2.4, end_z + 1.7), (half * 0.9, 0.1, 1.2), plain((1.0, 1.0, 1.0)), casts=False, glow=1.1)
    )
    rail = plain(_vary(rng, (0.1, 0.1, 0.1)) if _chance(rng, 0.5) else _vary(rng, (0.5, 0.3, 0.15)), 0.1)
    post = plain(_vary(rng, (0.3, 0.3, 0.32)), 0.05)
    for side in (-1, 1):
        x = side * (half - 0.08)
        parts.append(rod((x, start, 0.95), (x, end_y, end_z + 0.95), 0.04, rail))
        for k in range(0, count + 1, 2):
            y = start + k * tread
            parts.append(rod((x, y, k * rise), (x, y, k * rise + 0.95), 0.018, post))
    size = _u(rng, 0.4, 0.8)
    floor = tiles(tone, step_side, size, size, 0.012)
    height, pitch = _u(rng, 0.8, 1.7), _u(rng, 2, 14)
    camera = Camera((_u(rng, -0.3, 0.3) * half, -0.4, height), _u(rng, -9, 9), pitch, view=_u(rng, 62, 80))
    picture = Picture(parts, camera, Ground(floor), sky=Sky((0.6, 0.6, 0.6), (0.7, 0.7, 0.68), 0))
    _indoor(
        rng,
        picture,
        [Lamp((0, 3, 3.4), (0.5, 0.48, 0.45), 2.5), Lamp((0, end_y, end_z + 2.5), (0.5, 0.5, 0.5), 2.2)],
        0.28,
    )
    picture.sun = (_u(rng, -0.5, 0.5), -0.35, 1.0)
    return Scene("staircase", "artificial light", name, ("an open side",) if open_side else (), picture)


def _road_ground(rng: Rng, half: float, side: Colour) -> Material:
    tone = _vary(rng, (0.17, 0.17, 0.18), 0.3)
    asphalt, verge = plain(tone, 0.15, 3.0), blend(side, (side[0] * 0.7, side[1] * 0.7, side[2] * 0.7), 3.0)
    walk = tiles((0.42, 0.41, 0.39), (0.28, 0.28, 0.27), 0.8, 0.8, 0.02)
    dash, gap = _u(rng, 1.5, 3), _u(rng, 5, 7)
    edge_line = _chance(rng, 0.6)

    def material(u: Array, v: Array, axis: Array) -> Array:
        across = np.abs(u)
        colour = np.where((across < half)[:, None], asphalt(u, v, axis), walk(u, v, axis))
        colour = np.where((across > half + 2.0)[:, None], verge(u, v, axis), colour)
        white = (across < 0.09) & (v % gap < dash)
        if edge_line:
            white |= np.abs(across - half + 0.3) < 0.07
        return np.where(white[:, None], _rgb(0.75, 0.75, 0.72), colour)

    return material


def _road(rng: Rng) -> Scene:
    name, colour = _pick(rng, "red", "blue", "white", "green", "yellow")
    half = _u(rng, 3.2, 4.5)
    parts: list[Part] = []
    picture = Picture(
        parts,
        Camera(
            (_u(rng, -1, 1) * half * 0.5, 0, _u(rng, 1.3, 2.8)), _u(rng, -7, 7), _u(rng, -8, 0), view=_u(rng, 60, 80)
        ),
    )
    light = _outdoor(rng, picture)
    lit = 0.4 if light == "dusk" else 0.0
    extras = []
    for side in (-1, 1):
        y = _u(rng, 4, 9)
        while y < 70:
            deep, wide, high = _u(rng, 7, 13), _u(rng, 7, 10), _u(rng, 5, 13)
            if _chance(rng, 0.8):
                parts += _house(rng, side * (half + 3.2 + wide / 2), y + deep / 2, wide, deep, high, lit)
            elif _chance(rng, 0.8):
                parts += _tree(rng, side * (half + 4), y + deep / 2, _u(rng, 5, 8))
            y += deep + _u(rng, 0.5, 5)
    parts += _car(rng, half * 0.5 + _u(rng, -0.2, 0.2), _u(rng, 9, 16), colour)
    if _chance(rng, 0.6):
        parts += _car(
            rng, -half * 0.5, _u(rng, 13, 30), _vary(rng, list(COLOURS.values())[int(rng.integers(8))]), yaw=180
        )
    if _chance(rng, 0.6):
        side = 1 if _chance(rng, 0.5) else -1
        parts += [
            part for y in (8, 18, 30) for part in _tree(rng, side * (half + 1.4), y + _u(rng, -1, 1), _u(rng, 4, 6))
        ]
        extras.append("trees")
    else:
        metal = plain((0.25, 0.26, 0.27))
        for y in (9.0, 22.0, 35.0):
            x = half + 0.5
            parts += [rod((x, y, 0), (x, y, 6), 0.07, metal), rod((x, y, 6), (x - 1.4, y, 6.2), 0.05, metal)]
            parts.append(box((x - 1.4, y, 6.15), (0.6, 0.25, 0.12), plain((1.0, 0.85, 0.5)), glow=1.2 if lit else 0.3))
        extras.append("street lamps")
    picture.ground = Ground(_road_ground(rng, half, _vary(rng, (0.16, 0.24, 0.08))))
    return Scene("road", light, name, tuple(extras), picture)


def _field_from_air(rng: Rng) -> Scene:
    name, roof_colour = _pick(rng, "red", "gray", "brown")
    crops = (
        (0.16, 0.3, 0.07),
        (0.5, 0.42, 0.16),
        (0.28, 0.2, 0.12),
        (0.3, 0.4, 0.1),
        (0.62, 0.55, 0.12),
        (0.1, 0.22, 0.06),
    )
    palette = np.asarray([_vary(rng, crops[int(k)]) for k in rng.permutation(6)], np.float32)
    angle = np.radians(_u(rng, 0, 90))
    c, s = float(np.cos(angle)), float(np.sin(angle))
    wide, high, seed = _u(rng, 28, 55), _u(rng, 40, 80), int(rng.integers(1000))
    row = _u(rng, 1.6, 3.2)

    def material(x: Array, y: Array, axis: Array) -> Array:
        u, v = c * x + s * y, c * y - s * x
        j = np.floor(v / high)
        shifted = u + 17 * (j % 3)
        i = np.floor(shifted / wide)
        key = ((i * 7 + j * 13 + seed) % 6).astype(int)
        colour = palette[key] * (1 + 0.35 * noise(u, v, 60.0) + 0.2 * noise(u, v, 9.0))[:, None]
        across = np.where(key % 2 == 0, u, v)
        ridge = (across / row - np.floor(across / row) < 0.45) & (key != 3)
        colour = colour * np.where(ridge, np.float32(0.72), np.float32(1))[:, None]
        track = (np.abs(v / high - j - 0.02) < 1.6 / high) | (np.abs(shifted / wide - i - 0.02) < 0.5 / wide)
        path = np.abs(v / high - j - 0.02) < 1.6 / high
        colour = np.where(track[:, None], _rgb(0.13, 0.2, 0.06), colour)
        return np.where(path[:, None], _rgb(0.5, 0.43, 0.32), colour)

    parts: list[Part] = []
    altitude = _u(rng, 38, 75)
    pitch = _u(rng, -62, -30)
    reach = altitude / float(np.tan(np.radians(-pitch)))
    roof = plain(roof_colour, 0.15)
    wall = plain((0.62, 0.6, 0.55))
    for _ in range(int(rng.integers(1, 4))):
        x, y = _u(rng, -18, 18), reach + _u(rng, -14, 20)
        turned, long, deep = _u(rng, 0, 180), _u(rng, 9, 18), _u(rng, 6, 9)
        parts += [
            box((x, y, 2), (long, deep, 4), wall, yaw=turned),
            box((x, y, 4), (long + 0.6, deep * 0.72, deep * 0.72), roof, yaw=turned, roll=0.0, pitch=45.0),
        ]
    for _ in range(int(rng.integers(6, 20))):
        x, y, size = _u(rng, -50, 50), reach + _u(rng, -30, 70), _u(rng, 1.8, 4)
        leaf = blend(_vary(rng, (0.08, 0.18, 0.05)), (0.03, 0.08, 0.02), 3.0, 2.5)
        parts.append(ball((x, y, size * 0.8), (size, size, size), leaf, rough=1.4))
    camera = Camera((0, 0, altitude), _u(rng, -20, 20), pitch, view=_u(rng, 58, 75))
    picture = Picture(parts, camera, Ground(material))
    light = _outdoor(rng, picture, 0.2, 0.0015)
    extras = ("many trees",) if len(parts) > 16 else ()
    return Scene("field_from_air", light, name, extras, picture)


def _high_rise_facade(rng: Rng) -> Scene:
    name, colour = _pick(rng, "gray", "white", "brown", "red", "blue")
    parts: list[Part] = []
    picture = Picture(parts, Camera((0, 0, _u(rng, 18, 40)), _u(rng, -12, 12), _u(rng, 2, 26), view=_u(rng, 60, 78)))
    light = _outdoor(rng, picture, 0.3, 0.003)
    lit = _u(rng, 0.25, 0.5) if light == "dusk" else _u(rng, 0, 0.05)
    storey, cell = 3.2, _u(rng, 2.2, 3.6)
    share = (_u(rng, 0.5, 0.9), _u(rng, 0.45, 0.7))
    glass = _vary(rng, ((0.1, 0.14, 0.2), (0.2, 0.35, 0.45), (0.08, 0.08, 0.1))[int(rng.integers(3))])
    wide, distance, turned = _u(rng, 14, 24), _u(rng, 18, 28), _u(rng, -38, 38)
    x = _u(rng, -5, 5)
    high = storey * 2 * int(rng.integers(9, 14))
    wall = windows(colour, glass, cell, storey, share, lit, int(rng.integers(999)))
    parts.append(box((x, distance + wide / 2, high / 2), (wide, wide, high), wall, yaw=turned))
    extras = []
    if _chance(rng, 0.5):
        slab = plain(_vary(rng, (0.6, 0.6, 0.58)))
        face = np.radians(turned)
        out = np.array([np.sin(face), -np.cos(face), 0])
        middle = np.array([x, distance + wide / 2, 0.0]) + out * (wide / 2 + 0.7)
        side = np.array([np.cos(face), np.sin(face), 0])
        for level in range(1, int(high / storey)):
            for shift in (-0.28, 0.28):
                place = middle + side * shift * wide
                where = (place[0], place[1], level * storey - 1.1)
                parts.append(box(where, (wide * 0.22, 1.4, 0.9), slab, yaw=turned))
        extras.append("balconies")
    roof = plain((0.3, 0.3, 0.31))
    parts.append(box((x, distance + wide / 2, high + 0.4), (wide + 0.6, wide + 0.6, 0.8), roof, yaw=turned))
    for _ in range(int(rng.integers(3, 8))):
        far, low = _u(rng, 70, 160), 6.4 * int(rng.integers(3, 9))
        tone = _vary(rng, (0.45, 0.45, 0.47), 0.3)
        block = windows(tone, (0.15, 0.18, 0.22), 4.0, 3.2, (0.6, 0.5), lit, int(rng.integers(99)))
        parts.append(
            box((_u(rng, -90, 90), far, low / 2), (_u(rng, 14, 26), 18, low), block, yaw=_u(rng, -30, 30), casts=False)
        )
    picture.ground = Ground(plain((0.25, 0.25, 0.25), 0.3, 40.0))
    return Scene("high_rise_facade", light, name, tuple(extras), picture)


def _power_line(rng: Rng) -> Scene:
    name, colour = _pick(rng, "brown", "green", "white")
    parts: list[Part] = []
    picture = Picture(parts, Camera((0, 0, _u(rng, 3, 22)), _u(rng, -6, 6), _u(rng, 2, 16), view=_u(rng, 60, 75)))
    light = _outdoor(rng, picture, 0.3, 0.003)
    steel = plain(_vary(rng, (0.17, 0.18, 0.19), 0.3), 0.1)
    glassy = plain(colour, 0.05)
    wire = plain((0.05, 0.05, 0.06))
    heading = np.radians(_u(rng, -35, 35))
    along = np.array([np.sin(heading), np.cos(heading), 0.0])
    side = np.array([along[1], -along[0], 0.0])
    first = np.array([_u(rng, -7, 7), _u(rng, 22, 32), 0.0])
    high, foot = _u(rng, 24, 32), _u(rng, 2.5, 3.6)
    span = _u(rng, 45, 70)
    spots = [first + along * span * k for k in (0, 1, 2)]
    levels = (0.66, 0.8, 0.93) if _chance(rng, 0.6) else (0.78, 0.92)
    arms = [_u(rng, 4.5, 6.5) * (1 - 0.12 * k) for k in range(len(levels))]
    for number, spot in enumerate(spots):
        thick = 0.16 + 0.12 * number
        corners = [spot + side * a * foot + along * b * foot for a in (-1, 1) for b in (-1, 1)]
        neck = [spot + side * a * 0.6 + along * b * 0.6 + (0, 0, high * 0.62) for a in (-1, 1) for b in (-1, 1)]
        for low, top in zip(corners, neck, strict=True):
            parts.append(rod(low, top, thick, steel))
            parts.append(rod(top, top + np.array((0, 0, high * 0.36)), thick * 0.8, steel))
        if number < 2:
            for share in (0.15, 0.32, 0.47, 0.6):
                a = [low + (top - low) * share / 0.62 for low, top in zip(corners, neck, strict=True)]
                b = [low + (top - low) * min(share + 0.15, 0.62) / 0.62 for low, top in zip(corners, neck, strict=True)]
                for p, q in ((0, 2), (0, 1), (2, 3), (1, 3)):
                    parts.append(rod(a[p], b[q], thick * 0.6, steel, casts=False))
                    parts.append(rod(a[q], b[p], thick * 0.6, steel, casts=False))
        for level, arm in zip(levels, arms, strict=True):
            z = (0, 0, high * level)
            parts.append(rod(spot - side * arm + z, spot + side * arm + z, thick, steel))
            for end in (-1, 1):
                tip = spot + side * end * arm + z
                parts.append(rod(tip - side * end * arm + (0, 0, 1.2), tip, thick * 0.6, steel, casts=False))
                parts.append(rod(tip, tip - (0, 0, 1.5), thick * 1.1, glassy))
    chain = [first - along * span, *spots]
    for level, arm in zip(levels, arms, strict=True):
        for end in (-1, 1):
            shift = side * end * arm + (0, 0, high * level - 1.5)
            for k in range(3):
                start, stop = chain[k] + shift, chain[k + 1] + shift
                steps = np.linspace(0, 1, 7)
                sag = 4 * steps * (1 - steps) * span * 0.05
                points = start + (stop - start) * steps[:, None] - np.array([0, 0, 1.0]) * sag[:, None]
                for j in range(6):
                    reach = float(np.sqrt((((points[j] + points[j + 1]) / 2 - picture.camera.place) ** 2).sum()))
                    parts.append(rod(points[j], points[j + 1], 0.04 + 0.0032 * reach, wire, casts=False))
    grass = _vary(rng, ((0.2, 0.28, 0.1), (0.38, 0.36, 0.16), (0.16, 0.22, 0.08))[int(rng.integers(3))])
    for _ in range(int(rng.integers(3, 9))):
        x, y, size = _u(rng, -60, 60), _u(rng, 50, 120), _u(rng, 3, 6)
        leaf = blend(_vary(rng, (0.1, 0.18, 0.06)), (0.04, 0.08, 0.02), 4.0, 2.5)
        parts.append(ball((x, y, size * 0.6), (size * 1.5, size, size), leaf, rough=1.3, casts=False))
    picture.ground = Ground(blend(grass, (grass[0] * 0.7, grass[1] * 0.75, grass[2] * 0.6), 14.0), rough=0.4, wave=2)
    return Scene("power_line", light, name, ("three levels of wires",) if len(levels) == 3 else (), picture)


def _mountain_trail(rng: Rng) -> Scene:
    name, tone = (
        ("gray", _vary(rng, (0.45, 0.44, 0.42))) if _chance(rng, 0.5) else ("brown", _vary(rng, (0.48, 0.36, 0.24)))
    )
    parts: list[Part] = []
    picture = Picture(parts, Camera((0, 0, _u(rng, 1.6, 2.8)), _u(rng, -10, 10), _u(rng, -7, 3), view=_u(rng, 60, 78)))
    light = _outdoor(rng, picture, 0.25, 0.004)
    far = (0.45, 0.52, 0.62) if light == "daylight" else (0.35, 0.28, 0.4)
    near = _vary(rng, (0.28, 0.3, 0.24), 0.2)
    snow = _u(rng, 0.35, 0.7) if _chance(rng, 0.7) else 2.0
    middle: Colour = (far[0] * 0.75, far[1] * 0.75, far[2] * 0.72)
    picture.sky.ridges = (
        (_u(rng, 0.28, 0.42), far, snow),
        (_u(rng, 0.16, 0.26), middle, snow + 0.25),
        (_u(rng, 0.06, 0.13), near, 2.0),
    )
    meadow = _vary(rng, ((0.26, 0.3, 0.12), (0.36, 0.33, 0.22), (0.3, 0.3, 0.28))[int(rng.integers(3))])
    soil, grass = (
        blend(tone, (tone[0] * 0.7, tone[1] * 0.7, tone[2] * 0.7), 1.2, 2.0),
        blend(meadow, (0.3, 0.29, 0.27), 4.0, 1.6),
    )
    bend, phase, width = _u(rng, 1.0, 2.6), _u(rng, 0, 6), _u(rng, 0.7, 1.1)

    def material(x: Array, y: Array, axis: Array) -> Array:
        middle_line = bend * (np.sin(y / 5 + phase) - np.sin(phase)) * np.clip(y / 8, 0, 2.5)
        off = np.abs(x - middle_line) + 0.35 * noise(x, y, 3.0)
        return np.where((off < width)[:, None], soil(x, y, axis), grass(x, y, axis))

    stone_tone = _vary(rng, (0.42, 0.4, 0.38))
    stone = blend(stone_tone, (stone_tone[0] * 0.5, stone_tone[1] * 0.5, stone_tone[2] * 0.5), 0.9, 1.6)
    for _ in range(int(rng.integers(22, 40))):
        y = 2.5 + 26 * _u(rng, 0, 1) ** 1.5
        line = bend * (np.sin(y / 5 + phase) - np.sin(phase)) * np.clip(y / 8, 0, 2.5)
        gap = _u(rng, 0.8, 9) * (1 if _chance(rng, 0.5) else -1)
        size = _u(rng, 0.12, 0.4) + 0.1 * abs(gap) * _u(rng, 0.3, 1)
        parts.append(_rock(rng, float(line) + gap, y, 0, size, stone))
    for side in (-1, 1):
        if _chance(rng, 0.6):
            x = side * _u(rng, 6, 11)
            crag = (_u(rng, 2.5, 4), _u(rng, 5, 8), _u(rng, 2, 6))
            parts.append(ball((x, _u(rng, 9, 16), 0), crag, stone, yaw=_u(rng, -30, 30), rough=1.2))
    extras = []
    if _chance(rng, 0.4):
        for _ in range(int(rng.integers(2, 6))):
            parts += _tree(
                rng, _u(rng, 4, 12) * (1 if _chance(rng, 0.5) else -1), _u(rng, 14, 30), _u(rng, 2.5, 4.5), True
            )
        extras.append("a few conifers")
    if snow < 1:
        extras.append("snow on the peaks")
    picture.ground = Ground(material, rough=0.8, wave=0.7)
    return Scene("mountain_trail", light, name, tuple(extras), picture)


def _forest(rng: Rng) -> Scene:
    autumn = _chance(rng, 0.3)
    name = "orange" if autumn else "green"
    leaf_tone = _vary(rng, (0.5, 0.26, 0.05) if autumn else (0.1, 0.24, 0.05), 0.25)
    parts: list[Part] = []
    picture = Picture(parts, Camera((0, 0, _u(rng, 1.3, 2.0)), _u(rng, -15, 15), _u(rng, -6, 8), view=_u(rng, 62, 80)))
    light = _outdoor(rng, picture, 0.2, 0.012)
    bark_tone = _vary(rng, ((0.2, 0.15, 0.1), (0.3, 0.27, 0.24), (0.16, 0.11, 0.07))[int(rng.integers(3))])
    bark = blend(bark_tone, (bark_tone[0] * 0.45, bark_tone[1] * 0.45, bark_tone[2] * 0.4), 0.5, 2.5)
    leaves = blend(leaf_tone, (leaf_tone[0] * 0.3, leaf_tone[1] * 0.35, leaf_tone[2] * 0.3), 2.5, 3.0)
    count = int(rng.integers(20, 32))
    for k in range(count):
        y = 2.8 + 20 * ((k + _u(rng, 0, 1)) / count) ** 1.2
        x = _u(rng, -1, 1) * (1.5 + 0.75 * y)
        if abs(x) < 0.5:
            x += 0.8
        thick = _u(rng, 0.1, 0.28)
        parts.append(rod((x, y, -0.2), (x + _u(rng, -0.7, 0.7), y + _u(rng, -0.4, 0.4), 14), thick, bark, rough=0.5))
        if k % 4 == 0:
            tip = (x + _u(rng, -0.9, 0.9), y - _u(rng, 0.2, 0.7), 0.02)
            parts.append(rod((x, y, 0.25), tip, thick * 0.5, bark))
    for _ in range(14):
        y = _u(rng, 6, 22)
        wide = _u(rng, 1.6, 3.2)
        parts.append(
            ball((_u(rng, -1, 1) * (2 + 0.8 * y), y, _u(rng, 4.5, 8)), (wide, wide, wide * 0.6), leaves, rough=1.8)
        )
    for _ in range(9):
        y = _u(rng, 4, 16)
        wide = _u(rng, 0.25, 0.8)
        side = 1 if _chance(rng, 0.5) else -1
        parts.append(
            ball((side * _u(rng, 0.8, 1 + 0.6 * y), y, wide * 0.4), (wide, wide, wide * 0.7), leaves, rough=1.8)
        )
    # Leaves behind leaves close the view.
    picture.sky.ridges = (
        (1.1, (leaf_tone[0] * 0.7, leaf_tone[1] * 0.75, leaf_tone[2] * 0.6), 2.0),
        (0.3, (0.1, 0.12, 0.06), 2.0),
    )
    picture.air = Air(
        (leaf_tone[0] * 0.6 + 0.1, leaf_tone[1] * 0.6 + 0.12, leaf_tone[2] * 0.5 + 0.08), (0.03, 0.03, 0.03)
    )
    extras = []
    if _chance(rng, 0.45):
        y, x = _u(rng, 3.5, 6), _u(rng, -1, 1)
        lean = _u(rng, -1.2, 1.2)
        moss = blend(bark_tone, (0.16, 0.25, 0.06), 0.7, 2.5)
        parts.append(rod((x - 2.5, y - lean, 0.2), (x + 2.5, y + lean, 0.35), _u(rng, 0.18, 0.3), moss, rough=0.5))
        extras.append("a fallen trunk")
    litter = blend((0.26, 0.17, 0.08) if autumn else (0.2, 0.17, 0.09), leaf_tone, 1.6, 2.0)
    picture.ground = Ground(litter, rough=1.0, wave=0.5)
    return Scene("forest", light, name, tuple(extras), picture)


def _rubble(rng: Rng) -> Scene:
    name, brick_tone = (
        ("red", _vary(rng, (0.5, 0.18, 0.12))) if _chance(rng, 0.65) else ("yellow", _vary(rng, (0.6, 0.48, 0.28)))
    )
    parts: list[Part] = []
    picture = Picture(parts, Camera((0, 0, _u(rng, 1.4, 2.6)), _u(rng, -10, 10), _u(rng, -12, 0), view=_u(rng, 60, 78)))
    light = _outdoor(rng, picture, 0.2, 0.012)
    dust = _vary(rng, (0.55, 0.5, 0.43), 0.1)
    picture.air = Air((dust[0] * 1.15, dust[1] * 1.15, dust[2] * 1.15), (0.02, 0.021, 0.022))
    picture.sky.horizon = (dust[0] * 1.2, dust[1] * 1.2, dust[2] * 1.2)
    concrete_tone = _vary(rng, (0.47, 0.46, 0.44), 0.12)
    concrete = blend(concrete_tone, (0.3, 0.29, 0.27), 2.0, 0.9)
    bricks = tiles(brick_tone, (0.5, 0.47, 0.42), 0.3, 0.1, 0.012, 0.5, 0.3)
    loose = plain(brick_tone, 0.25, 0.5)
    heap = blend((0.36, 0.33, 0.29), (0.24, 0.2, 0.17), 0.7, 2.5)
    for _ in range(4):
        where = (_u(rng, -5, 5), _u(rng, 8, 13), -0.3)
        parts.append(ball(where, (_u(rng, 2, 4.5), _u(rng, 1.5, 2.5), _u(rng, 0.7, 1.7)), heap, rough=1.8))
    for _ in range(int(rng.integers(16, 22))):
        y = 3.5 + 9 * _u(rng, 0, 1)
        where = (_u(rng, -1, 1) * (1 + 0.6 * y), y, _u(rng, 0.1, 0.4 + 0.12 * y))
        size = (_u(rng, 0.8, 2.6), _u(rng, 0.7, 2.0), _u(rng, 0.14, 0.28))
        parts.append(
            box(where, size, concrete, yaw=_u(rng, 0, 180), pitch=_u(rng, -42, 42), roll=_u(rng, -42, 42), rough=0.3)
        )
    for _ in range(int(rng.integers(18, 30))):
        y = 2.2 + 7 * _u(rng, 0, 1)
        where = (_u(rng, -1, 1) * (1 + 0.6 * y), y, _u(rng, 0.03, 0.1 + 0.06 * y))
        scale = _u(rng, 0.7, 1.7)
        turned = (_u(rng, 0, 180), _u(rng, -40, 40), _u(rng, -40, 40))
        material = loose if _chance(rng, 0.65) else concrete
        parts.append(
            box(
                where,
                (0.3 * scale, 0.16 * scale, 0.12 * scale),
                material,
                yaw=turned[0],
                pitch=turned[1],
                roll=turned[2],
            )
        )
    steel = plain((0.25, 0.13, 0.08))
    for _ in range(int(rng.integers(3, 8))):
        x, y, z = _u(rng, -3, 3), _u(rng, 4, 8), _u(rng, 0.2, 0.9)
        parts.append(
            rod((x, y, z), (x + _u(rng, -0.8, 0.8), y + _u(rng, -0.5, 0.5), z + _u(rng, 0.4, 1.3)), 0.025, steel)
        )
    # What still stands: a stepped ruin of brick or with empty windows.
    x, y = _u(rng, -7, -2) * (1 if _chance(rng, 0.5) else -1), _u(rng, 12, 16)
    standing = bricks if _chance(rng, 0.5) else windows(concrete_tone, (0.05, 0.05, 0.05), 2.2, 2.8, (0.45, 0.5))
    for step in range(4):
        high = _u(rng, 2, 8)
        parts.append(box((x + (step - 1.5) * 2.1, y + _u(rng, 0, 0.6), high / 2), (2.1, 0.5, high), standing))
    parts.append(box((x * -0.6, y + 4, 1.6), (6, 0.5, _u(rng, 2, 6)), bricks, roll=_u(rng, -14, 14)))
    ground = blend((0.4, 0.37, 0.33), (0.28, 0.24, 0.2), 1.4, 2.0)
    picture.ground = Ground(ground, rough=1.2, wave=0.4)
    return Scene("rubble", light, name, (), picture)


def _flooded_street(rng: Rng) -> Scene:
    name, colour = _pick(rng, "red", "blue", "white", "yellow")
    half = _u(rng, 4.0, 6.0)
    parts: list[Part] = []
    picture = Picture(
        parts,
        Camera((_u(rng, -1.5, 1.5), 0, _u(rng, 1.8, 4.2)), _u(rng, -8, 8), _u(rng, -12, -3), view=_u(rng, 60, 78)),
    )
    light = _outdoor(rng, picture, 0.25, 0.006)
    picture.sky.clouds = max(picture.sky.clouds, 0.6)
    lit = 0.2 if light == "dusk" else 0.0
    for side in (-1, 1):
        y = _u(rng, 4, 8)
        while y < 60:
            deep, wide, high = _u(rng, 7, 12), _u(rng, 7, 10), _u(rng, 5, 10)
            house = _house(rng, side * (half + wide / 2), y + deep / 2, wide, deep, high, lit)
            for part in house:
                part.centre[2] -= _u(rng, 1.0, 1.1)
            parts += house
            y += deep + _u(rng, 0.5, 4)
    parts += _car(rng, _u(rng, -0.5, 0.5) * half, _u(rng, 8, 13), colour, yaw=_u(rng, -50, 50), z=-_u(rng, 0.65, 0.85))
    if _chance(rng, 0.5):
        other = _vary(rng, list(COLOURS.values())[int(rng.integers(8))])
        parts += _car(
            rng, _u(rng, -0.6, 0.6) * half, _u(rng, 15, 24), other, yaw=_u(rng, -70, 70), z=-_u(rng, 0.6, 0.9)
        )
    metal = plain((0.3, 0.3, 0.31))
    for y in (7.0, 16.0, 27.0):
        x = (half - 0.8) * (1 if _chance(rng, 0.5) else -1)
        parts.append(rod((x, y, -1), (x + _u(rng, -0.2, 0.2), y, _u(rng, 3, 4.5)), 0.06, metal))
    wood = plain((0.35, 0.25, 0.14), 0.2)
    for _ in range(int(rng.integers(3, 10))):
        where = (_u(rng, -0.8, 0.8) * half, _u(rng, 4, 14), 0.03)
        parts.append(box(where, (_u(rng, 0.3, 1.4), _u(rng, 0.12, 0.4), 0.1), wood, yaw=_u(rng, 0, 180)))
    extras = []
    if _chance(rng, 0.5):
        for y in (10.0, 20.0):
            parts += _tree(rng, (half - 1) * (1 if _chance(rng, 0.5) else -1), y, _u(rng, 4, 6), z=-1)
        extras.append("trees")
    brown = _vary(rng, ((0.3, 0.22, 0.12), (0.25, 0.21, 0.14), (0.3, 0.26, 0.17))[int(rng.integers(3))])
    water = blend(brown, (brown[0] * 0.8, brown[1] * 0.8, brown[2] * 0.8), 6.0, 0.8)
    picture.ground = Ground(water, water=_u(rng, 0.55, 0.85), rough=_u(rng, 0.08, 0.2), wave=0.8)
    return Scene("flooded_street", light, name, tuple(extras), picture)


def _harbour(rng: Rng) -> Scene:
    name, colour = _pick(rng, "red", "blue", "green", "gray", "white")
    parts: list[Part] = []
    side = 1 if _chance(rng, 0.5) else -1
    camera = Camera((0, 0, _u(rng, 2.6, 5.0)), -side * _u(rng, 4, 16), _u(rng, -9, 0), view=_u(rng, 64, 80))
    picture = Picture(parts, camera)
    light = _outdoor(rng, picture, 0.25, 0.003)
    stone = tiles((0.45, 0.43, 0.4), (0.3, 0.29, 0.27), 1.6, 1.6, 0.03, 0.5)
    edge = -side * _u(rng, 0.2, 1.4)  # the water begins here; the quay lies on the other side
    parts.append(box((edge - side * 15, 40, -1), (30, 120, 3.0), stone))
    rim = plain((0.6, 0.5, 0.1)) if _chance(rng, 0.5) else plain((0.5, 0.5, 0.48))
    parts.append(box((edge - side * 0.2, 40, 0.55), (0.4, 120, 0.16), rim))
    iron = plain((0.06, 0.06, 0.07), 0.2)
    for y in (4.5, 9.5, 15.0, 22.0, 30.0):
        x = edge - side * 0.8
        parts += [rod((x, y, 0.5), (x, y, 0.95), 0.16, iron), ball((x, y, 0.98), (0.26, 0.26, 0.12), iron)]
    hull = stripes(colour, (0.35, 0.06, 0.05), 40.0, "v", 0.5)
    length, wide, high = _u(rng, 24, 40), _u(rng, 5, 7), _u(rng, 3.0, 4.5)
    x, y = edge + side * (wide / 2 + _u(rng, 0.8, 3)), _u(rng, 10, 15)
    z = high / 2 - 1.0
    parts.append(box((x, y + length / 2, z), (wide, length, high), hull))
    parts.append(box((x, y + 0.2, z + 0.3), (wide * 0.71, wide * 0.71, high * 0.96), hull, yaw=45))
    rail = plain((0.8, 0.8, 0.8))
    parts.append(box((x, y + length / 2, z + high / 2 + 0.5), (wide, length, 0.08), rail, casts=False))
    white = windows(
        _vary(rng, (0.8, 0.8, 0.78), 0.06), (0.08, 0.1, 0.14), 1.6, 2.0, (0.6, 0.4), 0.3 if light == "dusk" else 0, 3
    )
    house = y + length * _u(rng, 0.35, 0.7)
    parts.append(box((x, house, z + high / 2 + 2), (wide * 0.75, 6, 4), white))
    parts.append(box((x, house, z + high / 2 + 5), (wide * 0.6, 3.6, 2), white))
    funnel = plain(_vary(rng, COLOURS["red"]))
    parts.append(rod((x, house + 2, z + high / 2 + 4), (x, house + 2, z + high / 2 + 8), 0.8, funnel))
    parts.append(rod((x, y + 4, z + high / 2), (x, y + 4, z + high / 2 + 6), 0.12, rail))
    steel = plain(_vary(rng, COLOURS["yellow"] if _chance(rng, 0.5) else (0.15, 0.3, 0.55)), 0.05)
    cx, cy = edge - side * _u(rng, 5, 8), _u(rng, 22, 34)
    tall = _u(rng, 12, 17)
    for dx in (-1.8, 1.8):
        for dy in (-1.8, 1.8):
            parts.append(rod((cx + dx, cy + dy, 0.5), (cx + dx * 0.5, cy + dy * 0.5, tall), 0.25, steel))
    tip = (cx + side * _u(rng, 10, 14), cy - 2, tall + _u(rng, 3, 8))
    parts += [
        box((cx, cy, tall + 1), (3.4, 3.4, 2.4), steel),
        rod((cx, cy, tall + 1), tip, 0.3, steel),
        rod((cx, cy, tall + 5), tip, 0.09, iron, casts=False),
        rod((cx, cy, tall), (cx, cy, tall + 5), 0.25, steel),
        rod(tip, (tip[0], tip[1], _u(rng, 5, 8)), 0.07, iron, casts=False),
    ]
    extras = []
    if _chance(rng, 0.6):
        for k in range(int(rng.integers(2, 6))):
            tone = _vary(rng, list(COLOURS.values())[int(rng.integers(8))])
            steel_wall = stripes(tone, (tone[0] * 0.7, tone[1] * 0.7, tone[2] * 0.7), 0.4)
            where = (
                edge - side * _u(rng, 4.5, 6.5),
                13 + 3 * k + _u(rng, 0, 1),
                1.8 + 2.5 * int(rng.integers(2)) * (k % 2),
            )
            parts.append(box(where, (2.5, 2.8, 2.5), steel_wall))
        extras.append("containers")
    sea = _vary(rng, ((0.07, 0.17, 0.22), (0.08, 0.18, 0.15), (0.1, 0.14, 0.2))[int(rng.integers(3))])
    material = blend(sea, (sea[0] * 0.7, sea[1] * 0.7, sea[2] * 0.75), 5.0, 1.0)
    picture.ground = Ground(material, height=-0.9, water=_u(rng, 0.5, 0.75), rough=_u(rng, 0.15, 0.4), wave=0.9)
    picture.sky.ridges = ((_u(rng, 0.02, 0.05), (0.3, 0.34, 0.38), 2.0),)
    return Scene("harbour", light, name, tuple(extras), picture)


_BUILDERS: dict[str, Callable[[Rng], Scene]] = {
    "underwater_pipeline": _underwater_pipeline,
    "coral_reef": _coral_reef,
    "warehouse": _warehouse,
    "corridor": _corridor,
    "kitchen": _kitchen,
    "office": _office,
    "staircase": _staircase,
    "road": _road,
    "field_from_air": _field_from_air,
    "high_rise_facade": _high_rise_facade,
    "power_line": _power_line,
    "mountain_trail": _mountain_trail,
    "forest": _forest,
    "rubble": _rubble,
    "flooded_street": _flooded_street,
    "harbour": _harbour,
}
