"""The ray caster hits what it should, and every kind of place renders to a picture of its own."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from embervlm.data.sample_data.render import (
    Air,
    Camera,
    Ground,
    Material,
    Picture,
    Sky,
    ball,
    box,
    encode_jpeg,
    plain,
    render,
    rod,
)
from embervlm.data.sample_data.scenes import COLOURS, KINDS, build_scene


def flat(colour: tuple[float, float, float]) -> Material:
    return plain(colour, 0.0)


def shot(picture: Picture, size: int = 64) -> np.ndarray:
    """The picture without noise or blur, as whole numbers that can be subtracted."""
    picture.grain = picture.soften = 0.0
    return render(picture, size, np.random.default_rng(0)).astype(int)


def red(pixels: np.ndarray) -> np.ndarray:
    return (pixels[..., 0] > 90) & (pixels[..., 1] < 60)


BLACK = Sky((0, 0, 0), (0, 0, 0), 0.0)


@pytest.mark.parametrize(
    ("part", "share"),
    [
        # Half angle 45 degrees: the picture is 2 x 10 m wide at a distance of 10 m.
        (box((0, 10.01, 0), (10, 0.02, 10), flat((0.9, 0, 0))), 0.25),
        (ball((0, 10, 0), (5, 0.01, 5), flat((0.9, 0, 0))), np.pi / 16),
        (rod((0, 10, 0), (0, 10.01, 0), 5, flat((0.9, 0, 0))), np.pi / 16),
    ],
)
def test_shapes_cover_what_geometry_says(part, share) -> None:
    pixels = shot(Picture([part], Camera((0, 0, 0), view=90), sun=(0, -1, 0.2), sky=BLACK), 200)
    assert red(pixels).mean() == pytest.approx(share, rel=0.04)


def test_nearer_parts_hide_farther_ones_in_any_order() -> None:
    near, far = box((0, 5, 0), (2, 1, 2), flat((0.9, 0, 0))), box((0, 9, 0), (2, 1, 2), flat((0, 0.9, 0)))
    for parts in ([near, far], [far, near]):
        middle = shot(Picture(parts, Camera((0, 0, 0)), sun=(0, -1, 0.2), sky=BLACK))[32, 32]
        assert middle[0] > 100
        assert middle[1] < 30


def test_a_part_throws_a_shadow_unless_told_not_to() -> None:
    def ground_brightness(casts: bool) -> float:
        roof = box((0, 5, 8), (6, 6, 0.2), flat((0.5, 0.5, 0.5)), casts=casts)
        picture = Picture([roof], Camera((0, 0, 2), pitch=-20), Ground(flat((0.5, 0.5, 0.5))), sun=(0, 0, 1), sky=BLACK)
        return float(shot(picture)[32, 32].mean())

    assert ground_brightness(True) < 0.8 * ground_brightness(False)


def test_water_swallows_red_first() -> None:
    wall = box((0, 20, 0), (60, 1, 60), flat((0.5, 0.5, 0.5)))
    picture = Picture([wall], Camera((0, 0, 0)), air=Air((0, 0, 0), (0.1, 0.02, 0.01)), under_water=True, sky=BLACK)
    r, g, b = shot(picture)[32, 32]
    assert r < g < b


def test_the_same_seed_gives_the_same_picture() -> None:
    def one(seed: int) -> bytes:
        rng = np.random.default_rng(seed)
        return render(build_scene("road", rng).picture, 48, rng).tobytes()

    assert one(3) == one(3)
    assert one(3) != one(4)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_renders_and_shows_something(kind: str) -> None:
    pictures = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        scene = build_scene(kind, rng)
        assert scene.kind == kind
        assert scene.light in ("daylight", "dusk", "artificial light")
        assert scene.colour in COLOURS
        pixels = render(scene.picture, 64, rng)
        assert pixels.shape == (64, 64, 3)
        assert pixels.dtype == np.uint8
        assert 15 < pixels.mean() < 240
        assert pixels.std() > 8
        pictures.append(pixels.astype(int))
    assert np.abs(pictures[0] - pictures[1]).mean() > 5


def test_the_pipe_is_in_view() -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        picture = build_scene("underwater_pipeline", rng).picture
        whole = render(picture, 48, np.random.default_rng(1)).astype(int)
        picture.parts = picture.parts[1:]
        without = render(picture, 48, np.random.default_rng(1)).astype(int)
        assert (np.abs(whole - without).max(2) > 6).mean() > 0.02


def test_jpeg_reads_back() -> None:
    pixels = np.full((32, 32, 3), 120, np.uint8)
    image = Image.open(io.BytesIO(encode_jpeg(pixels, 90)))
    assert image.format == "JPEG"
    assert image.size == (32, 32)
