"""Reader of OCR-VQA: its ``dataset.json`` of book covers and questions about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import msgspec

from embervlm.data.files import PICTURE_SUFFIXES, Pictures
from embervlm.data.formats.record import (
    MAX_TEXT_CHARACTERS,
    TEXT_TOO_LONG,
    Format,
    Ids,
    Ledger,
    Row,
    clean_line,
    split_of,
)
from embervlm.data.json_files import KEYED, Head
from embervlm.data.json_stream import read_keyed
from embervlm.data.sample import Split

DATASET = "ocr_vqa"

_SPLITS: dict[int, Split] = {1: "train", 2: "validation", 3: "validation"}


class _Book(msgspec.Struct):
    imageURL: Any = None
    questions: Any = None
    answers: Any = None
    split: Any = None


def read(files: Sequence[Path], pictures: Pictures, ledger: Ledger) -> Iterator[Row]:
    """Yield one row a question; a book cover has several, and each counts as a record.

    A raw file, and the sample made of its first question::

        {"0001713996": {"imageURL": "http://example.com/images/I/51.jpg", "title": "Silent Sky", "genre": "Travel",
                        "authorName": "A. Writer", "split": 1,
                        "questions": ["What is the title of this book?", "Is this a travel book?"],
                        "answers": ["Silent Sky", "Yes"]}}

        Sample(id="ocr_vqa/0001713996/0", dataset="ocr_vqa", style="short_answer",
               image=Path(".../images/0001713996.jpg"),
               turns=(Turn("What is the title of this book?", "Silent Sky"),), split="train")

    The picture is named after the key, with the suffix of ``imageURL`` or with ``.jpg``. ``split`` is 1 for training, 2
    and 3 for validation; without it the file's name decides.

    Raises:
        DataError: a file is damaged or has a key twice, or a key is no file's name.
    """
    for file in files:
        yield from _read(file, pictures, ledger)


def _read(file: Path, pictures: Pictures, ledger: Ledger) -> Iterator[Row]:
    tally = ledger[DATASET]
    tally.files.append(file)
    of_file, near = split_of(file.stem), file.parent
    ids = Ids(file, "books", "the key")
    for block in read_keyed(file, _Book):
        for number, (key, book) in enumerate(zip(block.names, block.records, strict=True), block.start):
            ids.add(key, number)
            questions, answers = book.questions, book.answers
            if not isinstance(questions, list) or not isinstance(answers, list):
                tally.records += 1
                tally.rejected["no list of questions and answers"] += 1
                continue
            tally.records += len(questions)
            if len(questions) != len(answers):
                tally.rejected["as many answers as questions are expected"] += len(questions)
                continue
            split = of_file if book.split is None else _SPLITS.get(book.split) if type(book.split) is int else None
            if split is None:
                tally.rejected["split is not 1, 2 or 3"] += len(questions)
                continue
            picture = _picture(key, book.imageURL, pictures, f"{file}: key {key!r:.60}", near)
            for place, (asked, given) in enumerate(zip(questions, answers, strict=True)):
                question, answer = clean_line(asked), clean_line(given)
                if question is None or answer is None:
                    tally.rejected["empty question" if question is None else "empty answer"] += 1
                elif max(len(question), len(answer)) > MAX_TEXT_CHARACTERS:
                    tally.rejected[TEXT_TOO_LONG] += 1
                else:
                    tally.with_answer += 1
                    found = tally.count_picture(picture, f"{key}.jpg")
                    if found is not None:
                        yield Row(DATASET, f"{key}/{place}", "short_answer", split, found, ((question, answer),))
    ids.check()


def _picture(key: str, url: Any, pictures: Pictures, place: str, near: Path) -> int | None:
    suffix = ""
    if isinstance(url, str):
        try:
            suffix = PurePosixPath(urlsplit(url).path).suffix.lower()
        except ValueError:  # no address
            suffix = ""
    if suffix in PICTURE_SUFFIXES and suffix != ".jpg":
        found = pictures.find(f"{key}{suffix}", place, near=near)
        if found is not None:
            return found
    return pictures.find(f"{key}.jpg", place, near=near)


def _recognise(head: Head) -> bool:
    return head.key == KEYED and {"questions", "answers", "imageURL"} <= head.first.keys()


FORMAT = Format(
    "OCR-VQA",
    (DATASET,),
    1,
    "an object that maps image ids to objects with 'imageURL', 'questions' and 'answers'",
    _recognise,
    read,
)
