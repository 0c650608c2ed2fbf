"""Tar shards of pictures with captions: which files a pattern names, what a shard holds, and its pairs from any place.

``stream`` makes training data of them. Members are read and grouped by webdataset; of that library only
``tar_file_iterator`` and ``group_by_keys`` are used, on files opened here, since other parts of it run commands and
unpickle.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import stat
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, BinaryIO

from embervlm.data.formats.record import MAX_TEXT_CHARACTERS, clean_line
from embervlm.data.images import MAX_BYTES
from embervlm.data.sample import DataError, Sample, Turn

DATASET = "shards"
MAX_SHARDS = 1_000_000
MAX_MEMBERS = 1_000_000
MAX_NAME_CHARACTERS = 1_000
MAX_TEXT_BYTES = 1024**2
#: Of one extended header; long names and sizes beyond 8 GiB are written in such.
MAX_EXTENDED_BYTES = 64 * 1024

#: Every so many pairs a shard's byte position is kept, so that reading can begin in its middle.
_STRIDE = 256
_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
_SUFFIXES = frozenset({*_PICTURES, "txt", "json"})
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")
_META = re.compile(r"__[^/]*__($|/)")
# As the tar reader tells compressed data by their first bytes.
_COMPRESSED = re.compile(rb"\x1f\x8b\x08|BZh.1AY&SY|\x5d\x00\x00\x80|\xfd7zXZ|\x28\xb5\x2f\xfd", re.DOTALL)
_EXTENDED = frozenset({tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, b"L", b"K"})


def names_shards(path: str | Path) -> bool:
    """Whether training data are named as shards (a pattern, a ``.tar`` file, an address) and not as a folder."""
    text = str(path)
    return not Path(text).is_dir() and ("{" in text or text.endswith(".tar") or _SCHEME.match(text) is not None)


def expand(pattern: str | Path) -> list[str]:
    """The files that a brace pattern names, in its order; several braces, and ranges and words in each, are allowed.

    ``{00..02}`` counts with leading zeros, ``{a,b}`` and ``{00..02,10..12}`` list.

    Raises:
        DataError: no local files (a URL, ``pipe:``), braces that do not close, or more than ``MAX_SHARDS`` files.
    """
    text = str(pattern)
    if _SCHEME.match(text):
        raise DataError(
            f"{text:.200}: shards are read from local or mounted files only, no URLs and no commands. "
            "Cure: mount the store, or copy the shards"
        )
    parts = re.split(r"(\{[^{}]*\})", text)
    if any("{" in part or "}" in part for part in parts[::2]):
        raise DataError(f"{text:.200}: braces that do not close or stand in one another; expected such as {{000..575}}")
    count = math.prod(_count(part) for part in parts[1::2])
    if count > MAX_SHARDS:
        raise DataError(f"{text:.200}: names {count:,} shards; at most {MAX_SHARDS:,} are read. Cure: larger shards")
    choices = [_choices(part) if number % 2 else [part] for number, part in enumerate(parts)]
    files = ["".join(chosen) for chosen in product(*choices)]
    if len(set(files)) < len(files):
        raise DataError(f"{text:.200}: names {Counter(files).most_common(1)[0][0]} more than once")
    return files


def find(pattern: str | Path) -> list[str]:
    """The files that a pattern names, all of them there.

    Raises:
        DataError: as :func:`expand`; or files are missing: how many, and the first.
    """
    files = expand(pattern)
    there: dict[str, set[str]] = {}
    for file in files:
        folder = os.path.dirname(file)  # noqa: PTH120  (a million Path objects take seconds)
        if folder not in there:
            try:
                there[folder] = set(os.listdir(folder or "."))  # noqa: PTH208
            except OSError:
                there[folder] = set()
    missing = [file for file in files if os.path.basename(file) not in there[os.path.dirname(file)]]  # noqa: PTH119, PTH120
    if missing:
        raise DataError(f"{pattern!s:.200}: {len(missing):,} of {len(files):,} shards are missing; first: {missing[0]}")
    return files


def _ranges(part: str) -> Iterator[tuple[str, str] | str]:
    for item in part[1:-1].split(","):
        match = _RANGE.fullmatch(item)
        yield (match[1], match[2]) if match else item


def _count(part: str) -> int:
    return sum(1 if isinstance(item, str) else abs(int(item[1]) - int(item[0])) + 1 for item in _ranges(part))


def _choices(part: str) -> list[str]:
    found = []
    for item in _ranges(part):
        if isinstance(item, str):
            found.append(item)
            continue
        first, last = int(item[0]), int(item[1])
        width = max(len(end) for end in item) if any(end[0] == "0" and len(end) > 1 for end in item) else 0
        step = 1 if last >= first else -1
        found.extend(f"{number:0{width}d}" for number in range(first, last + step, step))
    return found


@dataclass(frozen=True, slots=True)
class Shard:
    """What one pass over a shard's headers tells.

    Attributes:
        path: the file.
        size, modified: its bytes and time of change (ns), by which a changed file is told.
        pairs: pictures with a text, as far as the shard can be read.
        incomplete: records that lack a picture or a text.
        offsets: byte position of every ``_STRIDE``-th pair.
        damage: what ended the reading before the end; None in a sound shard.
    """

    path: str
    size: int
    modified: int
    pairs: int
    incomplete: int
    offsets: array[int]
    damage: str | None = None

    def line(self) -> str:
        """The shard as a line of JSON."""
        fields = [self.path, self.size, self.modified, self.pairs, self.incomplete, list(self.offsets), self.damage]
        return json.dumps(fields) + "\n"

    @classmethod
    def of_line(cls, line: bytes) -> Shard | None:
        """The shard of a line, or None where it is no whole one."""
        try:
            path, size, modified, pairs, incomplete, offsets, damage = json.loads(line)
            return cls(path, size, modified, pairs, incomplete, array("q", offsets), damage)
        except (ValueError, TypeError):
            return None


@dataclass(frozen=True, slots=True)
class Pair:
    """A pair as it stands in a shard: ``text`` is the caption's file, or the JSON where there is none."""

    shard: str
    number: int
    key: str
    picture: bytes
    text: bytes
    is_json: bool
    refused: str | None = None

    @property
    def id(self) -> str:
        """Shard and key, printable whatever the shard calls it."""
        return printable(f"{DATASET}/{Path(self.shard).stem}/{self.key}")

    @property
    def picture_name(self) -> str:
        """What messages call the picture."""
        return printable(f"{self.shard}/{self.key}")

    def sample(self) -> Sample:
        """The pair as a sample, whose picture's path is a name and no file.

        Raises:
            DataError: the text is no caption, or the pair was refused when it was read.
        """
        if self.refused:
            raise DataError(self.refused)
        turn = Turn("", caption_of(self.text, self.is_json))
        return Sample(self.id, DATASET, "caption", Path(self.picture_name), (turn,))


