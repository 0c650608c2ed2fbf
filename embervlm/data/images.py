"""Safe decoding of pictures from anywhere: every picture that training or selection looks at comes through here."""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from embervlm.data.sample import DataError, PackedPicture, Picture

__all__ = ["ALLOWED_FORMATS", "MAX_BYTES", "MAX_PIXELS", "MAX_SIDE", "ImageError", "decode_image", "read_picture"]

ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
MAX_BYTES = 64 * 1024**2
MAX_PIXELS = 40_000_000
MAX_SIDE = 20_000

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow's readers of the five formats raise on damaged files. OSError covers UnidentifiedImageError, LookupError
# covers KeyError and IndexError, ArithmeticError covers OverflowError and ZeroDivisionError, RuntimeError covers
# NotImplementedError and RecursionError. An assertion fails where a PNG of palette colours has no palette.
_PILLOW_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    SyntaxError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

# Pillow warns about damaged metadata and large sizes; both are decided here. Other modules' warnings stay.
warnings.filterwarnings("ignore", module=r"PIL(\.|$)")


class ImageError(ValueError):
    """A picture that cannot be used; the message names it and the reason in one line."""


def decode_image(source: str | Path | bytes, *, name: str | None = None) -> Image.Image:
    """Decode a picture into upright RGB.

    Only the first frame is decoded, EXIF rotation is applied, transparency is laid on white and 16-bit grey is scaled
    to 8 bits. Size in bytes and pixels is checked before anything is decoded.

    Args:
        source: a file, or an encoded picture's bytes.
        name: what messages call it; the file's path unless given.

    Returns:
        the picture in mode RGB, at most ``MAX_PIXELS`` pixels.

    Raises:
        ImageError: missing, too large, cut off, damaged, or not one of ``ALLOWED_FORMATS``.
    """
    name = name or ("picture" if isinstance(source, bytes) else str(source))
    data = source if isinstance(source, bytes) else _read(Path(source), name)
    if not data:
        raise ImageError(f"{name}: the file is empty")
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name}: {len(data):,} bytes; at most {MAX_BYTES:,} are read")
    try:
        with Image.open(io.BytesIO(data), formats=ALLOWED_FORMATS) as picture:
            _check_size(picture, name)
            deep_colour = any(str(tile[3]).find("RGB;16") >= 0 for tile in picture.tile)
            picture.load()
            _check_size(picture, name)  # a GIF's frame can be larger than its header says
            return _turn_upright(_to_rgb(picture, deep_colour), picture)
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not a picture that can be read; expected {', '.join(ALLOWED_FORMATS)}") from None
    except _PILLOW_ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ImageError(f"{name}: damaged picture ({reason})") from None


def read_picture(source: Picture) -> Image.Image:
    """Read a picture from wherever it is, as :func:`decode_image` decodes it.

    Args:
        source: a file, or a place in a tar shard or an Arrow file.

    Raises:
        ImageError: as :func:`decode_image`; or nothing that can be read is at that place. Names file and position.
    """
    if isinstance(source, PackedPicture):
        data = _row(source) if source.size < 0 else _part(source)
        return decode_image(data, name=str(source))
    return decode_image(source)


def _part(source: PackedPicture) -> bytes:
    if source.size > MAX_BYTES or source.position < 0:
        raise ImageError(f"{source}: {source.size:,} bytes; at most {MAX_BYTES:,} are read")
    try:
        # A pipe in the place of a shard must not hold the run up.
        handle = os.open(source.file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ImageError(f"{source}: expected a tar file, found something that is no file")
            data = os.pread(handle, source.size, source.position)
        finally:
            os.close(handle)
    except OSError as error:
        raise ImageError(f"{source}: cannot read the file ({error.strerror or error})") from None
    if len(data) < source.size:
        raise ImageError(f"{source}: the file ends after {len(data):,} of the picture's {source.size:,} bytes")
    return data


def _row(source: PackedPicture) -> bytes:
    # Serving and export decode pictures too and need no Arrow.
    from embervlm.data.arrow_pairs import open_pairs

    try:
        found = open_pairs(source.file).picture(source.position)
    except DataError as error:
        raise ImageError(f"{source}: {error}") from None
    except IndexError:
        raise ImageError(f"{source}: the file has no such row") from None
    if found is None:
        raise ImageError(f"{source}: the row holds no picture, at most a path, which is not followed")
    if found.size > MAX_BYTES:
        raise ImageError(f"{source}: {found.size:,} bytes; at most {MAX_BYTES:,} are read")
    data: bytes = found.to_pybytes()
    return data


def _read(path: Path, name: str) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ImageError(f"{name}: expected a picture file, found something that is no file")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{name}: {status.st_size:,} bytes; at most {MAX_BYTES:,} are read")
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{name}: cannot read the file ({getattr(error, 'strerror', None) or error})") from None


def _check_size(picture: Image.Image, name: str) -> None:
    width, height = picture.size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: {width}x{height} pixels; a picture has at least one")
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(f"{name}: {width}x{height} pixels; at most {MAX_PIXELS:,} and {MAX_SIDE:,} a side are decoded")


def _to_rgb(picture: Image.Image, deep_colour: bool) -> Image.Image:
    """RGB on white. ``deep_colour``: the file holds 16 bits a channel, which Pillow has cut to 8."""
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.uint32)  # (height, width), 0..65535
        grey = ((np.minimum(values, 65535) + 128) // 257).astype(np.uint8)
        transparent = picture.info.get("transparency")
        if isinstance(transparent, int):
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    colour = picture.info.get("transparency")
    if deep_colour and picture.mode == "RGB" and isinstance(colour, tuple):
        picture.info["transparency"] = tuple(channel >> 8 for channel in colour)
    layer = picture.convert("RGBA")
    rgb = Image.new("RGB", layer.size, (255, 255, 255))
    rgb.paste(layer, mask=layer.getchannel("A"))
    return rgb


def _turn_upright(rgb: Image.Image, picture: Image.Image) -> Image.Image:
    """Apply the EXIF orientation; damaged EXIF data count as none, the picture itself is sound."""
    try:
        orientation = picture.getexif().get(_ORIENTATION_TAG, 1)
    except _PILLOW_ERRORS:
        return rgb
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return rgb if turn is None else rgb.transpose(turn)
