"""Members of a tar file by their headers alone: the CC3M reader takes pictures' places and captions from here.

The standard library's reader ends without a sign at a damaged header, takes declared sizes at their word and reads
extended headers of any size; what is read here comes from anywhere, hence this one, which is also faster.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from embervlm.data.sample import DataError

BLOCK = 512
MAX_NAME_CHARACTERS = 1_000
#: Of one extended header; long names and sizes beyond 8 GiB are written in such.
MAX_EXTENDED_BYTES = 64 * 1024
MAX_EXTENDED = 4

_WINDOW = 8 * BLOCK
_ZEROS = bytes(BLOCK)
_REGULAR = frozenset(b"07\0")
_FOLDER, _SPARSE, _GNU_NAME, _GNU_LINK, _PAX, _PAX_GLOBAL, _SOLARIS_PAX = b"5SLKxgX"
_HEADER_ONLY = frozenset(b"123456")  # links, devices, folders and pipes have no data, whatever size they state
_PAX_RECORD = re.compile(rb"([1-9]\d{0,5}) ([^=\n]+)=")


class Member(NamedTuple):
    """A member of a tar file.

    Attributes:
        name: as the file gives it, not to be trusted.
        position: of its data, in bytes.
        size: of its data, in bytes.
        is_folder: whether it is a folder.
        refused: why it must not be used, or None.
    """

    name: str
    position: int
    size: int
    is_folder: bool = False
    refused: str | None = None


class TarDamage(Exception):
    """Where and why a tar file cannot be read further."""


class TarFile:
    """A tar file that is open for reading.

    Args:
        path: the file.

    Raises:
        DataError: no regular file, or it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            # A pipe in the place of a shard must not hold the run up.
            self._handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise DataError(f"{path}: cannot open the file ({error.strerror or error})") from None
        status = os.fstat(self._handle)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._handle)
            raise DataError(f"{path}: expected a tar file, found something that is no file")
        self.size = status.st_size
        self._start, self._window = 0, b""

    def __enter__(self) -> TarFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def read(self, position: int, count: int) -> bytes:
        """``count`` bytes from ``position`` on; fewer at the file's end.

        Raises:
            DataError: the file cannot be read.
        """
        at = position - self._start
        if at < 0 or at + count > len(self._window):
            try:
                self._window = os.pread(self._handle, max(count, _WINDOW), position)
            except OSError as error:
                raise DataError(f"{self.path}: byte {position:,}: cannot be read ({error.strerror or error})") from None
            self._start, at = position, 0
        return self._window[at : at + count]

    def members(self) -> Iterator[Member]:
        """The members in order; see :func:`members`."""
        return members(self.read, self.size)


def members(read: Callable[[int, int], bytes], size: int) -> Iterator[Member]:
    """The members of a tar file (ustar, pax and GNU) in order; nothing but headers is read.

    Args:
        read: returns as many bytes from a position on.
        size: the file's bytes.

    Raises:
        TarDamage: a header is damaged, or the file is cut off.
    """
    position, extended = 0, 0
    name: str | None = None
    length: int | None = None
    sparse = False
    while True:
        block = read(position, BLOCK)
        if len(block) < BLOCK or block == _ZEROS:
            # Two blocks of zeros end the file; many writers leave them out.
            if block.strip(b"\0") or extended or (len(block) < BLOCK and block):
                raise TarDamage(f"byte {position:,}: cut off in a header")
            return
        _check_sum(block, position)
        kind, data = block[156], position + BLOCK
        stated = _number(block[124:136], position)
        if kind in (_GNU_NAME, _GNU_LINK, _PAX, _PAX_GLOBAL, _SOLARIS_PAX):
            extended += 1
            if not 0 <= stated <= MAX_EXTENDED_BYTES or extended > MAX_EXTENDED:
                raise TarDamage(f"byte {position:,}: an extended header of {stated:,} bytes, or too many of them")
            content = read(data, stated)
            if len(content) < stated:
                raise TarDamage(f"byte {position:,}: cut off in an extended header")
            if kind == _GNU_NAME:
                name = _text(content.split(b"\0", 1)[0])
            elif kind in (_PAX, _SOLARIS_PAX):
                records = _pax(content, position)
                name = _text(records[b"path"]) if b"path" in records else name
                length = _pax_size(records[b"size"], position) if b"size" in records else length
                sparse = sparse or any(key.startswith(b"GNU.sparse") for key in records)
            position = data + _blocks(stated)
            continue
        if kind == _SPARSE:
            more = block[482]
            while more:
                block_of_map = read(data, BLOCK)
                if len(block_of_map) < BLOCK:
                    raise TarDamage(f"byte {data:,}: cut off in a sparse member's map")
                more, data = block_of_map[504], data + BLOCK
        taken = stated if length is None else length
        called = _ustar_name(block) if name is None else name
        refused = None
        if kind == _SPARSE or sparse:
            refused = "a sparse member"
        elif taken < 0:
            refused = "a member of negative size"
        elif kind != _FOLDER and kind not in _REGULAR:
            refused = "a link, a device or a member of unknown kind"
        elif not called or len(called) > MAX_NAME_CHARACTERS or not called.isprintable():
            refused = "a member's name is empty, too long or not printable"
        elif called[0] == "/" or "\\" in called or ".." in called.split("/") or called[1:2] == ":":
            refused = "a member's name leaves the folder"
        end = data if kind in _HEADER_ONLY else data + _blocks(max(0, taken))
        # The padding after the last member's data may be missing, the data may not.
        if kind not in _HEADER_ONLY and data + max(0, taken) > size:
            left = max(0, size - data)
            raise TarDamage(f"byte {position:,}: {called!r:.80} states {taken:,} bytes, {left:,} follow")
        yield Member(called, data, max(0, taken), kind == _FOLDER, refused)
        position, extended, name, length, sparse = end, 0, None, None, False


def _check_sum(block: bytes, position: int) -> None:
    stated = block[148:156].strip(b" \0")
    # The eight bytes of the sum itself count as blanks.
    found = sum(block) - sum(block[148:156]) + 8 * 32
    if not stated.isdigit() or int(stated, 8 if not stated.strip(b"01234567") else 10) != found:
        raise TarDamage(f"byte {position:,}: no member's header (its check sum is wrong)")


def _number(field: bytes, position: int) -> int:
    if field[0] in (0o200, 0o377):  # base 256, for what octal digits cannot hold
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0o377 else 0)
    digits = field.split(b"\0", 1)[0].strip()
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise TarDamage(f"byte {position:,}: a size that is no number") from None


def _ustar_name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


def _pax(content: bytes, position: int) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(content) and content[at]:
        match = _PAX_RECORD.match(content, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(content) or content[end - 1] != 10:
            raise TarDamage(f"byte {position:,}: an extended header that cannot be read")
        records[match[2]] = content[match.end() : end - 1]
        at = end
    return records


def _pax_size(digits: bytes, position: int) -> int:
    if not re.fullmatch(rb"-?\d{1,18}", digits):
        raise TarDamage(f"byte {position:,}: a size that is no number")
    return int(digits)


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
