"""Annotation files of any size, read once in blocks: the readers of ``formats`` take their records from here.

A block ends where its last bytes look least nested. That is a guess, and the decoder proves it: a block cut inside a
record or a text does not parse. Blocks that do not parse, or in which a wanted key may occur twice, are read again
record by record with Python's own parser, which is strict and says where a damage is.
"""

from __future__ import annotations

import functools
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, NoReturn, TypeVar

import msgspec

from embervlm.data.json_files import BOM, BOM_CURE, LINES, Refused, StrictDecoder, peek_json, reason_of
from embervlm.data.sample import DataError

BLOCK_BYTES = 4 * 1024**2
MAX_RECORD_BYTES = 4 * 1024**2
MAX_VALUE_BYTES = 16 * 1024**2
MAX_FILE_BYTES = 64 * 1024**3

_BLANKS = b" \t\r\n"
_BETWEEN_RECORDS = re.compile(rb'\}[ \t\r\n]*(,)[ \t\r\n]*["{]')
_WINDOW_BYTES = 64 * 1024
_END = re.compile(r"trailing characters \(byte (\d+)\)")
# An ASCII letter, digit or underscore written as an escape could hide a second key of the same name.
_ESCAPED_KEY = re.compile(rb"\\u00(?:3[0-9]|[46][1-9a-fA-F]|[57][0-9aA]|5[fF])")

S = TypeVar("S", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Block(Generic[S]):
    """Consecutive records of one list.

    Attributes:
        key: the list's key in the top-level object; an empty text where the file itself holds the records.
        start: the first record's number in its list or file, from 0.
        records: the records; one that is no object has all its fields at their defaults.
        names: the records' own keys, in a file that maps keys to records; otherwise empty.
    """

    key: str
    start: int
    records: list[S]
    names: list[str]


Nested = tuple[tuple[str, ...], Callable[[Any], int]]
_NOT_NESTED: Nested = ((), lambda record: 0)


def read_list(path: Path, record: type[S], *, nested: Nested | None = None) -> Iterator[Block[S]]:
    """Stream a file that is one list of objects.

    Args:
        path: the file; UTF-8 without byte order mark.
        record: the wanted fields, each with a default. Fields typed ``Any`` take whatever stands there.
        nested: keys of objects inside a record, and how many such objects a record has, for those whose doubled keys
            must be noticed.

    Raises:
        DataError: the file cannot be read, is too large, cut off, not UTF-8, not JSON as RFC 8259 has it, nested too
            deeply, or has a key twice in an object that is looked at. Names file and line.
    """
    with _open(path) as file:
        source = _Source(path, file)
        source.expect(b"[", "a list of records")
        yield from _sequence(source, "", record, keyed=False, nested=nested)
        source.expect_end()


def read_records(path: Path, record: type[S], *, nested: Nested | None = None) -> Iterator[Block[S]]:
    """Stream a file that is a list of objects or has one a line, whichever it is; see :func:`read_list`."""
    head = peek_json(path)
    if head is not None and head.key == LINES:
        return read_lines(path, record)
    return read_list(path, record, nested=nested)


def read_keyed(path: Path, record: type[S]) -> Iterator[Block[S]]:
    """Stream a file that is one object whose keys are the records' ids; see :func:`read_list`."""
    with _open(path) as file:
        source = _Source(path, file)
        source.expect(b"{", "an object of records")
        yield from _sequence(source, "", record, keyed=True)
        source.expect_end()


def read_lists(
    path: Path, wanted: Mapping[str, type[Any]], values: dict[str, Any] | None = None
) -> Iterator[Block[Any]]:
    """Stream the lists of records in a file's top-level object.

    Args:
        path: the file.
        wanted: the lists to yield, by key, with their records' fields; other lists are checked and passed over.
        values: filled with the top-level values that are no lists of objects, as they are met.

    Raises:
        DataError: as :func:`read_list`; or a wanted list is missing.
    """
    with _open(path) as file:
        source = _Source(path, file)
        source.expect(b"{", "an object with the lists " + " and ".join(wanted))
        seen: set[str] = set()
        while source.blank_then() != b"}":
            if seen:
                source.expect(b",", "a comma between two entries")
            key = source.value()
            if not isinstance(key, str):
                source.fail(0, "a key must be text")
            if key in seen:
                raise DataError(f"{path}: key {key!r:.60} occurs twice in one object; expected once")
            seen.add(key)
            source.expect(b":", "a colon after a key")
            if source.blank_then() == b"[" and (key in wanted or source.opens_objects()):
                source.drop(1)
                for block in _sequence(source, key, wanted.get(key, _Nothing), keyed=False):
                    if key in wanted:
                        yield block
            else:
                value = source.value()
                if key in wanted:
                    raise DataError(f"{path}: {key!r} must be a list, found {value!r:.60}")
                if values is not None:
                    values[key] = value
        source.drop(1)
        source.expect_end()
        missing = [key for key in wanted if key not in seen]
        if missing:
            found = ", ".join(sorted(seen)[:8]) or "nothing"
            raise DataError(f"{path}: no list {missing[0]!r} in the object; found {found}")


def read_lines(path: Path, record: type[S]) -> Iterator[Block[S]]:
    """Stream a file of one object a line (JSONL); empty lines are passed over. See :func:`read_list`."""
    decoder = msgspec.json.Decoder(list[record])  # type: ignore[valid-type]
    strict = StrictDecoder(path)
    with _open(path) as file:
        number, start, rest = 0, 0, b""
        while True:
            data = file.read(BLOCK_BYTES)
            whole, newline, tail = (rest + data).rpartition(b"\n") if data else (rest, b"", b"")
            if data and not newline:
                if len(tail) > MAX_RECORD_BYTES:
                    raise DataError(f"{path}: line {number + 1}: longer than {MAX_RECORD_BYTES:,} bytes")
                rest = tail
                continue
            rest = tail
            lines = whole.split(b"\n")
            records = _lines(decoder, record, whole, lines)
            if records is None:
                records = []
                for place, line in enumerate(lines):
                    if line.strip():
                        records.append(_as(record, strict.line(line, number + place + 1)))
            if records:
                yield Block("", start, records, [])
            number += len(lines)
            start += len(records)
            if not data:
                return


def plain(value: Any) -> Any:
    """A field's value as Python objects, where the record's type keeps it as ``msgspec.Raw`` until it is wanted."""
    return msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value


class _Nothing(msgspec.Struct):
    """A record nothing of which is wanted: it is checked and passed over."""


def _open(path: Path) -> BinaryIO:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: expected a JSON file, found something that is no file")
        if status.st_size > MAX_FILE_BYTES:
            raise DataError(f"{path}: {status.st_size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
        file = path.open("rb")
        if file.read(len(BOM)) == BOM:
            file.close()
            raise DataError(f"{path}: line 1: {BOM_CURE}")
        file.seek(0)
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror or error})") from None
    return file


