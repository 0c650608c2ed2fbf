"""Decoding: every hostile picture's outcome, and the colours and turn of sound ones."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embervlm.data import images
from embervlm.data.images import ImageError, decode_image


def _encoded(picture: Image.Image, format_: str, **options: object) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, format_, **options)
    return stream.getvalue()


def _png(width: int, height: int, depth: int, colour: int, rows: bytes, **chunks: bytes) -> bytes:
    """A PNG written by hand, for what Pillow can read but not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    extra = b"".join(chunk(name.encode(), data) for name, data in chunks.items())
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::UserWarning")  # pytest resets the filter that the module sets
def test_every_hostile_picture_has_its_known_outcome(shared: Path) -> None:
    hostile = shared / "hostile"
    manifest = json.loads((hostile / "images/MANIFEST.json").read_text())
    wrong = []
    for entry in manifest:
        expected = entry["pillow_allow"]
        try:
            picture = decode_image(hostile / entry["file"])
        except ImageError as error:
            assert str(error).startswith(str(hostile / entry["file"])) and "\n" not in str(error)
            outcome: object = False
        else:
            assert picture.mode == "RGB"
            outcome = sorted(picture.size)
        if outcome != (sorted(expected["size"]) if expected["ok"] else False):
            wrong.append((entry["file"], outcome))
    assert wrong == []
    assert (len(manifest), sum(entry["pillow_allow"]["ok"] for entry in manifest)) == (475, 198)


_DECODE_ALL = """
import json, resource, sys
from pathlib import Path
from embervlm.data.images import ImageError, decode_image

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

folder = Path(sys.argv[1])
files = [folder / entry["file"] for entry in json.loads((folder / "images/MANIFEST.json").read_text())]
before, sound = peak(), 0
for file in files:
    try:
        sound += decode_image(file) is not None
    except ImageError:
        pass
print(len(files), sound, peak() - before)
"""


def test_hostile_pictures_take_little_memory_and_end_no_process(shared: Path) -> None:
    command = [sys.executable, "-c", _DECODE_ALL, str(shared / "hostile")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    files, sound, grown = map(int, done.stdout.split())
    assert (files, sound) == (475, 198)
    assert grown <= 200, f"{grown} MiB"


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 256, 32768, 65535]], dtype=np.uint16)
    decoded = decode_image(_encoded(Image.fromarray(values), "PNG"))
    assert np.asarray(decoded)[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_sixteen_bit_transparent_colour_is_white() -> None:
    grey = _png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 513, 514), tRNS=struct.pack(">H", 513))
    assert np.asarray(decode_image(grey))[0].tolist() == [[255, 255, 255], [2, 2, 2]]
    colour = _png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 513, 1, 2, 40000, 1, 2), tRNS=struct.pack(">3H", 513, 1, 2))
    assert np.asarray(decode_image(colour))[0].tolist() == [[255, 255, 255], [156, 0, 0]]


def test_transparency_is_laid_on_white() -> None:
    half_red = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert decode_image(_encoded(half_red, "PNG")).getpixel((0, 0)) == (255, 127, 127)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    decoded = decode_image(_encoded(palette, "PNG", transparency=0))
    assert [decoded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (40, 50, 60)]
    grey = Image.new("LA", (1, 1), (0, 0))
    assert decode_image(_encoded(grey, "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_and_bilevel_become_rgb() -> None:
    cyan = decode_image(_encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100)).getpixel((4, 4))
    assert max(abs(one - other) for one, other in zip(cyan, (0, 255, 255), strict=True)) <= 3
    assert decode_image(_encoded(Image.new("1", (1, 1), 1), "PNG")).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("orientation", "corner"), [(1, (0, 0)), (3, (3, 1)), (6, (1, 0)), (8, (0, 3)), (5, (0, 0)), (99, (0, 0))]
)
def test_exif_rotation(orientation: int, corner: tuple[int, int]) -> None:
    picture = Image.new("RGB", (4, 2))
    picture.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_image(_encoded(picture, "PNG", exif=exif))
    assert decoded.size == ((2, 4) if orientation in (5, 6, 8) else (4, 2))
    assert decoded.getpixel(corner) == (255, 255, 255)


def test_first_frame_only() -> None:
    red, blue = Image.new("RGB", (3, 3), (255, 0, 0)), Image.new("RGB", (3, 3), (0, 0, 255))
    for format_ in ("GIF", "WEBP", "PNG"):
        data = _encoded(
            red, format_, save_all=True, append_images=[blue], **({"lossless": True} if format_ == "WEBP" else {})
        )
        assert decode_image(data).getpixel((1, 1)) == (255, 0, 0)


def test_cut_off_files_are_errors(shared: Path) -> None:
    data = next((shared / "fixtures/coco_captions/val2017").glob("*.jpg")).read_bytes()
    for length in (0, 1, 100, len(data) // 2, len(data) - 100):
        with pytest.raises(ImageError, match=r"^cut\.jpg: "):
            decode_image(data[:length], name="cut.jpg")
    png = _encoded(Image.effect_noise((40, 40), 50), "PNG")
    with pytest.raises(ImageError, match="damaged picture"):
        decode_image(png[: len(png) // 2])


def test_palette_colours_without_a_palette() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 8, 3, 0, 0, 0))
    file = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(72))) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match=r"damaged picture \(AssertionError\)"):
        decode_image(file)


def test_limits_come_before_decoding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = _encoded(Image.new("L", (30, 20)), "PNG")

    def refuse(picture: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    monkeypatch.setattr(images, "MAX_PIXELS", 599)
    with pytest.raises(ImageError, match=r"^picture: 30x20 pixels; at most 599 and 20,000 a side are decoded$"):
        decode_image(small)
    monkeypatch.setattr(images, "MAX_PIXELS", 600)
    monkeypatch.setattr(images, "MAX_SIDE", 29)
    with pytest.raises(ImageError, match="30x20 pixels"):
        decode_image(small)
    monkeypatch.setattr(images, "MAX_BYTES", 10)
    file = tmp_path / "big.png"
    file.write_bytes(small)
    for source in (small, file):
        with pytest.raises(ImageError, match=f"{len(small)} bytes; at most 10 are read"):
            decode_image(source)


def test_other_formats_and_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(
        ImageError, match=r"^picture: not a picture that can be read; expected JPEG, PNG, WEBP, GIF, BMP$"
    ):
        decode_image(_encoded(Image.new("RGB", (2, 2)), "TIFF"))
    with pytest.raises(ImageError, match=r"no\.jpg: cannot read the file \(No such file or directory\)"):
        decode_image(tmp_path / "no.jpg")
    with pytest.raises(ImageError, match="something that is no file"):
        decode_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="something that is no file"):
        decode_image(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="cannot read the file"):
        decode_image("nul\0.jpg")
