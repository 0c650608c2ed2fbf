"""Reader of RefCOCO, RefCOCO+ and RefCOCOg as JSON: expressions and the boxes that they mean."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from embervlm.data.files import Pictures
from embervlm.data.formats.record import (
    MAX_TEXT_CHARACTERS,
    TEXT_TOO_LONG,
    Format,
    Ledger,
    Row,
    Tally,
    clean_line,
    split_of,
)
from embervlm.data.json_files import LINES, Head
from embervlm.data.json_stream import read_records
from embervlm.data.sample import DataError, Split

DATASET = "refcoco"

#: Pixels by which a box may stand out of its picture, since publishers round.
_MARGIN = 1.0
#: Share of boxes whose second corner is not right of and below the first from which a file's boxes are taken for
#: ``x y width height``.
_TURNED_SHARE = 0.1
_TURNED = "the box is empty, or its corners are not x1 y1 x2 y2"
_LARGEST = 1e6
_PICKLE = re.compile(r"refs\(.+\)\.p")
_COLUMNS, _ROWS = ("left", "", "right"), ("top", "", "bottom")


class _Record(msgspec.Struct):
    image: Any = None
    img_path: Any = None
    normal_caption: Any = None
    expression: Any = None
    expressions: Any = None
    sentence: Any = None
    solution: Any = None
    bbox: Any = None
    width: Any = None
    height: Any = None
    split: Any = None


def read(files: Sequence[Path], pictures: Pictures, ledger: Ledger) -> Iterator[Row]:
    """Yield one row an expression; a record with several expressions counts as so many.

    A raw record, and the sample made of it when it stands first in its file::

        {"image": "val2017/000000494869.jpg", "width": 427, "height": 640,
         "normal_caption": "a bowl whose exterior is neither red nor white",
         "solution": [342.29, 236.85, 392.62, 265.01], ...}

        Sample(id="refcoco/refcocos_test.json[0]", dataset="refcoco", style="short_answer",
               image=Path(".../val2017/000000494869.jpg"),
               turns=(Turn("Where is a bowl whose exterior is neither red nor white?", "right, 80 37 92 41"),),
               split="validation")

    The expression may also be called ``expression``, ``sentence`` or ``expressions`` (a list), the box ``bbox`` and the
    picture ``img_path``. A box is ``x1 y1 x2 y2`` in pixels; ``width`` and ``height`` are the picture's. The answer is
    the third of the picture across and down in which the box's centre lies (``center`` for the middle one), and the
    box in whole percent of width and height. The publishers' ``refs(unc).p`` are pickles and never opened.

    Raises:
        DataError: a file is damaged, a picture's name leaves the data folder, or the boxes are ``x y width height``.
    """
    tally = ledger[DATASET]
    for file in files:
        if _PICKLE.fullmatch(file.name):
            tally.notes.append(
                f"{file}: passed over, a pickle can run any program; convert it to JSON lines with 'image', "
                "'expression', 'bbox' (x1 y1 x2 y2 in pixels), 'width' and 'height'"
            )
        else:
            yield from _read(file, pictures, tally)


def _read(file: Path, pictures: Pictures, tally: Tally) -> Iterator[Row]:
    tally.files.append(file)
    of_file, near = _split_of(file.stem), file.parent
    turned = boxes = 0
    for block in read_records(file, _Record):
        for number, record in enumerate(block.records, block.start):
            several = record.expressions if isinstance(record.expressions, list) else None
            expressions = several or [_first(record.normal_caption, record.expression, record.sentence)]
            tally.records += len(expressions)
            answer, reason = _answer(record)
            boxes += 1
            turned += reason == _TURNED
            split = _split_of(record.split) if isinstance(record.split, str) else of_file
            for place, given in enumerate(expressions):
                text = clean_line(given)
                text = text and text.rstrip(". ")
                if not text:
                    tally.rejected["empty expression"] += 1
                    continue
                if len(text) > MAX_TEXT_CHARACTERS:
                    tally.rejected[TEXT_TOO_LONG] += 1
                    continue
                if reason:
                    tally.rejected[reason] += 1
                    continue
                tally.with_answer += 1
                name = _first(record.image, record.img_path)
                if name is None:
                    tally.rejected["no picture is named"] += 1
                    continue
                picture = tally.picture(pictures, name, f"{file}: record {number}", split_folder=None, near=near)
                if picture is not None:
                    id = f"{file.name}[{number}]" + (f"/{place}" if several else "")
                    yield Row(DATASET, id, "short_answer", split, picture, ((f"Where is {text}?", answer),))
    if turned > max(1, _TURNED_SHARE * boxes):
        raise DataError(
            f"{file}: in {turned:,} of {boxes:,} boxes the second corner is not right of and below the first; "
            "expected x1 y1 x2 y2 in pixels. Cure: convert x y width height to corners"
        )


def _answer(record: _Record) -> tuple[str, str]:
    """The answer, and an empty text or the reason why there is none."""
    box = _first(record.solution, record.bbox)
    if box is None:
        return "", "no box"
    if not _are_numbers(box, 4):
        return "", "the box is not four numbers"
    size = [record.width, record.height]
    if not _are_numbers(size, 2) or min(size) <= 0:
        return "", "no width and height of the picture"
    left, top, right, bottom = (at / length for at, length in zip(box, size * 2, strict=True))
    if right <= left or bottom <= top:
        return "", _TURNED
    across, down = (_MARGIN / length for length in size)
    if left < -across or top < -down or right > 1 + across or bottom > 1 + down:
        return "", "the box leaves the picture"
    column, row = (min(2, max(0, int((low + high) / 2 * 3))) for low, high in ((left, right), (top, bottom)))
    words = " ".join(word for word in (_ROWS[row], _COLUMNS[column]) if word) or "center"
    percent = " ".join(str(min(100, max(0, round(100 * at)))) for at in (left, top, right, bottom))
    return f"{words}, {percent}", ""


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(value) in (int, float) and -_LARGEST < value < _LARGEST for value in values)
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _split_of(name: str) -> Split:
    # RefCOCO's test sets are called testA and testB.
    return split_of(re.sub(r"test[AB](?![a-z])", "test", name))


def _recognise(head: Head) -> bool:
    keys = head.first.keys()
    named = {"image", "img_path"} & keys
    told = {"normal_caption", "expression", "expressions", "sentence"} & keys
    return head.key in ("", LINES) and bool(named) and bool(told) and bool({"solution", "bbox"} & keys)


FORMAT = Format(
    "RefCOCO",
    (DATASET,),
    1,
    "a list or lines of objects with 'image', 'expression', 'bbox', 'width' and 'height'",
    _recognise,
    read,
    suffixes=(".p",),
    recognise_file=lambda file: _PICKLE.fullmatch(file.name) is not None,
)