class _Source:
    """The part of a file that is not parsed yet, from its next byte on."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.data = b""
        self.at_end = False
        self.offset = 0  # of data[0] in the file
        self.strict = StrictDecoder(path)

    def fill(self, size: int) -> None:
        """Have at least ``size`` bytes, or all that is left."""
        while len(self.data) < size and not self.at_end:
            try:
                more = self.file.read(max(BLOCK_BYTES, size - len(self.data)))
            except OSError as error:
                raise DataError(f"{self.path}: cannot read the file ({error.strerror or error})") from None
            self.at_end = not more
            self.data += more

    def drop(self, count: int) -> None:
        self.data = self.data[count:]
        self.offset += count

    def blank_then(self) -> bytes:
        """Pass over blanks; the next byte, or none at the file's end."""
        while True:
            self.fill(1)
            stripped = self.data.lstrip(_BLANKS)
            if stripped or self.at_end:
                self.drop(len(self.data) - len(stripped))
                return stripped[:1]
            self.drop(len(self.data))

    def expect(self, byte: bytes, what: str) -> None:
        found = self.blank_then()
        if found != byte:
            self.fail(0, "ends too early" if not found else f"expected {what}")
        self.drop(1)

    def expect_end(self) -> None:
        if self.blank_then():
            self.fail(0, "text after the end")

    def opens_objects(self) -> bool:
        """Whether the list that begins here begins with an object."""
        self.fill(BLOCK_BYTES)
        return self.data[1:].lstrip(_BLANKS)[:1] == b"{"

    def value(self) -> Any:
        """Parse the value that stands here."""
        self.blank_then()
        size = 64 * 1024
        while True:
            self.fill(size)
            text, _ = self.text(len(self.data))
            try:
                found, end = self.strict.raw(text, 0)
                # A number that the block's end cuts looks whole.
                if end < len(text) or self.at_end:
                    self.drop(len(text[:end].encode()))
                    return found
                error = ValueError("ends too early")
            except ValueError as caught:
                error = caught
            if self.at_end or size >= MAX_VALUE_BYTES:
                self.fail_at(error, text)
            size *= 4

    def text(self, count: int) -> tuple[str, int]:
        """The first ``count`` bytes as text, less a character that the block's end cuts."""
        part = self.data[:count]
        try:
            return part.decode(), count
        except UnicodeDecodeError as error:
            if error.start >= len(part) - 3 and error.reason == "unexpected end of data" and not self.at_end:
                return part[: error.start].decode(), error.start
            self.fail(error.start, f"not UTF-8 text (byte {self.offset + error.start})")

    def fail_at(self, error: Exception, text: str) -> NoReturn:
        """Raise what Python's parser found in ``text``, the beginning of the data, with its line."""
        position = min(getattr(error, "pos", len(text)), len(text.rstrip()))
        self.fail(len(text[:position].encode()), f"not valid JSON ({reason_of(error, text)})")

    def fail(self, position: int, reason: str) -> NoReturn:
        """Raise with the line and column of ``position`` in the data."""
        end, line, last = self.offset + position, 1, 0
        with self.path.open("rb") as file:
            done = 0
            while done < end and (block := file.read(min(BLOCK_BYTES, end - done))):
                line += block.count(b"\n")
                if b"\n" in block:
                    last = done + block.rindex(b"\n") + 1
                done += len(block)
        raise DataError(f"{self.path}: line {line} column {end - last + 1}: {reason}")


