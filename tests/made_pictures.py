"""Pictures that the tests make: small ones, and one whose pixels are many and whose bytes are few."""

from __future__ import annotations

import io
import struct
import zlib

from PIL import Image


def picture(width: int = 40, height: int = 30, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (90, 60, 30)).save(file, kind)
    return file.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of many grey pixels in few bytes."""
    deflate, rows = zlib.compressobj(9), bytearray()
    for _ in range(height):
        rows += deflate.compress(bytes(width // 8 + 2))
    rows += deflate.flush()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(rows)) + chunk(b"IEND", b"")
