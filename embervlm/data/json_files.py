"""Strict reading of JSON annotation files, and a cheap look at what a large one holds before it is read."""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from embervlm.data.sample import DataError

MAX_BYTES = 2 * 1024**3

_BOM = b"\xef\xbb\xbf"
_PEEK_BYTES = 4 * 1024**2
_ELEMENT_BYTES = 256 * 1024
_LIST_KEY = re.compile(rb'"(annotations|questions)"\s*:\s*\[\s*(?=\{)')
_COCO_FAMILY = re.compile(
    rb'\s*\{\s*"(?:info|licenses?|images|annotations|questions|question_types|categories|type|task_type|data_type'
    rb'|data_subtype|num_choices|version|url)"'
)


def read_json(path: Path, *, shrink: Callable[[dict[str, Any]], Any] | None = None, max_bytes: int = MAX_BYTES) -> Any:
    """Read a JSON file, refusing whatever RFC 8259 leaves open and readers disagree about.

    Args:
        path: the file; UTF-8, a byte order mark is accepted.
        shrink: called for each object, innermost first; what it returns stands in the object's place. It lets a reader
            drop what it does not use while the file is parsed, which keeps large files in memory.
        max_bytes: largest accepted size.

    Raises:
        DataError: the file is missing, too large, not UTF-8, cut off, not JSON, nested too deeply, or holds NaN,
            Infinity, a number beyond floating point, or an object with the same key twice. Names file and place.
    """
    data = _read_bytes(path, max_bytes)
    start = len(_BOM) if data.startswith(_BOM) else 0
    try:
        text = str(memoryview(data)[start:], "utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, start + error.start) + 1
        raise DataError(f"{path}: line {line}: not UTF-8 text (byte {start + error.start})") from None
    del data

    def to_object(pairs: list[tuple[str, Any]]) -> Any:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            repeated = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{path}: key {repeated!r:.60} occurs twice in one object; expected once")
        return found if shrink is None else shrink(found)

    def refuse_constant(name: str) -> NoReturn:
        raise DataError(f"{path}: {name} is not a JSON number")

    def to_float(digits: str) -> float:
        number = float(digits)
        if math.isinf(number):
            raise DataError(f"{path}: number {digits:.40} is too large")
        return number

    try:
        return json.loads(text, object_pairs_hook=to_object, parse_constant=refuse_constant, parse_float=to_float)
    except json.JSONDecodeError as error:
        reason = "ends too early" if error.pos >= len(text.rstrip()) else error.msg
        raise DataError(f"{path}: line {error.lineno} column {error.colno}: not valid JSON ({reason})") from None
    except RecursionError:
        raise DataError(f"{path}: lists or objects are nested too deeply") from None
    except DataError:
        raise
    except ValueError as error:  # a whole number with thousands of digits
        raise DataError(f"{path}: not valid JSON ({error})") from None


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
        key: the list that ``first`` heads: ``annotations`` or ``questions`` of a top-level object, or an empty text
            where the file itself is a list.
        first: the list's first object.
    """

    path: Path
    key: str
    first: dict[str, Any]


def peek_json(path: Path) -> Head | None:
    """Look at the first record of a JSON file; None where it has none of the layouts that any reader knows.

    A top-level list costs one read of its first kilobytes. In a top-level object the two list keys of the COCO family
    are looked for in the bytes, in the whole file only if its first key is one that these files have.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            block = file.read(_PEEK_BYTES)
            if block.startswith(_BOM):
                block = block[len(_BOM) :]
            opening = block.lstrip()[:1]
            if opening == b"[":
                first = _first_object(block[block.index(b"[") + 1 :][:_ELEMENT_BYTES])
                return None if first is None else Head(path, "", first)
            if opening != b"{":
                return None
            follow = _COCO_FAMILY.match(block) is not None
            while True:
                more = file.read(_PEEK_BYTES) if follow else b""
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
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror or error})") from None


def _first_object(data: bytes) -> dict[str, Any] | None:
    text = data.decode("utf-8", errors="ignore").lstrip()
    if not text.startswith("{"):
        return None
    try:
        found, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