def _sequence(
    source: _Source, key: str, record: type[S], *, keyed: bool, nested: Nested | None = None
) -> Iterator[Block[S]]:
    """The records up to the bracket that closes the list or object whose opening bracket has just been read."""
    opening, closing = (b"{", b"}") if keyed else (b"[", b"]")
    decoder = msgspec.json.Decoder(dict[str, record] if keyed else list[record])  # type: ignore[valid-type]
    keys = _Keys(record, nested)
    start = 0
    if source.blank_then() == closing:
        source.drop(1)
        return
    while True:
        source.fill(BLOCK_BYTES)
        cut, closed = (len(source.data), True) if source.at_end else (_cut(source.data), False)
        names: list[str] = []
        try:
            cut, closed, found = _decode(decoder, source.data, cut, closed, opening, closing)
            records: list[S] = list(found.values()) if keyed else found
            names = list(found) if keyed else []
            block = source.data[:cut]
            sound = block.isascii() or block.decode() is not None
            if not sound or keys.may_repeat(block, records):
                raise msgspec.DecodeError("to be looked at closely")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            records, names, cut, closed = _one_by_one(source, cut or len(source.data), record, keyed)
            keys.learn(source.data[:cut], records)
        if records:
            yield Block(key, start, records, names)
        start += len(records)
        source.drop(cut)
        if closed:
            return
        if source.blank_then() == closing:
            source.drop(1)
            return
        source.expect(b",", "a comma or the list's end after a record")
        if source.blank_then() == closing:
            source.fail(0, "not valid JSON (a comma before the list's end)")


def _cut(data: bytes) -> int:
    """Where the last whole record seems to end, or 0 where no place is seen.

    Brackets inside texts can mislead, and the list can end earlier; the decoder finds both out.
    """
    start = max(0, len(data) - _WINDOW_BYTES)
    window = data[start:]
    best, least, depth, done = 0, 1, 0, 0
    for found in _BETWEEN_RECORDS.finditer(window):
        place = found.start(1)
        part = window[done:place]
        depth += part.count(b"{") + part.count(b"[") - part.count(b"}") - part.count(b"]")
        done = place
        if depth <= least or not best:
            best, least = place, depth
    return start + best if best else 0


