"""Strict reading of JSON annotation files, and a cheap look at what a large one holds before it is read."""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from embervlm.data.sample import DataError

MAX_BYTES = 2 * 1024**3

BOM = b"\xef\xbb\xbf"
BOM_CURE = "the file begins with a byte order mark; save it as UTF-8 without one"

_BLANKS = re.compile(r"[ \t\r\n]*")
_PEEK_BYTES = 4 * 1024**2
_ELEMENT_BYTES = 256 * 1024
_LIST_KEY = re.compile(rb'"(annotations|questions)"\s*:\s*\[\s*(?=\{)')
_KEYED = re.compile(rb'\s*\{\s*"(?:[^"\\]|\\.){0,200}"\s*:\s*(?=\{)')
_COCO_FAMILY = re.compile(
    rb'\s*\{\s*"(?:info|licenses?|images|annotations|questions|question_types|categories|type|task_type|data_type'
    rb'|data_subtype|num_choices|version|url)"'
)


class Refused(ValueError):
    """Something that RFC 8259 leaves open and that is not taken; ``pos`` is where the value begins that holds it."""

    def __init__(self, msg: str) -> None:
        super().__init__(msg)
        self.msg, self.pos = msg, 0


class StrictDecoder:
    """Python's JSON parser, made to refuse whatever RFC 8259 leaves open and readers disagree about.

    Args:
        path: the file, for messages.
        shrink: see :func:`read_json`.
    """

    def __init__(self, path: Path, shrink: Callable[[dict[str, Any]], Any] | None = None) -> None:
        self.path, self.shrink = path, shrink
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._to_object, parse_constant=_refuse_constant, parse_float=_to_float
        )

    def raw(self, text: str, position: int) -> tuple[Any, int]:
        """Parse the value that stands at ``position``, blanks before it allowed, and say where it ends.

        Raises:
            json.JSONDecodeError, Refused: with ``pos`` and ``msg``.
        """
        position = self.blanks(text, position)
        try:
            return self._decoder.raw_decode(text, position)
        except RecursionError:
            refused = Refused("lists or objects are nested too deeply")
        except json.JSONDecodeError:
            raise
        except Refused as error:
            refused = error
        except ValueError as error:  # a whole number with thousands of digits
            refused = Refused(str(error))
        refused.pos = position
        raise refused

    def blanks(self, text: str, position: int) -> int:
        """The place of the next character that is no blank."""
        found = _BLANKS.match(text, position)
        return position if found is None else found.end()

    def skip(self, text: str, position: int, character: str) -> int:
        """The place behind ``character``, which must be the next one that is no blank."""
        position = self.blanks(text, position)
        if text[position : position + 1] != character:
            raise json.JSONDecodeError(f"Expecting {character!r}", text, position)
        return position + 1

    def line(self, data: bytes, number: int) -> Any:
        """Parse line ``number`` (from 1) of a file of one value a line.

        Raises:
            DataError: not UTF-8 or no JSON.
        """
        place = f"{self.path}: line {number}"
        try:
            text = data.decode()
            value, end = self.raw(text, 0)
            if (rest := self.blanks(text, end)) != len(text):
                raise json.JSONDecodeError("Extra data", text, rest)
        except UnicodeDecodeError as error:
            raise DataError(f"{place}: not UTF-8 text (byte {error.start})") from None
        except (json.JSONDecodeError, Refused) as error:
            raise DataError(f"{place} column {error.pos + 1}: not valid JSON ({error.msg})") from None
        return value

    def _to_object(self, pairs: list[tuple[str, Any]]) -> Any:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise Refused(f"key {repeated!r:.60} occurs twice in one object; expected once")
        return found if self.shrink is None else self.shrink(found)


def reason_of(error: Exception, text: str) -> str:
    """Why ``text`` is no JSON, by what the parser raised."""
    message: str = getattr(error, "msg", str(error))
    ended = getattr(error, "pos", len(text)) >= len(text.rstrip()) or message.startswith("Unterminated string")
    return "ends too early" if ended else message


def _refuse_constant(name: str) -> NoReturn:
    raise Refused(f"{name} is not a JSON number")


def _to_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise Refused(f"number {digits:.40} is too large")
    return number