def printable(name: str) -> str:
    """A name that a shard gives, with what cannot be printed written as escapes."""
    return name if name.isprintable() else ascii(name)[1:-1]


def caption_of(text: bytes, is_json: bool) -> str:
    """The caption in a pair's text or JSON, as one line.

    Raises:
        DataError: not UTF-8, empty, too long, or JSON without a text ``caption``.
    """
    try:
        value: Any = text.decode("utf-8-sig")
        if is_json:
            record = json.loads(value)
            value = record.get("caption") if isinstance(record, dict) else None
    except (ValueError, RecursionError):
        raise DataError("the caption is not UTF-8 text" if not is_json else "the JSON cannot be read") from None
    caption = clean_line(value)
    if caption is None:
        raise DataError("no caption")
    if len(caption) > MAX_TEXT_CHARACTERS:
        raise DataError(f"a caption of {len(caption):,} characters; at most {MAX_TEXT_CHARACTERS:,} can be")
    return caption


# ---- reading ----


class _DamageError(Exception):
    """Where and why the reading of a shard's headers ended."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A member's first header block, its data and their size, in bytes."""

    start: int
    offset: int
    size: int


@cache
def library() -> Any:
    """The part of webdataset that reads and groups members.

    Raises:
        DataError: it is not installed.
    """
    try:
        return importlib.import_module("webdataset.tariterators")
    except ImportError:
        raise DataError('tar shards are read with webdataset. Cure: pip install "embervlm[shards]"') from None