def _decode(decoder: Any, data: bytes, cut: int, closed: bool, opening: bytes, closing: bytes) -> tuple[int, bool, Any]:
    """Decode the block; the place behind it, whether it closes the list, and the records."""
    if cut == 0:
        raise msgspec.DecodeError("no place to cut at")
    view = memoryview(data)
    try:
        return cut, closed, decoder.decode(b"".join((opening, view[:cut], b"" if closed else closing)))
    except msgspec.DecodeError as error:
        end = _END.search(str(error))
        if end is None:
            raise
    cut = int(end.group(1)) - 2  # the list ends inside the block; the number counts the bracket and the next byte
    return cut, True, decoder.decode(b"".join((opening, view[:cut])))


@functools.cache
def _fields(record: Any) -> tuple[Any, ...]:
    return tuple(msgspec.structs.fields(record))


class _Keys:
    """Tells from the bytes of a block whether one of its records could hold a wanted key twice."""

    def __init__(self, record: Any, nested: Nested | None = None) -> None:
        self._wanted = {b'"' + field.encode_name.encode() + b'"': 1 for field in _fields(record)}
        names, self._count_nested = nested if nested is not None else _NOT_NESTED
        self._nested = [b'"' + name.encode() + b'"' for name in names]

    def may_repeat(self, block: bytes, records: list[Any]) -> bool:
        """Whether a wanted key stands there more often than it should; texts can look like keys."""
        if any(block.count(key) > times * len(records) for key, times in self._wanted.items()):
            return True
        if self._nested:
            most = sum(map(self._count_nested, records))
            if any(block.count(key) > most for key in self._nested):
                return True
        return b"\\u00" in block and _ESCAPED_KEY.search(block) is not None

    def learn(self, block: bytes, records: list[Any]) -> None:
        """Take from a block that was found sound how often each key stands in a record and the objects inside it."""
        for key in self._wanted:
            times, rest = divmod(block.count(key), len(records) or 1)
            if times > 1 and rest == 0:
                self._wanted[key] = times


def _one_by_one(source: _Source, size: int, record: type[S], keyed: bool) -> tuple[list[S], list[str], int, bool]:
    """Parse the records of the first ``size`` bytes strictly: records, their keys, bytes used, whether the list closed.

    The last record may be cut by the block's end and is then left.
    """
    closing = "}" if keyed else "]"
    while True:
        text, size = source.text(size)
        records: list[S] = []
        names: list[str] = []
        position, used = 0, 0
        try:
            while True:
                if keyed:
                    name, position = source.strict.raw(text, position)
                    if not isinstance(name, str):
                        raise ValueError("a key must be text")
                    position = source.strict.skip(text, position, ":")
                value, position = source.strict.raw(text, position)
                records.append(_as(record, value))
                if keyed:
                    names.append(name)
                used = position
                position = source.strict.blanks(text, position)
                if text[position : position + 1] == closing:
                    return records, names, len(text[: position + 1].encode()), True
                position = source.strict.skip(text, position, ",")
        except ValueError as error:
            if isinstance(error, Refused) and not records:
                source.fail_at(error, text)
            if records and not (source.at_end and size == len(source.data)):
                return records, names, len(text[:used].encode()), False
            if (source.at_end and size == len(source.data)) or size >= MAX_RECORD_BYTES:
                source.fail_at(error, text)
        source.fill(len(source.data) + BLOCK_BYTES)
        size = len(source.data)


def _as(record: type[S], value: Any) -> S:
    """The wanted fields of a parsed object."""
    if not isinstance(value, dict):
        return record()
    return record(**{f.name: value[f.encode_name] for f in _fields(record) if f.encode_name in value})


def _lines(decoder: Any, record: type[S], whole: bytes, lines: list[bytes]) -> list[S] | None:
    """All lines at once; None where that does not go and each has to be looked at."""
    filled = [line for line in lines if line.strip()]
    try:
        if not whole.isascii():
            whole.decode()
        found: list[S] = decoder.decode(b"".join((b"[", b",".join(filled), b"]")))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    # Joined lines could also parse where a record goes over two lines, or two stand in one.
    return None if len(found) != len(filled) or _Keys(record).may_repeat(whole, found) else found