def read_json(path: Path, *, shrink: Callable[[dict[str, Any]], Any] | None = None, max_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON file, refusing whatever RFC 8259 leaves open and readers disagree about.

    Args:
        path: the file; UTF-8 without byte order mark.
        shrink: called for each object, innermost first; what it returns stands in the object's place.
        max_bytes: largest accepted size.

    Raises:
        DataError: the file is missing, too large, not UTF-8, cut off, not JSON, nested too deeply, begins with a byte
            order mark, or holds NaN, Infinity, a number beyond floating point, or an object with the same key twice.
            Names file and place.
    """
    data = _read_bytes(path, max_bytes)
    if data.startswith(BOM):
        raise DataError(f"{path}: line 1: {BOM_CURE}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}: line {line}: not UTF-8 text (byte {error.start})") from None
    del data
    decoder = StrictDecoder(path, shrink)
    try:
        value, end = decoder.raw(text, 0)
        if (rest := decoder.blanks(text, end)) != len(text):
            raise json.JSONDecodeError("Extra data", text, rest)
    except (json.JSONDecodeError, Refused) as error:
        reason = reason_of(error, text)
        line = text.count("\n", 0, error.pos) + 1
        column = error.pos - (text.rfind("\n", 0, error.pos) + 1) + 1
        raise DataError(f"{path}: line {line} column {column}: not valid JSON ({reason})") from None
    return value


def numbered_lines(path: Path, max_bytes: int) -> Iterator[tuple[int, bytes]]:
    """The lines of a text file with their numbers, from 1.

    Raises:
        DataError: the file cannot be read, begins with a byte order mark, or a line is longer than ``max_bytes``.
    """
    try:
        with path.open("rb") as lines:
            number = 0
            while line := lines.readline(max_bytes + 1):
                number += 1
                if len(line) > max_bytes:
                    raise DataError(f"{path}: line {number}: longer than {max_bytes:,} bytes")
                if number == 1 and line.startswith(BOM):
                    raise DataError(f"{path}: line 1: {BOM_CURE}")
                yield number, line
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror or error})") from None


def check_json(path: Path) -> None:
    """Check that a file is sound JSON, or, if it is called ``.jsonl``, that each of its lines is.

    Raises:
        DataError: as :func:`read_json`.
    """
    if path.suffix.lower() != ".jsonl":
        read_json(path)
        return
    decoder = StrictDecoder(path)
    for number, line in enumerate(_read_bytes(path, MAX_BYTES).split(b"\n"), 1):
        if line.strip():
            decoder.line(line, number)


def _read_bytes(path: Path, max_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            if not stat.S_ISREG(path.stat().st_mode):
                raise DataError(f"{path}: expected a JSON file, found something that is no file")
            if size > max_bytes:
                raise DataError(f"{path}: {size:,} bytes; at most {max_bytes:,} are read")
            return file.read(max_bytes)
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror or error})") from None


@dataclass(frozen=True, slots=True)
class Head:
    """What a look at a JSON file shows without parsing all of it.

    Attributes:
        path: the file.
        key: where ``first`` stands: an empty text in a file that is a list; ``LINES`` in a file of one object a line;
            ``KEYED`` in an object that maps ids to records; else the list's key in the top-level object.
        first: the first record.
    """

    path: Path
    key: str
    first: dict[str, Any]


LINES, KEYED = "lines", "*"


def peek_json(path: Path) -> Head | None:
    """Look at the first record of a JSON file; None where it has none of the layouts that any reader knows.

    It costs one read of the file's first kilobytes. Only in a top-level object that begins with one of the COCO
    family's keys are the lists of records looked for in the whole file, without parsing it.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            block = file.read(_PEEK_BYTES)
            opening = block.lstrip()[:1]
            if opening == b"[":
                first = _first_object(block[block.index(b"[") + 1 :][:_ELEMENT_BYTES])
                return None if first is None else Head(path, "", first)
            if opening != b"{":
                return None
            if _COCO_FAMILY.match(block) is not None:
                return _peek_lists(path, file, block)
            keyed = _KEYED.match(block)
            if keyed is not None and path.suffix.lower() != ".jsonl":
                first = _first_object(block[keyed.end() :][:_ELEMENT_BYTES])
                return None if first is None else Head(path, KEYED, first)
            first = _first_object(block[:_ELEMENT_BYTES])
            return None if first is None else Head(path, LINES, first)
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror or error})") from None


def _peek_lists(path: Path, file: BinaryIO, block: bytes) -> Head | None:
    while True:
        more = file.read(_PEEK_BYTES)
        # A list that opens near the block's end is left to the next round, which sees its first element whole.
        limit = len(block) - _ELEMENT_BYTES if more else len(block)
        for match in _LIST_KEY.finditer(block):
            if match.start() >= limit:
                break
            first = _first_object(block[match.end() : match.end() + _ELEMENT_BYTES])
            if first is not None:
                return Head(path, match.group(1).decode(), first)
        if not more:
            return None
        block = block[-_ELEMENT_BYTES:] + more


def _first_object(data: bytes) -> dict[str, Any] | None:
    text = data.decode("utf-8", errors="ignore").lstrip()
    if not text.startswith("{"):
        return None
    try:
        found, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
