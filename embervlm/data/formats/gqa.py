"""Reader of GQA: ``train_balanced_questions.json``, ``train_all_questions_0.json`` and their like."""

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
    Ids,
    Ledger,
    Row,
    clean_line,
    split_of,
)
from embervlm.data.json_files import KEYED, Head
from embervlm.data.json_stream import read_keyed

DATASET = "gqa"

_IMAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,100}")
_MAX_ANSWERS = 100_000
_BAD_IMAGE_ID = "imageId is no name of letters and digits"


class _Question(msgspec.Struct, gc=False):
    imageId: Any = None
    question: Any = None
    answer: Any = None
    fullAnswer: Any = None


def read(files: Sequence[Path], pictures: Pictures, ledger: Ledger) -> Iterator[Row]:
    """Yield one row a question that has an answer.

    A raw file, and the sample made of its one question::

        {"05515822": {"imageId": "2405722", "question": "What is the color of the fence on the left of the picture?",
                      "answer": "silver", "fullAnswer": "The fence is silver.", "isBalanced": true, ...}}

        Sample(id="gqa/05515822", dataset="gqa", style="short_answer", image=Path(".../images/2405722.jpg"),
               turns=(Turn("What is the color of the fence on the left of the picture?", "silver"),),
               split="validation")

    Where ``answer`` is missing ``fullAnswer`` takes its place; test and submission files have neither.

    Raises:
        DataError: a file is damaged or has a question id twice.
    """
    for file in files:
        yield from _read(file, pictures, ledger)


def _read(file: Path, pictures: Pictures, ledger: Ledger) -> Iterator[Row]:
    tally = ledger[DATASET]
    tally.files.append(file)
    split, near = split_of(file.stem), file.parent
    ids = Ids(file, "questions", "the question id")
    # There are few different answers, and a dozen questions to a picture.
    answers: dict[Any, str] = {}
    found: dict[Any, int | None] = {}
    for block in read_keyed(file, _Question):
        ids.add_texts(block.names, block.start)
        tally.records += len(block.records)
        with_answer = with_image = 0
        for id, record in zip(block.names, block.records, strict=True):
            question = clean_line(record.question)
            if question is None:
                tally.rejected["empty question"] += 1
                continue
            given = record.answer
            answer = answers.get(given) if type(given) is str else None
            if answer is None:
                answer = clean_line(given)
                if answer is not None and len(answers) < _MAX_ANSWERS:
                    answers[given] = answer
                answer = answer or clean_line(record.fullAnswer)
                if answer is None:
                    tally.rejected["no answer"] += 1
                    continue
            if len(question) > MAX_TEXT_CHARACTERS or len(answer) > MAX_TEXT_CHARACTERS:
                tally.rejected[TEXT_TOO_LONG] += 1
                continue
            with_answer += 1
            image = record.imageId
            if type(image) is int:
                image = str(image)
            try:
                picture = found[image]
            except (KeyError, TypeError):
                if type(image) is not str or not _IMAGE_ID.fullmatch(image):
                    tally.rejected[_BAD_IMAGE_ID] += 1
                    continue
                picture = found[image] = pictures.find(f"{image}.jpg", f"{file}: question {id}", near=near, again=False)
            if picture is None:
                tally.count_picture(None, f"{image}.jpg")
                continue
            with_image += 1
            yield Row(DATASET, id, "short_answer", split, picture, ((question, answer),))
        tally.with_answer += with_answer
        tally.with_image += with_image
    ids.check()


def _recognise(head: Head) -> bool:
    return head.key == KEYED and {"imageId", "question"} <= head.first.keys()


FORMAT = Format(
    "GQA",
    (DATASET,),
    1,
    "an object that maps question ids to objects with 'imageId', 'question' and 'answer'",
    _recognise,
    read,
    few_files=True,
)