def scan(path: str) -> Shard:
    """Count a shard's pairs by its members' headers alone.

    What cannot be read safely (cut off, damaged, compressed, sparse or oversized members, too many of them) ends the
    count, and the pairs before it stay, but for the last: only what follows a pair shows that it is whole.
    :attr:`Shard.damage` says what and where.

    Raises:
        DataError: no regular file, or it cannot be opened.
    """
    file, status = _open(path)
    pairs = incomplete = 0
    offsets = array("q")
    damage = None
    with file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        try:
            for group in _groups(_headers(file, status.st_size)):
                if _parts(group) is None:
                    incomplete += 1
                    continue
                if pairs % _STRIDE == 0:
                    offsets.append(min(place.start for place in group.values() if isinstance(place, _Place)))
                pairs += 1
        except _DamageError as error:
            damage = str(error)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    return Shard(path, status.st_size, status.st_mtime_ns, pairs, incomplete, offsets, damage)


def read_pairs(shard: Shard, first: int, last: int) -> Iterator[Pair]:
    """The pairs of a shard from number ``first`` to before ``last``, read from the nearest known position on.

    Raises:
        DataError: the shard has changed since it was counted, or cannot be read.
    """
    if first >= last:
        return
    file, status = _open(shard.path)
    number = first // _STRIDE * _STRIDE
    with file:
        _check_unchanged(shard, status)
        file.seek(shard.offsets[first // _STRIDE])
        try:
            members = library().tar_file_iterator(file, select_files=_is_wanted)
            for group in _groups({**member, "__url__": ""} for member in members):
                parts = _parts(group)
                if parts is None:
                    continue
                if number >= first:
                    picture, text = parts
                    yield Pair(shard.path, number, group["__key__"], group[picture], group[text], text == "json")
                number += 1
                if number == last:
                    return
        except (OSError, tarfile.TarError) as error:
            raise DataError(f"{shard.path}: cannot be read ({error})") from None
    raise DataError(f"{shard.path}: ended after pair {number}, where {shard.pairs} were counted; start the run again")


def located_pairs(shard: Shard) -> Iterator[tuple[Pair, int]]:
    """All pairs of a shard, each with the position of its picture's first byte.

    Raises:
        DataError: as :func:`read_pairs`.
    """
    if shard.pairs == 0:
        return
    file, status = _open(shard.path)
    number = 0
    with file:
        _check_unchanged(shard, status)
        for group in _groups(_headers(file, status.st_size)):
            parts = _parts(group)
            if parts is None:
                continue
            picture, text = (_read_at(file, group[part]) for part in parts)
            yield (
                Pair(shard.path, number, group["__key__"], picture, text, parts[1] == "json"),
                group[parts[0]].offset,
            )
            number += 1
            if number == shard.pairs:
                return


def _read_at(file: BinaryIO, place: _Place) -> bytes:
    file.seek(place.offset)
    return file.read(place.size)


def _check_unchanged(shard: Shard, status: os.stat_result) -> None:
    if (status.st_size, status.st_mtime_ns) != (shard.size, shard.modified):
        raise DataError(f"{shard.path}: the shard has changed since its pairs were counted; start the run again")


def _open(path: str) -> tuple[BinaryIO, os.stat_result]:
    try:
        # A pipe in the place of a shard must not hold the run up.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(f"{path}: cannot open the shard ({error.strerror or error})") from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode):
        os.close(handle)
        raise DataError(f"{path}: expected a tar file, found something that is no file")
    return open(handle, "rb"), status  # noqa: PTH123


def _is_wanted(name: str) -> bool:
    suffix = library().base_plus_ext(name)[1]
    return suffix is not None and suffix.lower() in _SUFFIXES and _META.match(name) is None


def _groups(members: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    groups: Iterator[dict[str, Any]] = library().group_by_keys(_without_repeats(members))
    return groups


def _without_repeats(members: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Leave out a second member of one key and suffix, on which the grouping would end."""
    split = library().base_plus_ext
    current: str | None = None
    seen: set[str] = set()
    for member in members:
        key, suffix = split(member["fname"])
        if key != current:
            current, seen = key, set()
        if suffix.lower() not in seen:
            seen.add(suffix.lower())
            yield member


def _parts(group: dict[str, Any]) -> tuple[str, str] | None:
    """The suffixes of a group's picture and text, or None where it lacks one."""
    picture = next((suffix for suffix in _PICTURES if suffix in group), None)
    text = "txt" if "txt" in group else "json" if "json" in group else None
    return (picture, text) if picture and text else None


def _headers(file: BinaryIO, size: int) -> Iterator[dict[str, Any]]:
    """The wanted members as ``tar_file_iterator`` gives them, with their places instead of their data.

    That reader takes declared sizes at their word and ends without a sign at a damaged header; hence this one, which
    reads nothing but headers and says what is wrong.
    """
    position, members = 0, 0
    start: int | None = None
    name: str | None = None
    declared: int | None = None
    extended = 0
    while True:
        file.seek(position)
        block = file.read(tarfile.BLOCKSIZE)
        here = f"at byte {position:,}"
        if position == 0 and not any(block):
            raise _DamageError("the file is empty")
        if _COMPRESSED.match(block):
            raise _DamageError(f"compressed data {here}; expected a plain tar file")
        if len(block) < tarfile.BLOCKSIZE:
            raise _DamageError(f"cut off {here}: no end mark")
        if not any(block):
            if extended:
                raise _DamageError(f"an extended header without a member {here}")
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise _DamageError(f"no member's header {here} ({error})") from None
        start = position if start is None else start
        data = position + tarfile.BLOCKSIZE
        if info.type in _EXTENDED:
            extended += 1
            if not 0 <= info.size <= MAX_EXTENDED_BYTES or extended > 4:
                raise _DamageError(f"an extended header of {info.size:,} bytes {here}")
            found = _extended(info.type, file.read(info.size), here)
            name = found[0] if name is None else name
            declared = found[1] if declared is None else declared
            position = data + _blocks(info.size)
            continue
        members += 1
        if members > MAX_MEMBERS:
            raise _DamageError(f"more than {MAX_MEMBERS:,} members")
        length = info.size if declared is None else declared
        fname = info.name if name is None else name.rstrip("/")
        has_data = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        end = data + _blocks(length) if has_data else data
        if info.type == tarfile.GNUTYPE_SPARSE or length < 0:
            raise _DamageError(f"a sparse member or one of negative size {here}")
        if len(fname) > MAX_NAME_CHARACTERS:
            raise _DamageError(f"a member's name of {len(fname):,} characters {here}")
        if end > size:
            raise _DamageError(f"cut off: {fname!r:.100} {here} says {length:,} bytes, {max(0, size - data):,} follow")
        if info.isreg() and _is_wanted(fname):
            limit = MAX_BYTES if not fname.lower().endswith((".txt", ".json")) else MAX_TEXT_BYTES
            if length > limit:
                raise _DamageError(f"{fname!r:.100} has {length:,} bytes; at most {limit:,} are read")
            yield {"fname": fname, "data": _Place(start, data, length), "__url__": ""}
        position, start, name, declared, extended = end, None, None, None, 0


def _blocks(size: int) -> int:
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _extended(kind: bytes, data: bytes, here: str) -> tuple[str | None, int | None]:
    """The name and size that an extended header gives the next member."""
    if kind in b"LK":
        return (data.split(b"\0", 1)[0].decode("utf-8", "surrogateescape") if kind == b"L" else None), None
    records: dict[bytes, bytes] = {}
    while data and data[0]:
        match = re.match(rb"(\d{1,6}) ([^=\n]+)=", data)
        length = int(match[1]) if match else 0
        if match is None or not match.end() < length <= len(data):
            raise _DamageError(f"an extended header that cannot be read {here}")
        records[match[2]] = data[match.end() : length - 1]
        data = data[length:]
    if any(key.startswith(b"GNU.sparse") for key in records) or (
        kind == tarfile.XGLTYPE and records.keys() & {b"path", b"size"}
    ):
        raise _DamageError(f"a sparse member, or a name for all of them, {here}")
    size = records.get(b"size")
    if size is not None and not re.fullmatch(rb"\d{1,18}", size):
        raise _DamageError(f"a size that is no number {here}")
    name = records.get(b"path") if kind != tarfile.XGLTYPE else None
    return (None if name is None else name.decode("utf-8", "surrogateescape")), (None if size is None else int(size))
